"""Reports on disk, tables, cards, pages and the commands that print them."""

import html.parser
import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from conftest import run_ldm_here
from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.anchors.playing import Conduct
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.env_registry.known_scores import POLICY, RETURN, KnownScore
from ldm_hf.errors import ConfigError, DatasetFormatError
from ldm_hf.evaluation.render import markdown_tables, model_card, write_all
from ldm_hf.evaluation.report import Report, comparable
from ldm_hf.evaluation.results import SINGLE_START, judge
from test_scores import run_info

RANDOM = Sample(-10.0, 1.0, 20)


def toy_report(name="toy", parameters=1_234_567, returns=(9.0, 10.0)):
    results = [
        judge(run_info("lib/Flat-v0", first=5.0, last=5.0), [[1.0], [2.0]], [[1], [1]], RANDOM, training="held out"),
        judge(run_info("lib/Gone-v0"), [[]], [[]], None, "lib/Gone-v0 <broke>", training="held out"),
        judge(run_info("lib/Up-v0"), [[value] for value in returns], [[1], [1]], RANDOM, training="trained on"),
    ]
    model = {"name": name, "parameters": parameters, "context_length": 64, "weights_sha256": "00"}
    return Report(results, {"rollouts": 2, "episodes": 1, "seed": 10**9}, model, {"steps": 9}, {"torch": "2"})


def test_the_card_is_valid_and_complete():
    card = model_card(toy_report())
    data = ModelCard(card).data
    assert data.model_name == "toy" and data.license is None and data.pipeline_tag == "reinforcement-learning"
    found = {(result.dataset_type, result.metric_type): result.metric_value for result in data.eval_results}
    assert found == {
        ("lib/Flat-v0", "mean_return"): 1.5,
        ("lib/Up-v0", "mean_return"): 9.5,
        ("lib/Up-v0", "normalized_score"): 0.95,
        ("lib/Up-v0", "deterministic_score"): 1.9,
    }
    body = card.partition("---\n\n#")[2]
    unknown = "— | — | —"  # known good, share of it, solved
    assert (
        f"| `lib/Up-v0` | trained on | -10.00 | 0.00 | 10.00 | 5.00 | {unknown} | 9.50 (9.00 to 10.00) | — | — |"
        in body
    )
    assert "95.0 % (90.0 to 100.0)" in body and "not scored" in body
    assert (
        "1,234,567 parameters" in body
        and "| trained on | 1 | 1 | 1 (100 %" in body
        and "| held out | 2 | 0 | — | — | not scored |\n" in body
    )
    assert "| steps | `9` |" in body


