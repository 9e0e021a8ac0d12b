"""Augmentation: sequences of tasks that never were, whose slots mean what their context says and nothing else.

A model that always meets a task with the same slots learns to recognise it and to recall what to do there, which is worth
nothing in a new one. Here slots change places, symbols their names, numbers their scale and sign, and images their
orientation and colours, drawn once for each sequence; labels follow, so that the policy to imitate is the same one, seen
through other spaces. (After the random projections of Kirsch et al. 2022, arXiv 2212.04458, section 3.)
"""

from dataclasses import replace

import numpy as np

from ldm_hf.modeling.spaces_ldm import CONTINUOUS, DISCRETE, SlotLayout, Transitions

_OBSERVATION_SCALE = 4.0
_ACTION_SCALE = 2.0
_REWARD_SCALE = 2.0
"""Numbers are multiplied by something between these and their inverses, drawn evenly on a logarithmic scale."""


def augment(
    transitions: Transitions, observed: SlotLayout, acted: SlotLayout, random: np.random.Generator
) -> tuple[Transitions, SlotLayout, SlotLayout]:
    """Transitions of one stream as another task would show them, and the slots of that task.

    Args:
        transitions: any number, which are not changed.
        observed, acted: their layouts.
        random: draws which task.

    Returns:
        New transitions and layouts of as many slots. The layouts say what is in the slots; spaces they have none, so that
        they flatten and unflatten nothing.
    """
    observations, observed = _other_observations(transitions.observations, observed, random)
    change, acted = _other_actions(acted, random)
    reference = transitions.reference_actions
    other = replace(
        transitions,
        observations=observations,
        images=None if transitions.images is None else _other_images(transitions.images, random),
        actions=change(transitions.actions),
        rewards=transitions.rewards * np.float32(_scales(1, _REWARD_SCALE, random)[0]),
        reference_actions=None if reference is None else change(reference),
    )
    return other, observed, acted


class _ActionChange:
    """One change of every action of a sequence, float32 of shape (T, A)."""

    def __init__(self, factors: np.ndarray, tables: dict[int, np.ndarray], order: np.ndarray) -> None:
        self._factors, self._tables, self._order = factors, tables, order

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        changed = actions * self._factors
        for slot, table in self._tables.items():
            changed[:, slot] = _renamed(actions[:, slot], table)
        return changed[:, self._order]


def _other_actions(layout: SlotLayout, random: np.random.Generator) -> tuple[_ActionChange, SlotLayout]:
    continuous = layout.kinds == CONTINUOUS
    factors = np.where(
        continuous, _signs(layout.num_slots, random) * _scales(layout.num_slots, _ACTION_SCALE, random), 1
    )
    order = random.permutation(layout.num_slots)
    ends = np.where(continuous, np.stack([layout.low, layout.high]) * factors, [layout.low, layout.high])
    other = replace(_reordered(layout, order), low=ends.min(0)[order], high=ends.max(0)[order])
    return _ActionChange(factors.astype(np.float32), _tables(layout, random), order), other


def _other_observations(
    values: np.ndarray, layout: SlotLayout, random: np.random.Generator
) -> tuple[np.ndarray, SlotLayout]:
    """Continuous slots are also moved, by about as much as they vary in this sequence."""
    slots = layout.num_slots
    scales, shifts = _signs(slots, random) * _scales(slots, _OBSERVATION_SCALE, random), random.standard_normal(slots)
    order, tables = random.permutation(slots), _tables(layout, random)
    finite = np.where(np.isfinite(values), values, 0)
    moved = (values + shifts * finite.std(0)) * scales
    changed = np.where(layout.kinds == CONTINUOUS, moved, values).astype(np.float32)
    for slot, table in tables.items():
        changed[:, slot] = _renamed(values[:, slot], table)
    return changed[:, order], _reordered(layout, order)


def _other_images(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One of the eight orientations of a square, and one of the six orders of the colours."""
    turned = np.rot90(images, int(random.integers(4)), axes=(1, 2))
    turned = turned[:, :, ::-1] if random.random() < 0.5 else turned
    return np.ascontiguousarray(turned[..., random.permutation(3)])


def _tables(layout: SlotLayout, random: np.random.Generator) -> dict[int, np.ndarray]:
    """Another name for each symbol of each discrete slot."""
    slots = np.flatnonzero(layout.kinds == DISCRETE).tolist()
    return {slot: random.permutation(layout.cardinality[slot]) for slot in slots}


def _renamed(symbols: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Symbols by a table; those that it does not have (NaN, where there is no label) stay."""
    known = (symbols >= 0) & (symbols < len(table))
    return np.where(known, table[np.where(known, symbols, 0).astype(np.int64)], symbols)


def _reordered(layout: SlotLayout, order: np.ndarray) -> SlotLayout:
    columns = {name: getattr(layout, name)[order] for name in ("kinds", "cardinality", "low", "high")}
    return replace(layout, leaves=(), **columns)


def _signs(count: int, random: np.random.Generator) -> np.ndarray:
    return random.choice([-1.0, 1.0], count)


def _scales(count: int, limit: float, random: np.random.Generator) -> np.ndarray:
    return np.exp(random.uniform(-1, 1, count) * np.log(limit))
