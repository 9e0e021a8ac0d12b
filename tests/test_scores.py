"""Scores, intervals, flags, groups and versions: values derived by hand."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from scipy import stats

from conftest import CARTPOLE, CLIFF, run_ldm_here
from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.errors import ConfigError, UnknownEnvironmentError
from ldm_hf.evaluation.batches import batches, chosen
from ldm_hf.evaluation.known_references import ReferenceOfData
from ldm_hf.evaluation.lineage import relation, training_data
from ldm_hf.evaluation.references import check_reference, check_references
from ldm_hf.evaluation.report import Summary
from ldm_hf.evaluation.results import (
    CURVE_BY_END,
    DETERMINISTIC_NOT_ABOVE_RANDOM,
    NO_IMPROVEMENT,
    NOT_ABOVE_RANDOM,
    judge,
    judge_again,
    read_result,
)
from ldm_hf.evaluation.scores import mean_interval, normalized_score, share_interval, threshold_curve
from ldm_hf.evaluation.versions import differences, versions_here, versions_of_data
from ldm_hf.modeling.spaces_ldm import space_to_json

BOX = space_to_json(spaces.Box(-1, 1, (3,), np.float32))
PICTURE = space_to_json(spaces.Box(0, 255, (64, 64, 3), np.uint8))
DISCRETE = space_to_json(spaces.Discrete(2))


def run_info(environment="lib/Env-v0", first=0.0, last=10.0, deterministic=(5.0, 5.0), **changes):
    """A reference run whose last episodes vary by 1."""
    curve = LearningCurve(Sample(first, 1.0, 10), Sample(last, 1.0, 10), [1], [last])
    made = RunInfo(
        environment=environment,
        run="PPO-0",
        observation_space=BOX,
        action_space=DISCRETE,
        curve=curve,
        deterministic_returns=list(deterministic),
        num_episodes=10,
        num_transitions=100,
        num_streams=1,
        training_steps=10,
        algorithm="PPO",
        hyperparameters={},
        source="",
        seed=0,
        max_episode_steps=100,
        seeding=None,
        library_version="1.0",
        licence="MIT",
        provenance={"provider": "venv", "python": "3.11", "build": "abc"},
        packages={"python": "3.11.7", "gymnasium": "1.4.0", "numpy": "2.0"},
    )
    return replace(made, **changes)


def test_scores_by_hand():
    assert normalized_score(75, 50, 100) == 0.5
    assert normalized_score(-13, -334, -32) == pytest.approx(321 / 302)
    assert normalized_score(25, 50, 100) == -0.5
    assert normalized_score(1, 5, 5) is None and normalized_score(1, 5, 4) is None


def test_threshold_curve_counts_at_or_above():
    assert threshold_curve([0.8, 1.0, 0.1, None, -2], [0, 0.8, 0.81, 1, 1.2]).tolist() == [3, 2, 1, 1, 0]
    # (0.9 - 0.1) / (1.1 - 0.1) is 0.8 but for rounding.
    assert threshold_curve([normalized_score(0.9, 0.1, 1.1)], [0.8]).tolist() == [1]


def test_intervals_of_means():
    # The means of resamples of 2 and 3 are 2, 2.5 and 3 with probabilities 1/4, 1/2, 1/4, which is symmetrical.
    assert mean_interval([2, 3]) == (2, 3)
    assert mean_interval([3, 3, 3]) == (3, 3)
    assert mean_interval([3]) is None
    assert mean_interval([0.1] * 11 + [0.1 + 2e-17]) == (0.1, 0.1 + 2e-17)  # the same but for rounding
    values = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0]
    low, high = mean_interval(values)
    assert low < 4.5 < high
    assert mean_interval([2 * value - 1 for value in values]) == pytest.approx((2 * low - 1, 2 * high - 1))
    # Of many values a bootstrap's interval is that of the normal distribution.
    many = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    assert mean_interval(many) == pytest.approx((-1.96 / 2000**0.5, 1.96 / 2000**0.5), rel=0.05)


def test_intervals_of_rates_of_success_are_exact():
    # Clopper and Pearson: with 20 successes of 20, the rate p at which that happens with 2.5 %: p^20 = 0.025.
    assert mean_interval([1.0] * 20) == pytest.approx((0.025 ** (1 / 20), 1))
    assert mean_interval([0.0] * 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    # FrozenLake8x8, which reports called "1.00 (1.00 to 1.00)": the optimum, 0.913, is inside now.
    low, high = mean_interval([1.0] * 20)
    assert low < 0.913 < high
    low, high = mean_interval([1] * 33 + [0] * 7)
    assert stats.binom.sf(32, 40, low) == pytest.approx(0.025) and stats.binom.cdf(33, 40, high) == pytest.approx(0.025)


def test_intervals_of_shares():
    # The second environment's resampled mean is 0, 0.5 or 1: it reaches 0.5 three times in four, the first one always.
    assert share_interval([[1, 1], [0, 1]], 0.5) == (0.5, 1)
    assert share_interval([[1, 1], [0, 0]], 0.5) == (0.5, 0.5)
    assert share_interval([[0.8, 0.8]], 0.8 + 1e-12) == (1, 1)  # but for rounding
    assert share_interval([[1]], 0.5) is None and share_interval([], 0.5) is None
    # Forty environments that are at the threshold by half: 20 of them, within 1.96 standard deviations of a binomial.
    low, high = share_interval([[0, 1, 0, 1, 1]] * 40, 0.8)
    chance = stats.binom.sf(3, 5, 0.6)
    expected = stats.binom.ppf([0.025, 0.975], 40, chance) / 40
    assert (low, high) == pytest.approx(expected, abs=0.03)


def test_an_environment_is_judged_against_three_policies():
    result = judge(run_info(), [[4.0, 6.0]], [[3, 3]], Sample(-10.0, 1.0, 20))
    assert (result.mean_return, result.normalized_score) == (5, 0.5)
    assert result.deterministic_score == 1.0  # of 0 to 5
    assert result.random_score == 0.75  # of -10 to 10
    assert result.return_interval == [4, 6] and result.score_interval == [0.4, 0.6]
    assert result.random == {"mean": -10, "std": 1, "size": 20} and result.flags == []
    assert result.kind == "continuous → discrete" and result.library == "lib"
    assert result.episode_scores == [0.4, 0.6]
    images = judge(run_info(observation_space=PICTURE), [[4.0]], [[3]])
    assert images.kind == "image → discrete" and images.random_score is None
    failed = judge(run_info(deterministic=()), [[]], [[]], None, "it exploded")
    assert (failed.failure, failed.mean_return, failed.normalized_score, failed.deterministic_return) == (
        "it exploded",
        None,
        None,
        None,
    )


# With ten values of standard deviation 1 on either side, Welch's test has 18 degrees of freedom, and its one-tailed
# critical value at 5 % is 1.734: a difference of 1.734 x sqrt(2 / 10) = 0.7755 is just enough.
@pytest.mark.parametrize(("last", "flags"), [(0.78, []), (0.77, [NOT_ABOVE_RANDOM])])
def test_a_reference_no_better_than_random_is_flagged_instead_of_scored(last, flags):
    result = judge(run_info(first=-5, last=last), [[1.0, 2.0]], [[1, 1]], Sample(0.0, 1.0, 10))
    assert result.flags == flags
    scores = (result.normalized_score, result.random_score, result.score_interval)
    assert all((score is None) == bool(flags) for score in scores)
    assert result.deterministic_score == 0.65  # (1.5 + 5) / (5 + 5): of a reference that is above random


def test_other_flags():
    flat = judge(run_info(first=10.0, last=10.0), [[1.0]], [[1]], Sample(0.0, 1.0, 10))
    assert flat.flags == [NO_IMPROVEMENT] and flat.normalized_score is None
    stuck = judge(run_info(deterministic=(-1.0, -1.0)), [[1.0]], [[1]], Sample(0.0, 1.0, 10))
    assert stuck.flags == [DETERMINISTIC_NOT_ABOVE_RANDOM]
    old = judge(run_info(curve=replace(run_info().curve, order="end")), [[5.0]], [[1]])
    assert old.flags == [CURVE_BY_END] and old.normalized_score == 0.5
    assert stuck.deterministic_score is None and stuck.normalized_score == 0.1


def test_summaries_by_hand():
    # Scores 0, 0.2, 0.3, 0.8 and 9 (a tenth of the returns); one more failed, one more is flagged.
    results = [
        judge(run_info(deterministic=(5.0, 5.0)), [[value, value]], [[1, 1]], Sample(-10.0, 1.0, 20))
        for value in (0.0, 2.0, 3.0, 8.0, 90.0)
    ]
    results.append(judge(run_info(), [[]], [[]], None, "broken"))
    results.append(judge(run_info(), [[1.0, 1.0]], [[1, 1]], Sample(50.0, 1.0, 20)))
    summary = Summary.of(results)
    assert (summary.environments, summary.scored, summary.failed) == (7, 5, 1)
    assert summary.median == 0.3 and summary.interquartile_mean == pytest.approx((0.2 + 0.3 + 0.8) / 3)
    assert summary.deterministic_median == 0.6  # of 5 instead of 10
    assert summary.deterministic_scored == 5 and summary.deterministic_reached == [2, 2]  # 8 is 160 % of 5, 3 is 60 %
    assert summary.reached == [2, 1] and summary.shares == [0.4, 0.2]
    assert summary.intervals == [[0.4, 0.4], [0.2, 0.2]]  # for no episode is like another
    nothing = Summary.of(results[5:6])
    assert nothing.shares is None and nothing.median is None and nothing.intervals == [None, None]


def test_differences_between_data_and_evaluation():
    data = versions_of_data(run_info())
    assert data == {"provider": "venv", "python": "3.11", "build": "abc", "library": "1.0"}
    assert differences(data, {**data, "python": "3.11.7"}) == []
    assert differences(data, {**data, "library": "1.1", "digest": "sha256:0"}) == [
        "library is 1.1, and was 1.0 when the data were made"
    ]
    here = versions_here(CARTPOLE)
    assert here["provider"] == "inprocess" and here["library"] == here["gymnasium"]
    inside = run_info(provenance={"provider": "inprocess", "python": "3.11.7"})
    assert versions_of_data(inside)["numpy"] == "2.0"  # of the process that made the data


def test_how_an_environment_relates_to_those_trained_on():
    trained = [CARTPOLE]
    assert [relation(one, trained) for one in (CARTPOLE, CLIFF, "minigrid/X-v0")] == [
        "trained on",
        "held out",
        "unseen library",
    ]
    assert relation(CARTPOLE, None) == "unknown"


def test_the_data_of_a_models_training(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "ldm"}')
    with pytest.raises(ConfigError, match="--data"):
        training_data(folder)
    (tmp_path / "training.yaml").write_text(yaml.safe_dump({"data": "beside"}))
    assert training_data(folder) == "beside"
    (folder / "training.yaml").write_text(yaml.safe_dump({"data": "inside"}))
    assert training_data(folder) == "inside"


def test_environments_are_chosen_by_id_and_library(data):
    references = open_datasets(data)
    assert len(chosen(references, ["all"])) == len(chosen(references, ["gymnasium"])) == 3
    assert [one.environment for one in chosen(references, [CLIFF, CARTPOLE, CLIFF])] == [CARTPOLE, CLIFF]
    with pytest.raises(UnknownEnvironmentError, match=r"no reference of minigrid; there are some of gymnasium"):
        chosen(references, ["gymnasium", "minigrid"])


def test_batches_hold_environments_of_one_length():
    lengths = {"a/Short-v0": 100, "a/Long-v0": 5000, "a/Middle-v0": 700}
    infos = [run_info(name, num_transitions=length) for name, length in lengths.items()]
    infos.append(run_info("a/Image-v0", num_transitions=4000, observation_space=PICTURE))
    found = [ReferenceOfData(SimpleNamespace(info=info, runs=[], environment=info.environment)) for info in infos]
    assert list(batches(found, 2)) == [["a/Image-v0"], ["a/Long-v0", "a/Middle-v0"], ["a/Short-v0"]]


def test_other_episodes_are_scored_as_the_first_ones_were():
    """Against the reference as a report shows it, without its data."""
    trivial = Anchors("lib/Env-v0", Sample(-10.0, 1.0, 20), Sample(9.0, 1.0, 20), {"always 1": Sample(4.0, 1.0, 20)})
    first = judge(run_info(), [[4.0, 6.0]], [[3, 3]], trivial.random, anchors=trivial, training="trained on")
    assert first.trivial == {"name": "always 1", "mean": 4.0, "std": 1.0, "size": 20}
    again = judge_again(first, [[4.0, 6.0]], [[3, 3]], training="trained on")
    assert again == first
    other = judge_again(read_result(json.loads(json.dumps(asdict(first)))), [[10.0], [5.0]], [[1], [2]])
    assert (other.mean_return, other.normalized_score, other.deterministic_score) == (7.5, 0.75, 1.5)
    assert (other.random_score, other.lengths, other.failure) == (17.5 / 20, [[1], [2]], None)
    failed = judge_again(first, [[]], [[]], "it broke")
    assert failed.normalized_score is failed.mean_return is failed.share is None and failed.failure == "it broke"


def test_references_worth_imitating():
    # The last episodes vary by 1: 25 episodes measure their mean to 0.2, so the improvement of 10 is 50 of these.
    good = check_reference(run_info(deterministic=(9.0, 11.0)), Sample(0.0, 1.0, 20), 25)
    assert (good.warnings, good.deterministic_score, good.resolution) == ([], 1.0, 50.0)
    (unstable,) = check_reference(run_info(deterministic=(8.0, 9.8)), None, 25).warnings
    assert unstable == "acting deterministically it reaches 89% of its training"
    (flat,) = check_reference(run_info(last=0.55, deterministic=(0.5, 0.6)), None, 25).warnings
    assert flat == "25 episodes cannot tell it: it improves by 2.8 standard errors of their mean"
    assert check_reference(run_info(), Sample(20.0, 1.0, 20), 25).warnings[0] == NOT_ABOVE_RANDOM
    none = check_reference(run_info(first=10.0, last=10.0, deterministic=()), None, 25)
    assert none.deterministic_score is None and none.warnings[0] == NO_IMPROVEMENT


def test_references_are_listed_that_are_worth_imitating(data, tmp_path):
    path = tmp_path / "ids.txt"
    done = run_ldm_here("references", data, "--output", path)
    assert done.returncode == 0, done.stderr
    found, known = path.read_text().split(), {one.environment for one in open_datasets(data)}
    assert f"{len(found)} of {len(known)} references are worth imitating" in done.stdout
    assert set(found) <= known and done.stdout.count("worth imitating") == len(found) + 1
    (gone,) = check_references([SimpleNamespace(environment="nolibrary/Env-v0", info=run_info("nolibrary/Env-v0"))])
    assert "a random policy was not measured" in gone.warnings[-1]
