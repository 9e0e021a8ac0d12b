"""Run the notebooks of examples/notebooks and keep what they show: python scripts/run_notebooks.py [NAME ...]."""

import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

from ldm_hf.utils.files import replacing

FOLDER = Path(__file__).parents[1] / "examples/notebooks"
_SECONDS = 900
_BAR, _COLOUR = re.compile(r"[^\n]*\r"), re.compile(r"\x1b\[[0-9;]*m")


def run(path: Path) -> Any:
    """A notebook with the outputs that it has when it is run now, in its folder; raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(notebook, timeout=_SECONDS, resources={"metadata": {"path": str(path.parent)}}).execute()
    tidy(notebook)
    return notebook


def tidy(notebook: Any) -> None:
    """Leave of the outputs what a reader wants: no times, progress bars, colours of a terminal, or what went to stderr."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept: list[Any] = []
        for output in cell.outputs:
            if output.output_type != "stream":
                kept.append(output)
            elif output.name == "stdout" and kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text  # which comes in pieces
            elif output.name == "stdout":
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                output.text = _BAR.sub("", _COLOUR.sub("", output.text.replace("\r\n", "\n"))).strip("\n") + "\n"
        cell.outputs = [output for output in kept if output.output_type != "stream" or output.text.strip()]


def main(names: list[str]) -> None:
    """Run them, and write them back."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            with replacing(path) as temporary:
                temporary.write_text(nbformat.writes(run(path)) + "\n", encoding="utf-8")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1:])