def test_tables_have_every_group_and_every_row_its_columns():
    tables = markdown_tables(toy_report())
    for row in ("| all | 3 | 1 | 1 |", "| held out | 2 | 0 | 1 |", "| trained on | 1 | 1 | 0 |", "| lib | 3 | 1 | 1 |"):
        assert row in tables
    assert "- lib/Gone-v0: lib/Gone-v0 <broke>" in tables and "- lib/Flat-v0: the reference did not improve" in tables
    for table in re.findall(r"(?:^\|.*\n)+", tables, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


class Links(html.parser.HTMLParser):
    """What a page would load, and the tags that it leaves open."""

    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [
            value for name, value in attributes if name in ("src", "srcset") or (name, tag) == ("href", "link")
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(tmp_path):
    write_all([toy_report()], tmp_path, [tmp_path])
    text = (tmp_path / "report.html").read_text()
    links = Links()
    links.feed(text)
    assert len(links.sources) == 2 and all(source.startswith("data:image/png;base64,") for source in links.sources)
    assert links.open == [] and "<script" not in text and "url(" not in text
    assert "lib/Gone-v0 &lt;broke&gt;" in text and "<broke>" not in text


def test_several_reports_are_compared_over_their_sizes(tmp_path):
    for name, parameters, returns in (("small", 10**6, (1.0, 2.0)), ("large", 10**8, (9.0, 10.0))):
        toy_report(name, parameters, returns).save(tmp_path / name / "report.json")
    done = run_ldm_here("report", tmp_path / "small", tmp_path / "large" / "report.json", "--output", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert "lib/Up-v0" in done.stdout and "1 environments (100% of the scored) at 80% or above" in done.stdout
    with Image.open(tmp_path / "both" / "scaling.png") as image:
        assert min(image.size) > 400
    text = (tmp_path / "both" / "report.html").read_text()
    assert "small (1,000,000 parameters)" in text and "large (100,000,000 parameters)" in text
    assert text.count("data:image/png") == 2 and not (tmp_path / "both" / "README.md").exists()


def test_models_are_compared_on_what_all_have_scores_of():
    one, other = toy_report(), toy_report()
    other.environments.append(replace(one.environments[2], id="lib/More-v0"))
    assert [[result.id for result in report.environments] for report in comparable([one, other])] == [["lib/Up-v0"]] * 2
    with pytest.raises(ConfigError, match="no scored environment in common"):
        comparable([one, other.only(["lib/More-v0"])])


def test_reports_of_earlier_versions_are_read(tmp_path):
    old = {"id": "lib/Up-v0", "normalized_score": 0.5, "mean_return": 1.0, "first10": 0.0, "last10": 2.0}
    values = {"format": 1, "environments": [{**old, "deterministic_return": 2.0, "returns": [[1.0]]}]}
    (tmp_path / "report.json").write_text(json.dumps(values))
    loaded = Report.load(tmp_path)
    assert loaded.scores == [0.5] and loaded.environments[0].training == "unknown"
    assert run_ldm_here("report", tmp_path).returncode == 0


NO_REPORTS = [
    "",
    "[]",
    "{}",
    '{"format": 1}',
    '{"format": 9, "environments": []}',
    '{"format": 1, "environments": [{}]}',
]


@pytest.mark.parametrize("text", NO_REPORTS)
def test_other_files_are_no_reports(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DatasetFormatError, match=str(path)):
        Report.load(path)


def test_what_scores_are_worth_is_shown_beside_them():
    known = KnownScore(None, 30.0, RETURN, POLICY, "a paper", "", True)
    anchors = Anchors("gymnasium/CartPole-v1", RANDOM, RANDOM, {}, 1, known)
    info = run_info("gymnasium/CartPole-v1", deterministic=(26.0, 26.0))
    result = judge(info, [[10.0, 10.0]], [[1, 1]], RANDOM, anchors=anchors)
    assert (result.share, result.solved) == (0.5, False)  # 10 is half of the way from -10 to 30
    assert (result.reference_share, result.reference_solved) == (0.9, True)
    assert SINGLE_START in result.flags
    tables = markdown_tables(Report([result], {}, {"name": "toy"}))
    assert "the model solves 0, the references 1." in tables
    assert "| 26.00 | 30 | 90% | yes | 10.00 (10.00 to 10.00) | 50% | no |" in tables


def test_reports_of_earlier_versions_are_read_with_what_is_known_now(tmp_path):
    info = run_info("gymnasium/CartPole-v1", deterministic=(500.0, 500.0))
    Report([judge(info, [[255.0]], [[255]], Sample(10.0, 1.0, 20))], {}, {"name": "toy"}).save(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    for name in ("known_good", "share", "solved", "reference_share", "reference_solved"):
        del written["environments"][0][name]
    (tmp_path / "report.json").write_text(json.dumps(written))
    (result,) = Report.load(tmp_path).environments
    assert (result.share, result.solved, result.reference_share, result.reference_solved) == (0.5, False, 1, True)


def test_a_degenerate_reference_is_named():
    assessment = Assessment([8], Conduct(8, "0", -10.0, -0.1), Anchors("lib/Up-v0", RANDOM, RANDOM), ["never acts"])
    result = judge(run_info("lib/Up-v0", assessment=assessment), [[9.0, 10.0]], [[1, 1]], RANDOM)
    assert "the reference is degenerate: it never acts" in result.flags
    again = RunInfo.from_json(run_info("lib/Up-v0", assessment=assessment).to_json(), "here")
    assert again.assessment == assessment and again.flags == ["never acts"]
