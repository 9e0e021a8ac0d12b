"""Why models fall short: shares by hand, what cannot be told from an observation, and which cause is named."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import CARTPOLE, PENDULUM
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.evaluation.results import EnvironmentResult
from ldm_hf.experiments.failures import Finding, agreement, alike, found, perfect_matches
from ldm_hf.modeling.spaces_ldm import Transitions


def test_shares_of_slots_that_are_equal_and_of_variance():
    """Of three symbols two; errors of 1 each beside a variance of 4: 3/4; a constant that is met, and one that is not."""
    wanted = np.array([[1, 1.0], [2, 5.0], [3, 1.0], [3, 5.0]])
    chosen = wanted + np.array([[0, 1], [0, -1], [1, 1], [0, -1]])
    kinds = np.array([False, True])
    assert agreement(chosen, wanted, kinds) == pytest.approx((0.75 + 0.75) / 2)
    still = np.full((4, 1), 0.5)
    assert agreement(still, still, np.array([True])) == 1 and agreement(still + 0.1, still, np.array([True])) == 0


def chunks(*labels: list[int]) -> SimpleNamespace:
    """A dataset whose observations are 0, 1, 2, ... in each chunk, with these labels."""

    def chunk(index: int) -> Transitions:
        length = len(labels[index])
        never, zeros = np.zeros(length, bool), np.zeros((length, 1), np.float32)
        observations = np.arange(length, dtype=np.float32)[:, None]
        wanted = np.array(labels[index], np.float32)[:, None]
        return Transitions(observations, None, zeros, zeros[:, 0], never, never, wanted)

    return SimpleNamespace(num_chunks=len(labels), chunk=chunk)


def test_what_one_observation_leaves_open_is_seen_in_pairs_of_episodes(monkeypatch):
    monkeypatch.setattr("ldm_hf.experiments.failures.LEAST_PAIRS", 4)
    assert alike(chunks([0, 1, 0, 1], [0, 1, 1, 0])) == 0.5
    assert alike(chunks([0, 1, 0, 1], [0, 1, 0])) is None  # three pairs are too few
    assert alike(chunks([0] * 9)) is None  # what comes again in the same chunk is no pair


@pytest.mark.parametrize(
    ("measured", "cause"),
    [
        ((0.5, 0.5, 0.8), "ambiguous"),
        ((0.5, 0.5, 0.95), "not learned"),
        ((0.5, 0.5, None), "not learned"),
        ((0.99, 0.9, None), "overfitted"),
        ((0.99, 0.96, 1.0), "off the path"),
        ((0.99, None, None), "off the path"),
    ],
)
def test_causes(measured, cause):
    assert Finding("a/b", 0.5, *measured).cause == cause


def result(deterministic: float | None, last10: float, *returns: float) -> EnvironmentResult:
    return EnvironmentResult("a/b", 1.0, 0.0, 0.0, last10, deterministic, [list(returns)])


def test_a_perfect_copy_matches_half_of_the_equal_ones():
    """Two returns of 1 and 3 have a standard error of 1; 0.8413 of a normal distribution lies above -1."""
    assert perfect_matches([result(5.0, 5.0, 1, 3)]) == pytest.approx(0.5)
    assert perfect_matches([result(None, 5.0, 1, 3)]) == pytest.approx(0.5)
    assert perfect_matches([result(6.0, 5.0, 1, 3)]) == pytest.approx(0.8413, abs=1e-4)
    assert perfect_matches([result(4.0, 5.0, 1, 3)]) == pytest.approx(0.1587, abs=1e-4)
    assert (
        perfect_matches([result(5.0, 5.0, 2, 2), result(5.1, 5.0, 2, 2), result(4.9, 5.0, 2, 2)]) == 2
    )  # nothing varies


def test_a_model_that_knows_nothing_finds_what_chance_does(model, processor, data):
    """An untrained model of random weights on two discrete actions, and on a continuous one, where it explains nothing."""
    datasets = {each.environment: each for each in open_datasets(str(data))}
    torch.manual_seed(0)
    assert 0.1 < found(model, processor, datasets[CARTPOLE]) < 0.9
    assert found(model, processor, datasets[PENDULUM]) < 0.1
