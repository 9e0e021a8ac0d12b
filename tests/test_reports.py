"""Reports on disk, tables, cards, pages and the commands that print them."""

import base64
import html
import html.parser
import json
import re
import shutil
import subprocess
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
from ldm_hf.evaluation.render import markdown_tables, model_card, page, rounded, score_text, solved, verdict, write_all
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
        and "| held out | 2 | 0 | — | — | not scored | — | — |\n" in body
    )
    assert "| steps | `9` |" in body


def test_tables_have_every_group_and_every_row_its_columns():
    tables = markdown_tables(toy_report())
    for row in (
        "| held out | 2 | 0 | 1 |",
        "| trained on | 1 | 1 | 0 |",
        "| lib | 1 | 1 | 0 |",
        "| lib (held out) | 2 | 0 | 1 |",
    ):
        assert row in tables
    assert "| all |" not in tables  # what was trained on and what was not are never in one row
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
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(tmp_path):
    write_all([toy_report()], tmp_path, [tmp_path])
    text = (tmp_path / "report.html").read_text()
    links = Links()
    links.feed(text)
    assert links.sources == [] and links.open == [] and text.count("<script>") == text.count("<script") == 1
    assert not re.search(r"url\((?!#)", text) and text.count("<svg") == 1  # the curve's clip path is in itself
    assert "lib/Gone-v0 &lt;broke&gt;" in text and "<broke>" not in text


def test_a_page_holds_no_file_from_outside_the_report_s_folder(tmp_path):
    """A report from elsewhere names its videos as it likes."""
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "report" / "videos").mkdir(parents=True)
    (tmp_path / "report" / "videos" / "own.mp4").write_text("own")
    files = {"lib/A-v0": "../secret", "lib/B-v0": str(tmp_path / "secret"), "lib/C-v0": "videos/own.mp4"}
    report = replace(toy_report(), videos={name: {"file": file} for name, file in files.items()})
    text = page([report], [], [tmp_path / "report"])
    assert text.count("data:video/mp4;base64,") == 1
    assert base64.b64encode(b"own").decode() in text and base64.b64encode(b"a secret").decode() not in text


def test_environments_without_a_video_are_named_after_those_with_one(tmp_path):
    (tmp_path / "own.mp4").write_text("own")
    videos = {"lib/A-v0": {"note": "it shows no images"}, "lib/B-v0": {"file": "own.mp4", "note": "returns 1, 2"}}
    text = page([replace(toy_report(), videos=videos)], [], [tmp_path])
    assert text.count("<figure>") == 1 and "<figcaption>lib/B-v0: returns 1, 2</figcaption>" in text
    assert "Environments without a video (1)" in text
    assert text.index("<figure>") < text.index("<li>lib/A-v0: it shows no images</li>")


