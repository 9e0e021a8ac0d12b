"""The ledger of the catalogue: which stage each environment reached, and why it stops there."""

from dataclasses import replace
from pathlib import Path

import pytest

from conftest import CARTPOLE, CLIFF, run_ldm_here
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.env_registry.registry import list_environments
from ldm_hf.evaluation.coverage import STAGES, ledger, ledger_page
from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.results import judge
from test_scores import run_info

REPOSITORY = Path(__file__).parent.parent
RANDOM = Sample(-10.0, 1.0, 20)


def report_of(environment, *returns, training="trained on", **changes):
    return Report([replace(judge(run_info(environment), [list(returns)], [[1]], RANDOM), training=training, **changes)])


def stands(environment, records=(), reports=()):
    return next(place for place in ledger(records, reports) if place.environment == environment)


def test_every_environment_of_the_catalogue_is_in_it_once():
    places = ledger([], [])
    names = [place.environment for place in places]
    assert len(names) == len(set(names)) and {one.id for one in list_environments()} <= set(names)
    # Nobody has a reference: those that stop before it add up, stage by stage.
    reached = [sum(stage in place.reached for place in places) for stage in STAGES]
    stopped = [sum(place.last == stage for place in places) for stage in STAGES]
    assert reached[0] == len(places) and reached[4:] == [0] * 7
    assert all(reached[index] - stopped[index] == reached[index + 1] for index in range(len(STAGES) - 1))
    assert all(place.reason for place in places)


@pytest.mark.parametrize(
    ("records", "reports", "last", "reason"),
    [
        ([], [], "newest", "none was trained"),
        (
            [RunRecord(CARTPOLE, "A", "no improvement: 3 in the first", None)],
            [],
            "newest",
            "no improvement: N in the first",
        ),
        ([RunRecord(CARTPOLE, "A", None, run_info(CARTPOLE))], [], "data", "no model was trained on it yet"),
        ([], [report_of(CARTPOLE, 7.0, 7.5)], "trained on", "the model falls short"),
        ([], [report_of(CARTPOLE, 9.0, 9.5)], "at 80 %", "between 80 % and 100 %"),
        ([], [report_of(CARTPOLE, 11.0, 11.0)], "matched", "no comparable score is known"),
        ([], [report_of(CARTPOLE, 11.0, 11.0, solved=False)], "matched", "the reference does not solve it"),
        ([], [report_of(CARTPOLE, 11.0, 11.0, solved=True)], "solved", ""),
        ([], [report_of(CARTPOLE, 11.0, 11.0, training="held out")], "newest", "none was trained"),
        ([], [report_of(CARTPOLE, 9.0, 9.0), report_of(CARTPOLE, 7.0, 7.0)], "at 80 %", "between 80 % and 100 %"),
    ],
)
def test_where_an_environment_stops(records, reports, last, reason):
    place = stands(CARTPOLE, records, reports)
    assert (place.last, place.reason) == (last, reason)
    assert stands(CLIFF, records, reports).last == "newest"


def test_the_page_says_what_the_next_step_costs():
    page = ledger_page(ledger([], []), 12.0)
    missing = len([one for one in list_environments() if not one.problems])
    assert f"at 12 core minutes each, {missing * 12 / 60:,.0f} core hours" in page
    assert page.count("\n| ") == 2 + len(STAGES) + len({one.id.partition("/")[0] for one in list_environments()})


def test_the_committed_ledger_is_up_to_date(tmp_path):
    page = REPOSITORY / "docs/coverage.md"
    command = [
        "coverage",
        tmp_path / "coverage.md",
        "--runs",
        REPOSITORY / "bank",
        "--model",
        REPOSITORY / "pretrained/ldm-base",
        "--model",
        REPOSITORY / "pretrained/ldm-mini",
    ]
    done = run_ldm_here(*command)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (tmp_path / "coverage.md").read_text(), (
        "run: ldm coverage docs/coverage.md --runs bank --model pretrained/ldm-base --model pretrained/ldm-mini"
    )
