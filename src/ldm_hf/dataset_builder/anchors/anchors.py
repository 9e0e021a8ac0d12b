"""What a return on an environment is worth: beside a random policy, trivial ones, and the known good score."""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from gymnasium.vector import VectorEnv

from ldm_hf.dataset_builder.anchors.playing import Episodes, play
from ldm_hf.dataset_builder.anchors.trivial_policies import random_policy, trivial_policies
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.known_scores import THRESHOLD, KnownScore, known_score
from ldm_hf.env_registry.library.manifest import home
from ldm_hf.env_registry.registry import find_manifest, library_version, make_vec, provenance, spec
from ldm_hf.env_registry.remote.worker_batch import STEP_TIMEOUT
from ldm_hf.errors import failures_of
from ldm_hf.utils.files import replacing

SOLVED = 0.9
"""Share of the way to known good at which an environment counts as solved."""

FORMAT = 2
_SEED = 900_000_000  # far from the seeds of training, of scoring references and of evaluations
_NUM_ENVS = 4
_RANDOM_EPISODES, _MORE_EPISODES, _MORE_STEPS = 20, 100, 20_000
_BEST, _BEST_EPISODES = 3, 20
_SECONDS = 60
"""Time that a random policy may take, and half of that of all trivial ones together, at the steps per second of the report,
so that every machine makes the same steps."""
_LEAST_STEPS, _MOST_STEPS = 4_000, 200_000


@dataclass(frozen=True)
class Anchors:
    """What returns on an environment are measured against.

    Attributes:
        environment: its id.
        random: returns of a random policy.
        random_length: lengths of the same episodes, in steps.
        trivial: returns of trivial policies by what they do, see ``trivial_policies``. Those whose episodes do not end in
            the time that there is are left out; where episodes have a time limit, the first one never is. The best three
            come first, and were played again.
        starts: how many different observations episodes began with; 1 where every episode begins alike.
        known: the known good score; None where there is none.
    """

    environment: str
    random: Sample
    random_length: Sample
    trivial: dict[str, Sample] = field(default_factory=dict)
    starts: int = 2
    known: KnownScore | None = None

    @property
    def best_trivial(self) -> tuple[str, Sample] | None:
        """The trivial policy with the highest mean return, among those that were played again; None if there is none."""
        again = list(self.trivial.items())[:_BEST]
        return max(again, key=lambda one: one[1].mean, default=None)

    def share(self, value: float) -> float | None:
        """How far a mean return is from a random policy's (0) to known good (1).

        None where there is no known good score, none that can be compared, or none above random.
        """
        if self.known is None or not self.known.comparable or self.known.good <= self.random.mean:
            return None
        return (value - self.random.mean) / (self.known.good - self.random.mean)

    def solved(self, value: float, successes: Sequence[bool] = ()) -> bool | None:
        """Whether episodes solve the environment; None where no score that can be compared is known.

        Where the environment itself says which episodes succeeded, nine of ten must have. Elsewhere their mean return does
        where the library itself calls it solved, or at 90 % of the way to known good, from a random policy and also from the
        best trivial one: where a random policy does harm, 90 % of the way from it may be less than doing nothing.
        """
        if successes:
            return sum(successes) >= SOLVED * len(successes)
        share, known = self.share(value), self.known
        if share is None or known is None:
            return None
        if known.threshold is not None and (value >= known.threshold or known.kind == THRESHOLD):
            return value >= known.threshold
        best = self.best_trivial
        floor = self.random.mean if best is None else max(self.random.mean, best[1].mean)
        return share >= SOLVED and value >= min(floor + SOLVED * (known.good - floor), known.good)

    def to_json(self) -> dict[str, Any]:
        """What was measured, as plain data; the known score is the package's."""
        values = asdict(self)
        values.pop("known")
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Anchors":
        """Read what ``to_json`` gave."""
        trivial = {name: Sample(**sample) for name, sample in values["trivial"].items()}
        random, length = Sample(**values["random"]), Sample(**values["random_length"])
        environment = values["environment"]
        return cls(environment, random, length, trivial, values["starts"], known_score(environment))


