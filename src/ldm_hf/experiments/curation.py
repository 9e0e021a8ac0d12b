"""How often curation keeps a policy that learned nothing: frozen policies in real environments, recorded as runs are.

    python -m ldm_hf.experiments.curation --bank bank --json figures.json

Each run plays a policy that never changes, in as many copies of the environment as runs have, for as many transitions as a
short one. Two policies: a random one, and that of the bank with half of its actions drawn at random, whose episodes differ
most. *Improved* is what the rule for learning curves (Welch's one-tailed test at 5 %, first against last 10 % of the
episodes) lets pass. *Kept* is what also passes the flags, which are asked of the last 20 episodes. Shares have Wilson
intervals of 95 %.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ldm_hf.dataset_builder.anchors.anchors import measure_anchors
from ldm_hf.dataset_builder.anchors.flags import flags
from ldm_hf.dataset_builder.bank.rollouts import Noise
from ldm_hf.dataset_builder.reference.curation import unfit
from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.registry import make_vec, spec
from ldm_hf.experiments.figures import print_table, write_json

ENVIRONMENTS = (
    "gymnasium/Acrobot-v1",
    "gymnasium/Blackjack-v1",
    "gymnasium/CartPole-v1",
    "gymnasium/CliffWalkingSlippery-v1",
    "gymnasium/FrozenLake-v1",
    "gymnasium/MountainCarContinuous-v0",
    "gymnasium/Pendulum-v1",
    "gymnasium/Taxi-v4",
)
"""Fixed before any was played: dense, sparse and costly steps, long and short episodes, many and few returns."""

_NUM_ENVS, _HALF = 8, 0.5

Act = Callable[[Any], Any]


@dataclass(frozen=True)
class Shares:
    """Of the runs of a frozen policy: how many there are, are called improved, and are kept."""

    runs: int
    improved: int
    kept: int


def play(environment: str, seed: int, transitions: int, noisy: ReferencePolicy | None) -> tuple[bool, bool]:
    """Record a run of a frozen policy, the random one or a noisy one; whether it is called improved, and kept."""
    limit = spec(environment).max_episode_steps
    envs = make_vec(environment, _NUM_ENVS, autoreset_mode="SameStep")
    recorder = Recorder(envs, transitions // _NUM_ENVS, limit)
    act = _random(envs, seed) if noisy is None else _noisy(envs, noisy, environment, seed)
    observations, _ = recorder.reset(seed=seed)
    for _ in range(transitions // _NUM_ENVS):
        observations, *_ = recorder.step(act(observations))
    recorder.end_training()
    while recorder.is_recording:
        observations, *_ = recorder.step(act(observations))
    curve = recorder.curve()
    improved = unfit(curve, None) is None
    envs.close()
    if not improved:
        return False, False
    returns = list(curve.returns[-20:])  # of the last episodes, as the policy would be scored
    return True, not flags(returns, [], None, measure_anchors(environment))


def _random(envs: Any, seed: int) -> Act:
    envs.action_space.seed(seed)
    return lambda observations: envs.action_space.sample()


def _noisy(envs: Any, policy: ReferencePolicy, environment: str, seed: int) -> Act:
    flat, space = FlatObservations(envs.single_observation_space), envs.single_action_space
    noise = Noise([_HALF] * _NUM_ENVS, spec(environment).action_space, seed)
    return lambda observations: noise.add(policy.act(flat.flatten(observations)).astype(space.dtype))


def _share(count: int, runs: int) -> str:
    interval = binomtest(count, runs).proportion_ci(method="wilson")
    return f"{count / runs:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def main() -> None:
    """Play, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, default=Path("bank"))
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS))
    parser.add_argument("--runs", type=int, default=40, help="Of each policy in each environment.")
    parser.add_argument("--transitions", type=int, default=16_000, help="Of a run.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, Shares]] = {}
    for environment in options.environments:
        parsed = EnvironmentId.parse(environment)
        folder = options.bank / parsed.library / parsed.config_name / "policy"
        policies = {"random": None} | ({"half random": ReferencePolicy.load(folder)} if folder.is_dir() else {})
        for name, policy in policies.items():
            runs = [play(environment, seed, options.transitions, policy) for seed in range(options.runs)]
            counts = np.sum(runs, axis=0)
            found.setdefault(name, {})[environment] = Shares(len(runs), int(counts[0]), int(counts[1]))
    rows, figures = [], {}
    for name, shares in found.items():
        total = Shares(
            *(sum(getattr(each, field) for each in shares.values()) for field in ("runs", "improved", "kept"))
        )
        for environment, each in [*shares.items(), ("all", total)]:
            rows.append([f"{name}: {environment}", _share(each.improved, each.runs), _share(each.kept, each.runs)])
            figures[f"{name}: {environment}"] = vars(each)
    print_table("frozen policies", ["policy and environment", "improved", "kept"], rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
