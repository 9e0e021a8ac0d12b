"""What a release has: files in wheel and sdist, environment variables and words that are documented, versions that agree."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import ldm_hf
from ldm_hf.training.config import RENAMED

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/ldm_hf"
NOT_SHIPPED = {".git", ".venv", "pretrained", "benchmarks", "runs", "build", "dist", "*_cache", ".hypothesis"}


@pytest.mark.slow
def test_wheel_and_sdist_have_every_file(tmp_path):
    """Built offline, from a copy without what earlier builds left."""
    copied = tmp_path / "copy"
    built, left_out = shutil.ignore_patterns("__pycache__", "*.egg-info"), shutil.ignore_patterns(*NOT_SHIPPED)
    shutil.copytree(
        ROOT, copied, ignore=lambda *here: built(*here) | (left_out(*here) if here[0] == str(ROOT) else set())
    )
    program = "import setuptools.build_meta as build; build.build_wheel('../out'); build.build_sdist('../out')"
    subprocess.run([sys.executable, "-c", program], cwd=copied, check=True, capture_output=True)
    expected = {
        path.relative_to(copied / "src").as_posix() for path in (copied / "src/ldm_hf").rglob("*") if path.is_file()
    }
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("ldm_hf/")}
    assert names == expected
    assert {"ldm_hf/py.typed", "ldm_hf/hub/model_card.md", "ldm_hf/evaluation/report.html"} <= names
    assert any(name.endswith(".toml") for name in names) and any(name.endswith(".tsv") for name in names)
    (sdist,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("src/ldm_hf", "tests", "docs", "examples", "recipes", "scripts", "bank"):
        files = {path.relative_to(copied).as_posix() for path in (copied / folder).rglob("*") if path.is_file()}
        assert files <= packed, folder
    assert {"CHANGELOG.md", "CITATION.cff", "SECURITY.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt"} <= packed


def variables_read() -> set[str]:
    """Environment variables that the source names: arguments of ``os.environ``, and whatever looks like one beside it."""
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"\b(?:LDM|HF|MINARI)_[A-Z_]+\b", text))
        if "os.environ" not in text and "getenv" not in text:
            continue
        names |= set(re.findall(r"""(?:environ(?:\.\w+)?[\[(]|getenv\()\s*["'](\w+)["']""", text))
        constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        names |= {
            each for each in constants if isinstance(each, str) and re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+", each)
        }
    return names


def test_every_environment_variable_is_documented():
    page = (ROOT / "docs/environment_variables.md").read_text(encoding="utf-8")
    found, documented = variables_read(), set(re.findall(r"`([A-Z][A-Z0-9_]+)`", page))
    assert {"LDM_HOME", "RANK", "PYENV_ROOT", "HF_TOKEN"} <= found  # each is found in another way
    assert not found - documented, "add it to docs/environment_variables.md"
    ours = {name for name in documented if name.startswith("LDM_")} - {"LDM_REQUIRE_DOCKER"}  # which the tests read
    assert not ours - found, "it is no longer read"


def test_files_that_a_release_is_described_by_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ldm_hf.__version__ and citation["license"] == "Apache-2.0"
    assert "2606.24962" in citation["preferred-citation"]["url"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name, today in {**RENAMED, "betas": "adam_beta1", "precision": "bf16"}.items():
        row = next(line for line in changes.splitlines() if line.startswith("| setting") and f"`{name}" in line)
        assert f"`{today}" in row.split(" | ", 1)[1], row
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"] and all(field["attributes"]["label"] for field in form["body"])


def test_the_glossary_is_in_alphabetical_order():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^- \*\*([^*]+)\*\*: ", text, re.MULTILINE)
    assert words == sorted(words) and len(words) >= 25


@pytest.mark.parametrize(
    "page", ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "model_card.md", "docs/glossary.md"]
)
def test_links_of_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), target
