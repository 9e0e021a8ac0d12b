"""Policies that look at nothing, or hardly at anything: what a reference has to be better than."""

import itertools
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from ldm_hf.dataset_builder.anchors.playing import Act, Policy, describe

MOST_CONSTANTS = 20
"""Constant actions that are played; of a space with more, some from all over it."""

HOLD = 10
"""Steps for which a random action is held."""

RANDOM = "random"


def trivial_policies(observation_space: Space, action_space: Space) -> dict[str, Policy]:
    """All trivial policies of an environment by name: constant actions, a random one held, the observation copied."""
    policies = {f"always {describe(action)}": _constant(action) for action in constant_actions(action_space)}
    policies[f"a random action for {HOLD} steps"] = _held
    if _can_copy(observation_space, action_space):
        policies["the last observation as action"] = _copied
    return policies


def random_policy(envs: VectorEnv, seed: int) -> Act:
    """Samples of the action space."""
    envs.action_space.seed(seed)
    return lambda observations: envs.action_space.sample()


def constant_actions(space: Space) -> list[Any]:
    """All actions of a small discrete space; of others, the middle and the ends of every number, and some more.

    At most ``MOST_CONSTANTS``. An end that is infinite is taken at 1 from the middle.
    """
    if isinstance(space, spaces.Discrete):
        return [np.int64(space.start + index) for index in _spread(int(space.n))]
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        counts = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(space.shape, 2)
        first = getattr(space, "start", 0)
        number = int(np.prod([int(count) for count in counts.ravel()], dtype=object))
        found = [_digits(index, counts.ravel()).reshape(counts.shape) + first for index in _spread(number)]
        return [one.astype(space.dtype) for one in found]
    if isinstance(space, spaces.Box):
        return _of_box(space)
    if isinstance(space, spaces.Dict):
        return [dict(zip(space.spaces, parts, strict=True)) for parts in _together(space.spaces.values())]
    if isinstance(space, spaces.Tuple):
        return list(_together(space.spaces))
    return []


def _of_box(space: spaces.Box) -> list[np.ndarray]:
    low, high = space.low.astype(float), space.high.astype(float)
    low, high = np.where(np.isfinite(low), low, -1), np.where(np.isfinite(high), high, 1)
    low, high = np.minimum(low, high), np.maximum(low, high)
    middle = (low + high) / 2
    if 3**low.size <= MOST_CONSTANTS:
        ends = zip(low.ravel(), middle.ravel(), high.ravel(), strict=True)
        grid = [np.array(one).reshape(low.shape) for one in itertools.product(*ends)]
        found = sorted(grid, key=lambda one: not np.array_equal(one, middle))  # the middle first
    else:
        found = [middle, low, high]
        for index in _spread(low.size, (MOST_CONSTANTS - 3) // 2):
            for end in (low, high):
                one = middle.copy()
                one.flat[index] = end.flat[index]
                found.append(one)
    return [one.astype(space.dtype) for one in found]


def _together(parts: Any) -> list[tuple]:
    """One constant of each part, side by side, until every constant of every part was there."""
    lists = [constant_actions(part) for part in parts]
    if not lists or not all(lists):
        return []
    return [tuple(one[index % len(one)] for one in lists) for index in range(max(map(len, lists)))]


def _spread(number: int, most: int = MOST_CONSTANTS) -> list[int]:
    """All numbers below ``number``, or ``most`` of them from the first to the last."""
    if number <= most:
        return list(range(number))
    return [index * (number - 1) // (most - 1) for index in range(most)]


def _digits(index: int, counts: np.ndarray) -> np.ndarray:
    digits = []
    for count in counts[::-1]:
        index, digit = divmod(index, int(count))
        digits.append(digit)
    return np.array(digits[::-1])


def _constant(action: Any) -> Policy:
    def begin(envs: VectorEnv, seed: int) -> Act:
        actions = _batch(envs, [action] * envs.num_envs)
        return lambda observations: actions

    return begin


def _held(envs: VectorEnv, seed: int) -> Act:
    envs.action_space.seed(seed)
    steps = itertools.count()
    held: list[Any] = []

    def act(observations: Any) -> Any:
        if next(steps) % HOLD == 0:
            held[:] = [envs.action_space.sample()]
        return held[0]

    return act


def _can_copy(observed: Space, acted: Space) -> bool:
    if isinstance(observed, spaces.Discrete) and isinstance(acted, spaces.Discrete):
        return True
    return isinstance(observed, spaces.Box) and isinstance(acted, spaces.Box) and observed.shape == acted.shape


def _copied(envs: VectorEnv, seed: int) -> Act:
    space = envs.single_action_space
    if isinstance(space, spaces.Discrete):
        observed = envs.single_observation_space
        assert isinstance(observed, spaces.Discrete)
        return lambda seen: space.start + (np.asarray(seen) - observed.start) % space.n
    assert isinstance(space, spaces.Box)
    return lambda seen: np.clip(seen, space.low, space.high).astype(space.dtype)


def _batch(envs: VectorEnv, actions: list[Any]) -> Any:
    space = envs.single_action_space
    return concatenate(space, actions, create_empty_array(space, len(actions)))  # type: ignore[arg-type]