def measure_anchors(
    environment: str,
    cache: Path | None = None,
    seed: int = 0,
    *,
    trivial: bool = True,
    step_timeout: float = STEP_TIMEOUT,
) -> Anchors:
    """Play a random policy and the trivial ones, unless that was done before with the same installation.

    The best trivial ones are played again, with other seeds than those that chose them.

    Args:
        environment: id of the environment.
        cache: folder of what was measured, a JSON file for each environment; by default ``$LDM_HOME/anchors``.
        seed: of everything random.
        trivial: whether trivial policies are needed; without them it takes half the time, and ``trivial`` may be empty.
        step_timeout: as of ``make_vec``.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: the environment does not exist, cannot be made, or broke.
    """
    parsed = EnvironmentId.parse(environment)
    path = (home() / "anchors" if cache is None else cache) / parsed.library / f"{parsed.config_name}.json"
    made = {"manifest": find_manifest(parsed.library).validation_key, "limit": spec(environment).max_episode_steps}
    key = {"format": FORMAT, "seed": seed, "library": library_version(environment), **made, **provenance(environment)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # several runs on an environment begin together
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not ours: it is replaced
            stored = json.loads(path.read_text())
            if stored["key"] == key and stored["trivial"] >= trivial:
                return Anchors.from_json(stored["anchors"])
        anchors = _measure(environment, seed, trivial, step_timeout)
        with replacing(path) as temporary:
            stored = {"key": key, "trivial": trivial, "anchors": anchors.to_json()}
            temporary.write_text(json.dumps(stored, indent=1))
    return anchors


def _measure(environment: str, seed: int, trivial: bool, step_timeout: float) -> Anchors:
    most = int(min(max(_SECONDS * spec(environment).steps_per_second, _LEAST_STEPS), _MOST_STEPS))
    first = _SEED + 1000 * seed
    with failures_of(environment, "broke while its anchors were measured"):
        envs = make_vec(environment, _NUM_ENVS, autoreset_mode="SameStep", step_timeout=step_timeout)
        with contextlib.closing(envs):
            random = _random_episodes(envs, first, most)
            samples = _trivial_samples(envs, first, most, spec(environment).max_episode_steps) if trivial else {}
    return Anchors(
        environment,
        Sample.of(random.returns),
        Sample.of(random.lengths),
        samples,
        random.starts,
        known_score(environment),
    )


def _random_episodes(envs: VectorEnv, seed: int, most: int) -> Episodes:
    """At least 20 episodes, or as many as the time allows; 100 where they are short, which sharpens every test."""
    few = play(envs, random_policy, _RANDOM_EPISODES, seed, most_steps=most)
    mean = sum(few.lengths) / len(few.lengths)
    if mean * _MORE_EPISODES > min(_MORE_STEPS, most):
        return few
    return play(envs, random_policy, _MORE_EPISODES, seed)


def _trivial_samples(envs: VectorEnv, seed: int, most: int, limit: int | None) -> dict[str, Sample]:
    policies = trivial_policies(envs.single_observation_space, envs.single_action_space)
    seeds = {name: seed + 10 * index for index, name in enumerate(policies, start=1)}
    played: dict[str, Sample] = {}
    left = 2 * most

    def screen(name: str, allowed: float) -> None:
        nonlocal left
        episodes = play(envs, policies[name], _NUM_ENVS, seeds[name], most_steps=allowed, at_least_one=False)
        left = max(0, left - episodes.steps)
        if episodes.returns:
            played[name] = Sample.of(episodes.returns)

    for name in policies:
        screen(name, most / len(policies))
    # Where others die at once, what lives for long is what a reference is most easily no better than.
    whole = envs.num_envs * (limit or 0)
    waiting = [name for name in policies if name not in played]
    for index, name in enumerate(waiting):
        share = left / (len(waiting) - index)
        screen(name, whole if whole > share and (whole <= left or not played) else share)
    ranked = sorted(played, key=lambda one: -played[one].mean)
    for index, name in enumerate(ranked[:_BEST]):
        again = play(envs, policies[name], _BEST_EPISODES, seed + 500 + 10 * index, most_steps=most / _BEST)
        played[name] = Sample.of(again.returns)
    return {name: played[name] for name in ranked}


WORTH = ("random", "known good", "share", "solved")
"""Headings of ``worth``: what stands beside every return of a reference that is shown."""


def worth(
    environment: str, value: float | None, anchors: Anchors | None, successes: Sequence[bool] = ()
) -> tuple[str, str, str, str]:
    """What episodes are worth, as the cells of a table under ``WORTH``; a dash is what is not known.

    A known good score that cannot be compared with a return is in brackets.

    Args:
        environment: its id.
        value: mean return of the episodes.
        anchors: of the environment.
        successes: whether each of them succeeded, where the environment says so.
    """
    known = known_score(environment)
    random = "—" if anchors is None else f"{anchors.random.mean:.4g}"
    good = "—" if known is None else f"{known.good:.4g}" if known.comparable else f"({known.good:.4g})"
    if anchors is None or value is None or math.isnan(value):
        return random, good, "—", "—"
    share, solved = anchors.share(value), anchors.solved(value, successes)
    answer = {None: "—", True: "yes", False: "no"}[solved]
    return random, good, "—" if share is None else f"{share:.0%}", answer
