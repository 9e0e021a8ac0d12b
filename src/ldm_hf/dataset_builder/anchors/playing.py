"""Play a policy in an environment, and keep what its episodes say: returns, lengths, and how it acts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from ldm_hf.dataset_builder.anchors.success import EpisodeSuccess, step_info
from ldm_hf.env_registry.remote.worker_pool import FAILURE_KEY, replaced
from ldm_hf.errors import EnvironmentFailure

Act = Callable[[Any], Any]
"""From the observations of a vector environment to its actions."""

Policy = Callable[[VectorEnv, int], Act]
"""Begins to act in an environment, with a seed for what is random."""

_MOST_FAILURES = 10
"""Times that workers may fail while a policy is played."""

_SAME = 1e-3
"""Share of an action's range within which two actions count as the same."""


@dataclass(frozen=True)
class Conduct:
    """How a policy acts.

    Attributes:
        steps: that it made.
        only_action: what it always does, as text; empty where it does not always do the same.
        last_reward: mean reward of the steps that terminated an episode; None where none did.
        other_reward: mean reward of all other steps; None where there are none.
    """

    steps: int
    only_action: str
    last_reward: float | None
    other_reward: float | None


@dataclass(frozen=True)
class Episodes:
    """Episodes of one policy; empty where none ended in time.

    Attributes:
        returns, lengths: of each.
        conduct: how the policy acted in them.
        starts: how many different observations they began with.
        steps: of all environments together, those of episodes that are left out included.
        successes: whether each succeeded, where the environment says so; empty elsewhere.
    """

    returns: list[float]
    lengths: list[int]
    conduct: Conduct
    starts: int
    steps: int
    successes: list[bool] = field(default_factory=list)


