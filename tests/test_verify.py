"""A model's report without its data: evaluated from again, and verified."""

import json
import shutil

import numpy as np
import pytest

from conftest import CARTPOLE, CLIFF, run_ldm_here
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.errors import ConfigError, EnvironmentFailure
from ldm_hf.evaluation.evaluate import evaluate
from ldm_hf.evaluation.lineage import published_references
from ldm_hf.evaluation.protocol import Protocol, RolloutResult
from ldm_hf.evaluation.results import judge
from ldm_hf.evaluation.verify import AGREES, DIFFERS, FAILED, NOT_PLAYED, compare, verify
from test_scores import run_info


@pytest.fixture(scope="module")
def published(model, processor, data, tmp_path_factory):
    """A model folder with the report of an evaluation."""
    path = tmp_path_factory.mktemp("published") / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    evaluate(path, open_datasets(data, [CARTPOLE, CLIFF]), path.parent / "report", Protocol(3, 2))
    shutil.copy(path.parent / "report/report.json", path)
    return path


def tampered(published, tmp_path, change):
    """A copy of the model whose report says something else of CartPole."""
    folder = shutil.copytree(published, tmp_path / "tampered")
    report = json.loads((folder / "report.json").read_text())
    change(report, next(one for one in report["environments"] if one["id"] == CARTPOLE))
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_a_model_is_evaluated_again_without_any_data(published, tmp_path):
    done = run_ldm_here("evaluate", published, "--episodes", 3, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (json.loads((path / "report.json").read_text()) for path in (published, tmp_path))
    assert after["environments"] == before["environments"] and after["summaries"] == before["summaries"]
    fresh = tmp_path / "fresh"
    done = run_ldm_here("evaluate", published, "--episodes", 3, "--seed", 1, "--environment", CLIFF, "--output", fresh)
    (result,) = json.loads((fresh / "report.json").read_text())["environments"]
    assert result["first10"] == before["environments"][1]["first10"] and result["versions"]["data"]


def test_a_folder_without_report_or_data_says_what_to_do(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model", ignore=shutil.ignore_patterns("report.json"))
    done = run_ldm_here("evaluate", folder, "--output", tmp_path / "out")
    assert done.returncode == 1 and "name those with references by --data" in done.stderr
    done = run_ldm_here("verify", folder)
    assert done.returncode == 1 and done.stderr.endswith("there is nothing to verify; `ldm evaluate` makes one\n")
    with pytest.raises(ConfigError, match=r"has no report\.json"):
        published_references(folder)


def reported(returns):
    """The result of a report: two rollouts, the reference improves from 0 to 10."""
    return judge(run_info(), np.reshape(returns, (2, -1)).tolist(), [[1], [1]])


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ([5.0] * 20, AGREES),
        ([5.09] * 20, AGREES),  # within 1 % of the reference's improvement, 0.1
        ([5.2] * 20, DIFFERS),  # 20 equal returns against 20 others: a permutation test tells any difference
        ([0.0, 10.0] * 10, AGREES),
        ([5.0] * 18 + [0.0] * 2, AGREES),  # two episodes that differ may be chance: 2 x C(38, 18) / C(40, 20) = 49 %
        ([0.0] * 20, DIFFERS),
        ([8.0] * 20, DIFFERS),  # a figure that is too low is wrong, too
    ],
)
def test_what_counts_as_a_difference(now, verdict):
    one = compare(reported([5.0] * 20), RolloutResult(np.reshape(now, (2, -1)).tolist(), [[1], [1]]), 10)
    assert (one.environment, one.published, one.again, one.verdict) == ("lib/Env-v0", 5.0, np.mean(now), verdict)


def test_more_comparisons_need_more_evidence():
    before = [0.0] * 8 + [10.0] * 12
    worse = RolloutResult([[0.0] * 18, [10.0] * 2], [[1], [1]])
    assert [compare(reported(before), worse, number).verdict for number in (1, 100)] == [DIFFERS, AGREES]


def test_a_report_of_many_environments_can_be_found_wrong():
    """20 episodes of about 9 against 20 of about 0: p is as small as the permutations allow, and corrected by 1,000."""
    now = RolloutResult([np.linspace(0, 0.2, 10).tolist()] * 2, [[1], [1]])
    assert compare(reported(np.linspace(9, 9.2, 20)), now, 1000).verdict == DIFFERS


def test_a_failure_is_no_agreement():
    one = compare(reported([5.0, 5.0]), RolloutResult([[]], [[]], EnvironmentFailure("it broke")), 1)
    assert (one.verdict, one.reason, one.again) == (FAILED, "it broke", None)


def test_verification_of_a_report(published, tmp_path):
    done = run_ldm_here("verify", published)
    assert done.returncode == 0 and done.stdout.endswith("2 agrees\n"), done.stdout + done.stderr

    def raised(report, result):
        result["returns"] = [[value + 400 for value in rollout] for rollout in result["returns"]]
        result["mean_return"] += 400

    folder = tampered(published, tmp_path, raised)
    done = run_ldm_here("verify", folder)
    assert done.returncode == 1 and set(done.stdout.splitlines()[-1].split(", ")) == {"1 agrees", "1 differs"}
    found = {one.environment: one.verdict for one in verify(folder)}
    assert found == {CARTPOLE: DIFFERS, CLIFF: AGREES}


def test_time_and_sample_are_limits(published):
    assert len(list(verify(published, sample=1))) == 1
    assert {one.verdict for one in verify(published, minutes=0)} == {NOT_PLAYED}
    done = run_ldm_here("verify", published, "--minutes", 0)
    assert done.returncode == 1 and done.stdout.endswith("2 not played\n")
    # The draw and the seeds follow from the seed, and are others than those of the report.
    draws = [[one.environment for one in verify(published, sample=1, seed=seed)] for seed in (1, 1)]
    assert draws[0] == draws[1]
    again = [one.again for one in verify(published, seed=0)]
    assert sorted(again) == sorted(one.published for one in verify(published, minutes=0))


def test_a_report_of_other_weights_is_refused(published, tmp_path):
    def other(report, _):
        report["model"]["weights_sha256"] = "0" * 64

    with pytest.raises(ConfigError, match="is of other weights"):
        list(verify(tampered(published, tmp_path, other)))