def test_several_reports_are_compared_over_their_sizes(tmp_path):
    for name, parameters, returns in (("small", 10**6, (1.0, 2.0)), ("large", 10**8, (9.0, 10.0))):
        toy_report(name, parameters, returns).save(tmp_path / name / "report.json")
    done = run_ldm_here("report", tmp_path / "small", tmp_path / "large" / "report.json", "--output", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert "lib/Up-v0" in done.stdout
    with Image.open(tmp_path / "both" / "scaling.png") as image:
        assert min(image.size) > 400
    text = (tmp_path / "both" / "report.html").read_text()
    assert "small (1,000,000 parameters)" in text and "large (100,000,000 parameters)" in text
    assert (
        text.count("data:image/png") == 1 and text.count("<svg") == 1 and not (tmp_path / "both" / "README.md").exists()
    )


def test_numbers_are_rounded_to_what_is_known():
    assert [rounded(17.6349, (15.2, 20.1)), rounded(17.6349, (17.61, 17.66)), rounded(1234.5, (1000.0, 1500.0))] == [
        "17.6",
        "17.635",
        "1,234",
    ]
    assert [rounded(-21752.13), rounded(0.123456), rounded(5.0, (5.0, 5.0)), rounded(None)] == [
        "-21,752",
        "0.1235",
        "5",
        "—",
    ]
    assert [score_text(1.2694), score_text(1.2694, (1.2690, 1.2698)), score_text(None)] == ["127 %", "126.9 %", "—"]
    assert [verdict(1.0 - 1e-12), verdict(0.8), verdict(0.79), verdict(None)] == ["matched", "80 %", "below", "failed"]


def test_solved_counts_only_what_can_be_compared():
    report = toy_report()
    known = [replace(report.environments[2], id=f"lib/{name}-v0", **worth) for name, worth in WORTH.items()]
    summary = replace(report, environments=[*report.environments, *known]).groups["training data"]["trained on"]
    assert (summary.comparable, summary.solved, summary.reference_solved) == (3, 1, 2)
    assert solved(summary) == ("1 of 3", "2 of 3") and solved(report.summary) == ("—", "—")


WORTH = {
    "Both": {"solved": True, "reference_solved": True},
    "Reference": {"solved": False, "reference_solved": True},
    "Neither": {"solved": False, "reference_solved": False},
}


def in_browser(page, width, program):
    """Run a program in a page that a browser shows, and give what it returns."""
    script = f"<script>document.title = JSON.stringify((() => {{ {program} }})())</script>"
    (page.parent / "driven.html").write_text(page.read_text().replace("</body>", f"{script}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", "--disable-sync", "--disable-quic", f"--user-data-dir={page.parent / 'browser'}"]
    command += [f"--window-size={width},800", "--dump-dom", f"file://{page.parent / 'driven.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium, which .ci/run installs")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_in_a_browser(tmp_path, width):
    report = toy_report()
    report.environments.append(replace(report.environments[2], id="lib/Low-v0", normalized_score=-217.5))
    report.environments.append(replace(report.environments[2], id="other/High-v0", normalized_score=1.5))
    write_all([report], tmp_path, [tmp_path])
    program = """
        const table = document.querySelector("table[data-environments]"), heads = [...table.tHead.rows[0].cells];
        const ids = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].dataset.value);
        const change = (name, value) => {
          const control = document.querySelector(`[data-${name}]`);
          control.value = value; control.dispatchEvent(new Event("input")); return ids();
        };
        const score = heads.find((head) => head.textContent === "score").firstChild;
        const shown = { start: ids(), wide: document.documentElement.scrollWidth > innerWidth };
        score.click(); shown.down = ids(); score.click(); shown.up = ids();
        shown.filtered = change("filter", "OTHER"); change("filter", "");
        shown.below = change("show", "below"); change("show", "");
        shown.held = change("training", "held out"); shown.count = document.querySelector("[data-count]").textContent;
        const widths = [...document.querySelectorAll("td:first-child")].map((cell) => cell.clientWidth);
        shown.narrowest = Math.min(...widths.filter((found) => found));  // 0 of what is hidden
        table.parentElement.scrollLeft = 300;
        shown.sticky = table.tBodies[0].rows[0].cells[0].getBoundingClientRect().left >= 0;
        const low = [...table.tBodies[0].rows].find((row) => row.cells[0].dataset.value === "lib/Low-v0");
        shown.low = low.cells[1].textContent.trim().replace(/\\s+/g, " ");
        return shown;
    """
    shown = in_browser(tmp_path / "report.html", width, program)
    names = ["lib/Flat-v0", "lib/Gone-v0", "lib/Up-v0", "lib/Low-v0", "other/High-v0"]
    assert shown["start"] == names and not shown["wide"]
    assert shown["narrowest"] > 100 or width > 600  # a phone's column of names breaks no short word
    assert shown["down"] == ["other/High-v0", "lib/Up-v0", "lib/Low-v0", "lib/Flat-v0", "lib/Gone-v0"]
    assert shown["up"] == shown["down"][::-1]
    assert shown["filtered"] == ["other/High-v0"] and shown["below"] == ["lib/Low-v0"]
    assert sorted(shown["held"]) == ["lib/Flat-v0", "lib/Gone-v0"] and shown["count"] == "2 of 5"
    assert shown["sticky"] and shown["low"].startswith("-21,750 %") and "◂" in shown["low"]  # the bar ends, and says so


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
    assert "| 0 of 1 | 1 of 1 |" in tables  # solved by the model, by its reference
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
