"""How experiments and benchmarks show their figures: a table, and a JSON file that says what they were measured on."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm_hf.utils.files import replacing


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def write_json(path: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures as one object, with what they were measured on; without a path nothing is written."""
    if path is not None:
        head = {"python": platform.python_version(), "machine": platform.machine()}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({**head, **figures}, indent=1) + "\n", encoding="utf-8")
