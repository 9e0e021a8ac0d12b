"""The notebooks: each runs, and shows what it showed when it was written down."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import run_notebooks  # noqa: E402 # it is no part of the package

NAMES = ("first_policy", "dataset_and_finetune", "reproduction_at_scale")


def shown(notebook) -> str:
    """All texts that its cells printed."""
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )


def test_they_are_what_the_page_lists():
    assert sorted(path.stem for path in run_notebooks.FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_down_was_run(name):
    notebook = nbformat.read(run_notebooks.FOLDER / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells) and sum(bool(cell.outputs) for cell in cells) > len(cells) / 2
    assert not re.search(r"/(?:home|root|tmp|work)/", shown(notebook))  # nothing of the machine
    assert "Traceback" not in shown(notebook)


@pytest.mark.slow
def test_a_first_policy(tmp_path):
    notebook = run_notebooks.run(run_notebooks.FOLDER / "first_policy.ipynb")
    text = shown(notebook)
    assert "model  [500.0, 500.0, 500.0, 500.0, 500.0]" in text and "chance" in text
    (images,) = [
        cell for cell in notebook.cells if any("image/png" in out.get("data", {}) for out in cell.get("outputs", []))
    ]
    assert images.outputs


@pytest.mark.long
def test_a_dataset_and_a_model_fine_tuned_on_it():
    text = shown(run_notebooks.run(run_notebooks.FOLDER / "dataset_and_finetune.ipynb"))
    before, after, reference = map(float, re.search(r"before (\S+), after (\S+), the reference (\S+)", text).groups())
    assert before < 2 * reference < 0 and after > 2 * reference  # costs: less than twice those of the reference


@pytest.mark.long
def test_a_reproduction():
    text = shown(run_notebooks.run(run_notebooks.FOLDER / "reproduction_at_scale.ipynb"))
    scores = [float(score) for score in re.findall(r"score +(\S+)", text)]
    assert len(scores) == 3 and max(scores) > 0.8