def play(
    envs: VectorEnv,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    most_steps: float = math.inf,
    at_least_one: bool = True,
) -> Episodes:
    """Play episodes, as many in each of the environments, so that none is favoured for being short.

    Args:
        envs: made with ``autoreset_mode="SameStep"``; the i-th is reset with ``seed + i`` at first.
        policy: what acts.
        episodes: of all environments together, rounded up to a multiple of their number.
        seed: of the environments and of the policy.
        most_steps: of all environments together, after which no further round of episodes is waited for.
        at_least_one: whether the first round is waited for however long it takes.

    An episode that ends because its worker failed, and was replaced, does not count; another one is played.

    Raises:
        EnvironmentFailure: a reward is not finite, or workers failed again and again.
    """
    number = envs.num_envs
    rounds = -(-episodes // number)
    observations, _ = envs.reset(seed=[seed + index for index in range(number)])  # type: ignore[arg-type]
    act = policy(envs, seed)
    ended: list[list[tuple[float, int, bool | None]]] = [[] for _ in range(number)]
    signals = [EpisodeSuccess() for _ in range(number)]
    starts = {_fingerprint(one) for one in iterate(envs.observation_space, observations)}
    watched = _Watched(envs.single_action_space)
    totals, lengths = np.zeros(number), np.zeros(number, int)
    steps = failures = 0
    while (least := min(map(len, ended))) < rounds and (steps < most_steps or (at_least_one and not least)):
        actions = act(observations)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        rewards = np.asarray(rewards, float)
        if not np.isfinite(rewards).all():
            raise EnvironmentFailure(f"a reward is {rewards[~np.isfinite(rewards)][0]}: nothing can be scored")
        playing = np.array([len(one) < rounds for one in ended])
        watched.see(actions, rewards, terminated, playing)
        totals, lengths, steps = totals + rewards, lengths + 1, steps + number
        for row, signal in enumerate(signals if infos else ()):  # most environments say nothing at most steps
            signal.see(step_info(infos, row, bool(terminated[row] or truncated[row])))
        failed = replaced(infos)
        failures += failed is not None
        if failed is not None and failures > _MOST_FAILURES:
            reason = infos["final_info"][FAILURE_KEY][int(np.argmax(failed))]
            raise EnvironmentFailure(f"its worker failed {failures} times: {reason}")
        for index in np.flatnonzero(terminated | truncated):
            if failed is None or not failed[index]:
                ended[index].append((float(totals[index]), int(lengths[index]), signals[index].result))
            totals[index] = lengths[index] = 0
            signals[index] = EpisodeSuccess()
        if (terminated | truncated).any():
            begun = list(iterate(envs.observation_space, observations))
            starts |= {_fingerprint(begun[index]) for index in np.flatnonzero(terminated | truncated)}
    kept = [one for row in ended for one in row[: min(rounds, *map(len, ended))]]
    successes = [success for _, _, success in kept if success is not None]
    return Episodes(
        [total for total, _, _ in kept],
        [length for _, length, _ in kept],
        watched.conduct(),
        len(starts),
        steps,
        successes if len(successes) == len(kept) else [],
    )


class _Watched:
    """What is seen of a policy's actions and of their rewards."""

    def __init__(self, space: Space):
        self._space = space
        self._lowest: np.ndarray | None = None
        self._highest: np.ndarray | None = None
        self._steps = 0
        self._last: list[float] = []
        self._other = 0.0

    def see(self, actions: Any, rewards: np.ndarray, terminated: np.ndarray, playing: np.ndarray) -> None:
        rows = [_flat(self._space, one) for one in _each(self._space, actions, len(playing))]
        seen = np.stack(rows)[playing]
        lowest, highest = seen.min(0), seen.max(0)
        self._lowest = lowest if self._lowest is None else np.minimum(self._lowest, lowest)
        self._highest = highest if self._highest is None else np.maximum(self._highest, highest)
        self._steps += int(playing.sum())
        self._last += rewards[playing & terminated].tolist()
        self._other += float(rewards[playing & ~terminated].sum())

    def conduct(self) -> Conduct:
        others = self._steps - len(self._last)
        return Conduct(
            self._steps,
            self._only_action(),
            float(np.mean(self._last)) if self._last else None,
            self._other / others if others else None,
        )

    def _only_action(self) -> str:
        if self._lowest is None or self._highest is None:
            return ""
        if (self._highest - self._lowest > _SAME * _ranges(self._space)).any():
            return ""
        return describe(spaces.unflatten(self._space, self._lowest) if _is_nested(self._space) else self._lowest)


def describe(action: Any) -> str:
    """An action as a few characters."""
    if isinstance(action, dict):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in action.items()) + "}"
    if isinstance(action, tuple):
        return "(" + ", ".join(map(describe, action)) + ")"
    values = np.asarray(action).ravel()
    text = " ".join(f"{value:.3g}" for value in values[:6].tolist())
    return text + (" …" if values.size > 6 else "")


def _is_nested(space: Space) -> bool:
    return isinstance(space, spaces.Dict | spaces.Tuple)


def _each(space: Space, actions: Any, number: int) -> list[Any]:
    if not _is_nested(space):
        return list(np.asarray(actions).reshape(number, -1))
    return list(iterate(batch_space(space, number), actions))


def _flat(space: Space, action: Any) -> np.ndarray:
    return np.asarray(spaces.flatten(space, action) if _is_nested(space) else action, float).ravel()


def _ranges(space: Space) -> np.ndarray | float:
    """What counts as the full range of each number of an action."""
    if isinstance(space, spaces.Box):
        ranges = (space.high.astype(float) - space.low.astype(float)).ravel()
        return np.where(np.isfinite(ranges), ranges, 1.0)
    return 1.0


def _fingerprint(observation: Any) -> Any:
    if isinstance(observation, dict):
        return tuple((key, _fingerprint(part)) for key, part in sorted(observation.items()))
    if isinstance(observation, tuple | list):
        return tuple(map(_fingerprint, observation))
    return observation if isinstance(observation, str) else np.asarray(observation).tobytes()
