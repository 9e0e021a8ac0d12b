"""The gallery: a page for every environment, with what is known of it and nothing else, readable by anyone."""

import functools
import http.server
import json
import re
import shutil
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from browser.accessibility import serious_defects
from conftest import CARTPOLE, run_ldm_here
from ldm_hf.env_registry.library.report import load_report
from ldm_hf.env_registry.registry import list_libraries
from ldm_hf.export import vendor
from ldm_hf.gallery.charts import curve
from ldm_hf.gallery.exhibits import collect, parts

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
HOME = vendor.home()  # of the user: what was fetched once is not fetched again


@pytest.fixture(scope="module")
def site(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_HOME", str(HOME))
        done = run_ldm_here(
            *("gallery", "--output", folder, "--runs", ROOT / "bank", "--data", data),
            *("--model", ROOT / "pretrained/ldm-mini"),
        )
    if "npm cannot fetch" in done.stderr or "npm, which fetches" in done.stderr:
        pytest.skip(done.stderr)
    assert not done.returncode, done.stderr
    return folder


def test_every_registered_environment_has_a_page(site):
    registered = sum(len(load_report(library.slug).environments) for library in list_libraries())
    pages = list(site.glob("*/*.html"))
    assert len(pages) == registered > 2000
    assert sum(path.stat().st_size for path in site.rglob("*")) < 20 * 2**20
    listed = re.findall(r'<a href="([^"]+\.html)">', (site / "environments.html").read_text())
    assert {site / page for page in listed} >= set(pages)


def test_links_lead_somewhere(site):
    for page in [*site.glob("*.html"), *sorted(site.glob("*/*.html"))[::50]]:
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            if not link.startswith(("http", "data:")):
                assert (page.parent / link.partition("?")[0]).is_file(), f"{page}: {link}"


def test_a_page_says_what_the_records_say(site):
    run = json.loads((ROOT / "bank" / CARTPOLE / "run.json").read_text())["info"]
    model = json.loads((ROOT / "pretrained/ldm-mini/report.json").read_text())
    (result,) = [one for one in model["environments"] if one["id"] == CARTPOLE]
    text = re.sub(r"\s+", " ", (site / f"{CARTPOLE}.html").read_text())
    random = run["assessment"]["anchors"]["random"]["mean"]
    returns = run["deterministic_returns"]
    for who, value in (
        ("random policy", random),
        ("reference", sum(returns) / len(returns)),
        ("ldm-mini", result["mean_return"]),
    ):
        assert f'<th scope="row">{who}</th><td class="number">{value:,.4g}</td>' in text
    assert f"{run['num_transitions']:,} transitions in {run['num_episodes']:,} episodes" in text
    assert text.count("<polyline") == 1 and "Its documentation" in text
    assert "ldm finetune" in text and "The first of" in text  # the sample of data


def test_failures_are_told(site):
    failed, unfit = (
        next(
            f"{library.slug}/{one.name}"
            for library in list_libraries()
            for one in load_report(library.slug).environments.values()
            if (one.failure if wanted else one.problems) and "/" not in one.name
        )
        for wanted in (True, False)
    )
    text = (site / f"{failed}.html").read_text()
    assert "It does not run." in text and "<h2>Use it</h2>" not in text
    text = (site / f"{unfit}.html").read_text()
    assert "It does not fit a model." in text and "ldm finetune" not in text


def test_environments_without_anything_have_nothing_invented():
    exhibits = {one.environment: one for one in collect([], [])}
    assert all(one.reference is None and not one.results for one in exhibits.values())
    unknown = [one for one in exhibits.values() if one.known is None]
    assert unknown and all(not one.scores() for one in unknown)


def test_a_curve_by_hand():
    drawn = curve([0, 50, 100], [0.0, 10.0, 5.0], [("<b>", 20.0)], "a & b")
    assert 'aria-label="a &amp; b"' in drawn and "&lt;b&gt;" in drawn and "<b>" not in drawn
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', drawn)[1].split()]
    (left, bottom), (middle, half), (right, quarter) = points
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    line = float(re.search(r'y1="([\d.]+)"', drawn)[1])
    assert half == pytest.approx((bottom + line) / 2, abs=0.2)  # 10 is half of the way from 0 to 20
    assert quarter == pytest.approx(bottom + (line - bottom) / 4, abs=0.2)


def test_spaces_in_words():
    space = {
        "type": "Dict",
        "spaces": {
            "a": {"type": "Box", "shape": [2, 3], "dtype": "float32", "low": "-inf", "high": [1, 2, 3, 4, 5, 6]},
            "b": {"type": "Discrete", "n": 5, "start": 2},
        },
    }
    found = [(part.name, part.kind, part.values) for part in parts(space)]
    assert found == [("['a']", "Box 2 x 3, float32", "-inf to 6"), ("['b']", "Discrete", "2 to 6")]
    many = {"type": "Tuple", "spaces": [{"type": "Discrete", "n": 2, "start": 0}] * 40}
    assert len(parts(many)) == 13 and parts(many)[-1].kind == "28 more"


def test_folders_that_are_not_ours_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = run_ldm_here("gallery", "--output", tmp_path)
    assert done.returncode == 1 and "holds something else than a gallery" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_person_can_find_an_environment(address, width, scheme):
    with (
        sync_playwright() as browsers,
        browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as one,
    ):
        page = one.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for path in ("index.html", f"{CARTPOLE}.html", "environments.html"):
            page.goto(f"{address}/{path}", wait_until="networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert not serious_defects(page)
        page.get_by_role("searchbox").fill("gymnasium/cartpole-v1")
        rows = page.locator("tbody tr")
        assert rows.count() == 1 and rows.first.locator("th").inner_text() == CARTPOLE
        page.get_by_role("searchbox").fill("")
        head = page.locator("thead th", has_text="known good").locator("[role=button]").first
        head.focus()
        page.keyboard.press("Enter")
        page.locator("th[aria-sort=descending]").wait_for()
        values = [text.replace(",", "") for text in page.locator("tbody tr td:nth-child(6)").all_inner_texts()]
        shown = [float(text) for text in values if text]
        assert len(shown) > 10 and shown == sorted(shown, reverse=True)
        page.get_by_role("searchbox").fill("gymnasium/cartpole-v1")
        page.get_by_role("link", name=CARTPOLE, exact=True).click()
        assert page.get_by_role("heading", level=1).inner_text() == CARTPOLE
        assert not errors
        assert not [url for url in asked if not url.startswith((address, "data:"))]
