"""The documentation as a site: whole, without warnings, with links that hold, and readable on a phone."""

import functools
import html
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

import ldm_hf
from browser.accessibility import serious_defects

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")
PAGES = ["", "results/", "how_to/", "design/", "tutorials/first_policy/", "reference/cli/", "reference/python/"]
sys.path.insert(0, str(ROOT / "scripts"))

import site_hooks  # noqa: E402 # it is no part of the package


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("README.md", "index.md", "[a](docs/model.md#use)", "[a](model.md#use)"),
        ("README.md", "index.md", "![a](docs/results/mosaic.gif)", "![a](results/mosaic.gif)"),
        ("README.md", "index.md", "[docs/results](docs/results)", "[docs/results](results/README.md)"),
        ("docs/results/README.md", "results/README.md", "[a](../../README.md)", "[a](../index.md)"),
        ("docs/model.md", "model.md", "[a](results/README.md)", "[a](results/README.md)"),
        ("docs/model.md", "model.md", "[the pool](../setup.cfg)", "the pool (`setup.cfg`)"),
        ("docs/model.md", "model.md", "[`setup.cfg`](../setup.cfg)", "`setup.cfg`"),
        ("docs/model.md", "model.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("docs/model.md", "model.md", "[a](#here)", "[a](#here)"),
        ("docs/model.md", "model.md", "![a](data:image/png;base64,AA==)", "![a](data:image/png;base64,AA==)"),
        ("docs/model.md", "model.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # which the strict build refuses
    ],
)
def test_links_hold_on_the_site(source, page, link, expected):
    known = {"index.md", "model.md", "results/README.md", "results/mosaic.gif"}
    found = site_hooks._LINK.fullmatch(link)
    assert site_hooks.site_link(found, source, page, known) == expected


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",  # quiet would not be strict
        "--site-dir",
        str(folder),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.mark.slow
def test_every_public_name_and_command_has_its_place(site):
    python = (site / "reference/python/index.html").read_text()
    ids = set(re.findall(r'id="([\w.]+)"', python))
    assert all(any(name.endswith(f".{public}") for name in ids) for public in ldm_hf.__all__)
    assert "<pre>" in python and "&gt;&gt;&gt;" in html.escape(html.unescape(python))  # examples are code
    commands = (site / "reference/cli/index.html").read_text()
    for command in ("ldm solve", "ldm env add", "ldm build", "ldm train", "ldm finetune", "ldm bank add"):
        assert f"<code>{command}</code>" in commands
    assert "EnvironmentFailure" in (site / "reference/errors/index.html").read_text()
    # Nothing is asked of another host: what a page loads is on the site.
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="([^"]+)"', path.read_text())
        assert not [one for one in loaded if "://" in one], path


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_everyone_can_read_it(address, width, scheme):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in PAGES:
            page.goto(f"{address}/{name}", wait_until="load")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert serious_defects(page) == [], name
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.split("/")[2]}
        assert errors == []
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
def test_by_keyboard_alone(address):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address, wait_until="load")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # to the content, past the navigation
        assert "#" in page.url
        page.goto(f"{address}/how_to/", wait_until="load")
        page.get_by_text("Type to start searching").wait_for(state="attached")  # the index is there
        page.keyboard.press("/")
        page.keyboard.type("finetune")
        page.locator(".md-search-result__item a").first.wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile("h=finetune"))
        browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
