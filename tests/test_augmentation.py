"""Augmentation: what a changed sequence keeps, and that it is changed."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CARTPOLE, PENDULUM
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.modeling.spaces_ldm import CONTINUOUS, DISCRETE, SlotLayout, Transitions
from ldm_hf.training.augmentation import augment
from ldm_hf.training.mixture import Mixture

OBSERVED = SlotLayout.of(
    spaces.Dict({"a": spaces.Box(-3, 3, (3,)), "b": spaces.Discrete(5, start=2), "c": spaces.MultiBinary(2)})
)
ACTED = SlotLayout.of(
    spaces.Dict({"a": spaces.Box(np.array([-1, 0]), np.array([2, np.inf]), (2,)), "b": spaces.Discrete(4)}),
    role="action",
)
ROWS = 40


def drawn_transitions(seed: int) -> Transitions:
    """Some whose actions are those of a policy: the first slot follows an observation, the symbol another one."""
    rng = np.random.default_rng(seed)
    numbers, symbols = rng.uniform(-1, 1, (ROWS, 3)), rng.integers(0, [5, 2, 2], (ROWS, 3))
    actions = np.stack([numbers[:, 0], rng.uniform(0, 9, ROWS), symbols[:, 0] % 4], 1).astype(np.float32)
    never = np.zeros(ROWS, bool)
    images = rng.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8)
    observations = np.concatenate([numbers, symbols], 1).astype(np.float32)
    labels = actions.copy()
    labels[3] = np.nan
    return Transitions(observations, images, actions, rng.normal(size=ROWS).astype(np.float32), never, never, labels)


def one_to_one(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether equal values of one are equal values of the other."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_every_slot_is_one_of_the_old_ones_seen_otherwise(seed):
    before = drawn_transitions(seed)
    after, observed, acted = augment(before, OBSERVED, ACTED, np.random.default_rng(seed))
    for old, new, layouts in (
        (before.observations, after.observations, (OBSERVED, observed)),
        (before.actions, after.actions, (ACTED, acted)),
    ):
        found = []
        for slot in range(old.shape[1]):
            if layouts[1].kinds[slot] == CONTINUOUS:
                likeness = [
                    abs(np.corrcoef(old[:, one], new[:, slot])[0, 1]) if layouts[0].kinds[one] == CONTINUOUS else 0.0
                    for one in range(old.shape[1])
                ]
                assert max(likeness) == pytest.approx(1, abs=1e-4)
                found.append(int(np.argmax(likeness)))
            else:
                assert layouts[1].kinds[slot] == DISCRETE
                assert 0 <= new[:, slot].min() <= new[:, slot].max() < layouts[1].cardinality[slot]
                alike = [
                    one
                    for one in range(old.shape[1])
                    if layouts[0].cardinality[one] == layouts[1].cardinality[slot]
                    and one_to_one(old[:, one], new[:, slot])
                ]
                found.append(next(one for one in alike if one not in found))
        assert sorted(found) == list(range(old.shape[1]))


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_labels_and_bounds_follow_the_actions(seed):
    before = drawn_transitions(seed)
    after, _, acted = augment(before, OBSERVED, ACTED, np.random.default_rng(seed))
    labelled = ~np.isnan(after.reference_actions).any(1)
    assert labelled.sum() == ROWS - 1
    assert np.array_equal(after.reference_actions[labelled], after.actions[labelled])
    continuous = acted.kinds == CONTINUOUS
    assert (after.actions[:, continuous] >= acted.low[continuous] - 1e-6).all()
    assert (after.actions[:, continuous] <= acted.high[continuous] + 1e-6).all()
    assert np.isinf([acted.low, acted.high]).sum() == 1
    ratio = after.rewards / before.rewards
    assert ratio == pytest.approx(ratio[0], rel=1e-4) and 0.5 <= ratio[0] <= 2


def test_images_are_turned_alike_and_nothing_is_overwritten():
    before = drawn_transitions(0)
    copies = {name: None if part is None else part.copy() for name, part in vars(before).items()}
    after, *_ = augment(before, OBSERVED, ACTED, np.random.default_rng(4))
    for name, part in vars(before).items():
        assert np.array_equal(part, copies[name], equal_nan=True), name
    marked = replace(before, images=np.zeros_like(before.images))
    marked.images[:, 5, 9, 0] = 255
    (places,) = {
        tuple(np.argwhere(image)[0]) for image in augment(marked, OBSERVED, ACTED, np.random.default_rng(4))[0].images
    }
    assert {places[0], places[1]} in [{5, 9}, {5, 54}, {58, 9}, {58, 54}]
    assert np.array_equal(np.sort(after.images, None), np.sort(before.images, None))


def test_infinite_and_unknown_values_stay():
    before = drawn_transitions(0)
    before.observations[7, 0] = np.inf
    before.observations[8, 3] = 900  # an environment that breaks its promise of five symbols
    after, observed, _ = augment(before, OBSERVED, ACTED, np.random.default_rng(0))
    assert np.isinf(after.observations[7]).sum() == 1 and not np.isnan(after.observations).any()
    assert after.observations[8][observed.cardinality == 5] == 900


def test_the_mixture_changes_that_share_of_its_sequences(data, processor):
    datasets = open_datasets(data, [CARTPOLE, PENDULUM])
    plain, some, same = (
        Mixture(datasets, processor, context_length=16, augmentation=share) for share in (0.0, 0.5, 0.5)
    )
    changed = []
    for number in range(60):
        first, second = plain[number], some[number]
        assert np.array_equal(some[number].observations, same[number].observations)
        assert np.array_equal(first.previous_dones, second.previous_dones)
        assert plain.blank(number).observations.shape == second.observations.shape
        changed.append(not np.array_equal(first.observations, second.observations))
    assert 15 < sum(changed) < 45
    processor.collate([some[number] for number in range(60)])
