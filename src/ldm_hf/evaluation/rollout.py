"""Rollouts of a model by the paper's protocol (section 5.1)."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium

from ldm_hf.env_registry.registry import make
from ldm_hf.errors import EnvironmentFailure, LDMError
from ldm_hf.evaluation.video import RENDER_MODE
from ldm_hf.modeling import LDMModel, LDMPolicy, LDMProcessor

EPISODES = 10
ROLLOUTS = 2

EVALUATION_SEED = 1_000_000_000
"""First seed of evaluation; training and reference scoring stay far below, so no evaluated start was trained on."""


@dataclass
class RolloutResult:
    """Returns and lengths of the episodes of each rollout, in order."""

    returns: list[list[float]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)

    @property
    def mean_return(self) -> float:
        """Mean over all episodes of all rollouts."""
        every = [value for rollout in self.returns for value in rollout]
        return sum(every) / len(every)


def evaluate_environment(
    model: LDMModel,
    processor: LDMProcessor,
    environment: str,
    *,
    episodes: int = EPISODES,
    rollouts: int = ROLLOUTS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[gymnasium.Env], None] | None = None,
    compile: bool = False,
) -> RolloutResult:
    """Roll a model out: the context is empty at the start of a rollout and kept across its episodes.

    The rollouts are rows of one batch. Only the first reset of each is seeded, with ``EVALUATION_SEED + 1000 x seed +
    rollout``; the environment's own randomness goes on from there.

    Args:
        model, processor: what acts, by masked argmax.
        environment: id of the environment.
        episodes: of each rollout.
        rollouts: how many.
        seed: of the environments.
        progress: told the number of episodes that ended, and of all.
        watch: called with the first rollout's environment, made to show pictures, after each of its resets and steps.
        compile: as of ``LDMPolicy``.

    Raises:
        EnvironmentFailure: the environment broke; the message names it.
        UnsupportedSpaceError: it does not fit the model.
    """
    with contextlib.ExitStack() as stack:
        envs = []
        for row in range(rollouts):
            envs.append(make(environment, render_mode=RENDER_MODE if watch and row == 0 else None))
            stack.callback(envs[-1].close)
        policy = LDMPolicy(model, processor, envs, compile=compile)
        result = RolloutResult([[] for _ in envs], [[] for _ in envs])
        running = [_Running(env, row, watch if row == 0 else None) for row, env in enumerate(envs)]
        try:
            for each in running:
                each.start_episode(EVALUATION_SEED + 1000 * seed + each.row)
            actions = policy.act([each.observation for each in running])
            while running:
                for each, action in zip(running, actions, strict=True):
                    if each.step(action):
                        result.returns[each.row].append(each.total)
                        result.lengths[each.row].append(each.length)
                        if len(result.returns[each.row]) < episodes:
                            each.start_episode()
                        progress(sum(map(len, result.returns)), episodes * rollouts)
                kept = [index for index, each in enumerate(running) if len(result.returns[each.row]) < episodes]
                if len(kept) < len(running):
                    running = [running[index] for index in kept]
                    policy.select(kept)
                if running:
                    actions = policy.act(*zip(*[each.outcome() for each in running], strict=True))
        except LDMError:
            raise
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise EnvironmentFailure(f"{environment} broke while it was rolled out: {reason}") from error
    return result


class _Running:
    """One environment in the middle of a rollout."""

    def __init__(self, env: gymnasium.Env, row: int, watch: Callable[[gymnasium.Env], None] | None):
        self.env = env
        self.row = row
        self.observation: object = None
        self.reward = 0.0
        self.terminated = self.truncated = False
        self.total, self.length = 0.0, 0
        self._watch = watch or (lambda _: None)

    def step(self, action: object) -> bool:
        """Take an action; True at the end of an episode, whose next one then has to be started."""
        self.observation, reward, self.terminated, self.truncated, _ = self.env.step(action)
        self.reward = float(reward)
        self.total += self.reward
        self.length += 1
        self._watch(self.env)
        return self.terminated or self.truncated

    def start_episode(self, seed: int | None = None) -> None:
        """Reset; the outcome keeps the done flags of the step before and holds the reset's observation."""
        self.observation, _ = self.env.reset(seed=seed)
        self.total, self.length = 0.0, 0
        self._watch(self.env)

    def outcome(self) -> tuple[object, float, bool, bool]:
        return self.observation, self.reward, self.terminated, self.truncated
