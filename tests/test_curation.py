"""Learning curves, ranking and curation, with verdicts computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ldm_hf.dataset_builder.build.ranking import best, points, rank
from ldm_hf.dataset_builder.curves import LearningCurve, Sample, significantly_higher
from ldm_hf.dataset_builder.reference.curation import below_best, unfit
from ldm_hf.errors import EnvironmentFailure


def curve(first: list[float], last: list[float]) -> LearningCurve:
    return LearningCurve(Sample.of(first), Sample.of(last), [], [])


def test_first_and_last_tenth():
    found = LearningCurve.of(np.arange(39.0), np.arange(39) * 10)  # ten episodes each at least: 0 to 9 and 29 to 38
    assert (found.first.mean, found.last.mean, found.first.size) == (4.5, 33.5, 10)
    assert found.last.std**2 == pytest.approx(110 / 12)  # of ten consecutive numbers
    assert found.transitions == list(range(0, 390, 10)) and found.returns == list(range(39))
    found = LearningCurve.of(np.arange(13.0), np.arange(13))  # never more than half: 0 to 5 and 7 to 12
    assert (found.first.mean, found.last.mean, found.last.size) == (2.5, 9.5, 6)
    assert LearningCurve.of([3.0], [0], least=1).last == Sample(3, 0, 1)
    found = LearningCurve.of(np.arange(1000.0), np.arange(1000))
    assert (found.first.size, found.first.mean) == (100, 49.5)
    assert len(found.returns) == 200 and found.returns[:2] == [2, 7] and found.transitions[:2] == [4, 9]
    with pytest.raises(EnvironmentFailure, match="only 9 episodes"):
        LearningCurve.of(np.zeros(9), np.zeros(9))
    with pytest.raises(EnvironmentFailure, match="1 of 12 episodes have no finite return"):
        LearningCurve.of([np.nan, *[1.0] * 11], range(12))


def test_welch_by_hand():
    # Means 2 and 4, variances 1 and 1, three each: t = 2 / sqrt(2/3) = 2.449, 4 degrees of freedom, p = 0.035.
    one, other = Sample.of([3, 4, 5]), Sample.of([1, 2, 3])
    assert significantly_higher(one, other) and not significantly_higher(other, one)
    # Means 2 and 3: t = 1.225, p = 0.144.
    assert not significantly_higher(Sample.of([2, 3, 4]), other)
    # Variances 4 and 1: t = 2 / sqrt(5/3) = 1.549, p = 0.107 on 2.94 degrees of freedom.
    assert not significantly_higher(Sample.of([2, 4, 6]), other)
    # The same mean and more episodes: with 30 of each, t = 2 / sqrt(5/30) > 4.
    assert significantly_higher(Sample(4, 2, 30), Sample(2, 1, 30))


def test_samples_that_the_test_knows_nothing_of():
    assert significantly_higher(Sample.of([500, 500]), Sample.of([499, 499]))
    assert not significantly_higher(Sample.of([500, 500]), Sample.of([500, 500]))
    assert not significantly_higher(Sample.of([1000]), Sample.of([0, 1]))
    assert significantly_higher(Sample.of([10, 10, 10]), Sample.of([1, 2, 3]))  # one of them varies: Welch can tell


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_summaries_tell_what_the_values_tell(one, other):
    samples = Sample.of(one), Sample.of(other)
    if max(samples[0].std, samples[1].std) < 1e-6:
        return
    expected = stats.ttest_ind(one, other, equal_var=False, alternative="greater").pvalue
    if abs(expected - 0.05) > 1e-6:
        assert significantly_higher(*samples) == (expected < 0.05)


HIGH, MIDDLE, LOW = [9, 10, 11], [4, 5, 6], [0, 1, 2]


def test_points_by_hand():
    performances = {
        "a": Sample.of(HIGH),
        "b": Sample.of(MIDDLE),
        "c": Sample.of(LOW),
        "d": Sample.of([4, 5, 6.5]),
        "e": None,
    }
    # a is above b, c and d; b and d are above c only; e failed, and its failure is worth nothing to the others.
    assert points(performances) == {"a": 3, "b": 1, "c": 0, "d": 1, "e": 0}


def test_points_are_summed_over_environments_and_ties_go_to_the_higher_returns():
    results = {
        "one": {"a": Sample.of(LOW), "b": Sample.of(HIGH), "c": Sample.of([8, 9, 10]), "d": None},
        "two": {"a": Sample.of(HIGH), "b": Sample.of(MIDDLE), "c": Sample.of(MIDDLE), "d": None},
    }
    # one: b and c are above a, and not told apart; two: a is above b and c. a 2, b 1, c 1; b is higher than c in one.
    ranks = rank(results)
    assert [(each.candidate, each.points) for each in ranks] == [("a", 2), ("b", 1), ("c", 1), ("d", 0)]
    assert ranks[1].share == (1 + 0) / 2 and ranks[2].share == pytest.approx((8 / 9 + 0) / 2)
    assert best(ranks, 2) == ["a", "b"]


def test_a_run_must_improve():
    assert unfit(curve(LOW, HIGH), None) is None
    assert unfit(curve(HIGH, LOW), None).startswith("no significant improvement: 10 in the first and 1 in the last")
    assert unfit(curve([1, 2, 3], [2, 3, 4]), None).startswith("no significant improvement")
    assert unfit(curve([0], [100]), None).endswith("episodes, too few to tell")
    assert unfit(curve([-1000, -1000], [-200, -200]), None) is None


def test_a_short_run_may_learn_within_its_first_episodes():
    """Seven of fourteen episodes of a cliff walk: most of the improvement lies in the first half, which it widens."""
    random = Sample.of([-9_000, -10_000, -11_000])
    run = curve([-7600, -3000, -1200, -900, -700, -500, -300], [-1900, -1100, -700, -600, -500, -400, -350])
    assert unfit(run, None).startswith("no significant improvement")
    assert unfit(run, None, random) is None
    assert unfit(run, None, Sample.of([-1000, -800])) is not None  # no better than random
    lower = curve([-400.0] * 7, [-500.0] * 7)  # better than random, but it got worse
    assert unfit(lower, None, random) is not None
    many = curve([-1000.0, 0.0] * 6, [-900.0, 0.0] * 6)  # twelve of more than a hundred: the paper's rule
    assert unfit(many, None, random) is not None


def test_the_deterministic_policy_must_hold_what_the_training_promised():
    run = curve(LOW, HIGH)  # from 1 to 10: 5 % of the improvement is 0.45
    assert unfit(run, Sample.of([9, 10, 11])) is None
    assert unfit(run, Sample.of([0, 1, 2])) == "the deterministic policy returns 1, its training 10"
    assert unfit(run, Sample.of([9.6, 9.6, 9.6])) is None  # within the tolerance
    assert unfit(run, Sample.of([0, 10, 14])) is None  # lower, but not significantly so
    flat = curve([0.0, 0.0], [10.0, 10.0])
    assert unfit(flat, Sample.of([9.5, 9.5])) is None and unfit(flat, Sample.of([9.4, 9.4])) is not None


def test_runs_must_come_near_to_the_best_of_their_environment():
    # The best goes from -100 to 0. 95 % of its improvement is -5: nothing is dropped for returns that are negative.
    curves = {
        "best": curve([-100, -100], [0, 0]),
        "near": curve([-300, -300], [-5, -5]),
        "short": curve([-100, -100], [-6, -6]),
    }
    dropped = below_best(curves)
    assert dropped == {"short": "reaches 94.0% of the best run, best: -6 of 0"}
    assert below_best({"only": curve(LOW, HIGH)}) == {} == below_best({})
