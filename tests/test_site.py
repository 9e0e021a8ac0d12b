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

import ldm_hf

ROOT = Path(__file__).parent.parent
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium, which .ci/run installs")
@pytest.mark.parametrize("page", ["", "results/", "reference/cli/"])
def test_no_page_is_wider_than_a_phone(site, tmp_path, page):
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe = site / page / "probe.html"
        script = (
            "<script>addEventListener('load', () => { document.title = document.documentElement.scrollWidth })</script>"
        )
        probe.write_text((site / page / "index.html").read_text().replace("</body>", f"{script}</body>"))
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--window-size=500,900", f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"]
        address = f"http://127.0.0.1:{server.server_address[1]}/{page}probe.html"
        done = subprocess.run([*command, address], capture_output=True, text=True, check=True)
        server.shutdown()
    assert int(re.search(r"<title>(\d+)</title>", done.stdout)[1]) <= 500


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
