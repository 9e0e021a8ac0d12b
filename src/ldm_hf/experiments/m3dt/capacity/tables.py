"""The tables of what was measured: rows of text, for a terminal or for a page."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ldm_hf.experiments.m3dt.capacity.cells import ADDED_TASKS, ADDITIONS, GROUPINGS, Cell
from ldm_hf.experiments.m3dt.capacity.routers import ROUTERS
from ldm_hf.experiments.m3dt.capacity.tasks import FAMILIES

Records = dict[Cell, dict[str, Any]]
Table = list[list[str]]
Kind = tuple[str, str, str]
"""Budget, batch and variant."""

BUDGETS = {
    "fixed": "the same at any number of tasks",
    "twice": "twice that",
    "proportional": "in proportion to tasks",
    "m3dt": "M3DT's",
}


def read(folder: Path) -> Records:
    """All cells of a folder."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").glob("*.json"))]
    return {Cell(**record["cell"]): record for record in found}


def families(records: Iterable[Cell]) -> list[str]:
    """Those that were measured, in the order of ``FAMILIES``."""
    found = {cell.family for cell in records}
    return [family for family in FAMILIES if family in found]


def label(kind: Kind) -> str:
    """What a variant is called."""
    _, batch, variant = kind
    grouping, _, router = variant.partition("+")
    name = variant
    if grouping in GROUPINGS:
        name = f"experts, {grouping} groups, " + (f"router *{router}*" if router else "each task's own")
    return name + (", one task per step" if batch == "one" else "")


def by_tasks(records: Records, family: str) -> Table:
    """Mean scores of each variant on each number of tasks; with several seeds the lowest and the highest beside it."""
    scores: dict[Kind, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, record in records.items():
        if cell.family == family and cell.budget in BUDGETS and cell.variant not in ADDITIONS:
            scores[cell.budget, cell.batch, cell.variant][cell.tasks].append(record["score"])
    counts = sorted({count for found in scores.values() for count in found})
    rows = [["budget", "variant", *map(str, counts)]]
    for kind in sorted(scores, key=_order):
        cells = [_spread(scores[kind][count]) if count in scores[kind] else "" for count in counts]
        rows.append([BUDGETS[kind[0]], label(kind), *cells])
    return rows


def by_router(records: Records, family: str, tasks: int) -> Table:
    """Routers on the same experts: what they keep of the score that each task's own expert has."""
    rows = [["router", "score", "of own expert's", "steps", "FLOPs of routers"]]
    for router in ROUTERS:
        wanted = Cell(family, tasks, "m3dt", "mixed", f"random+{router}")
        found = [(record, records[cell.base]) for cell, record in _seeds(records, wanted) if cell.base in records]
        if found:
            kept = [100 * record["score"] / own["score"] for record, own in found]
            flops = mean(record["flops"] - own["flops"] for record, own in found)
            score = _spread([record["score"] for record, _ in found])
            rows.append([router, score, f"{_spread(kept)} %", str(found[0][0]["steps"]), f"{flops:.2g}"])
    return rows


def by_cost(records: Records, family: str, tasks: int) -> Table:
    """What each variant costs."""
    rows = [["budget", "variant", "score", "FLOPs in all", "parameters that act", "minutes"]]
    kinds = {
        (cell.budget, cell.batch, cell.variant)
        for cell in records
        if (cell.family, cell.tasks) == (family, tasks) and cell.budget in BUDGETS and cell.variant not in ADDITIONS
    }
    for kind in sorted(kinds, key=_order):
        found = [record for _, record in _seeds(records, Cell(family, tasks, *kind))]
        flops, parameters, seconds = (mean(each[name] for each in found) for name in ("flops", "parameters", "seconds"))
        score = _spread([each["score"] for each in found])
        rows.append([BUDGETS[kind[0]], label(kind), score, f"{flops:.2g}", f"{parameters:,.0f}", f"{seconds / 60:.1f}"])
    return rows


def cosines(records: Records, family: str) -> Table:
    """How far gradients of tasks agree, after 10 %, 50 % and all of a dense training."""
    rows = [["budget", "batch", "tasks", "10 %", "50 %", "end"]]
    for cell in sorted(records, key=lambda cell: (cell.batch, cell.budget, cell.tasks)):
        found = records[cell].get("cosines")
        if found and cell.family == family and cell.seed == 0 and cell.budget in BUDGETS:
            rows.append([BUDGETS[cell.budget], cell.batch, str(cell.tasks), *(f"{value:.3f}" for value in found)])
    return rows


def additions(records: Records) -> Table:
    """Scores of old and new tasks when some were added, and of the old ones before."""
    rows = [["way", "old tasks before", "old tasks after", "new tasks", "steps", "FLOPs added"]]
    for variant in ADDITIONS:
        found = [(cell, record) for cell, record in records.items() if cell.variant == variant and cell.base in records]
        for cell, record in found:
            assert cell.base is not None
            before, old, new = records[cell.base], record["scores"][:-ADDED_TASKS], record["scores"][-ADDED_TASKS:]
            numbers = [f"{value:.1f}" for value in (before["score"], mean(old), mean(new))]
            rows.append([variant, *numbers, str(record["steps"]), f"{record['flops'] - before['flops']:.2g}"])
    return rows


def _seeds(records: Records, wanted: Cell) -> list[tuple[Cell, dict[str, Any]]]:
    key = (wanted.family, wanted.tasks, wanted.budget, wanted.batch, wanted.variant)
    return [
        (cell, record)
        for cell, record in records.items()
        if (cell.family, cell.tasks, cell.budget, cell.batch, cell.variant) == key
    ]


def _order(kind: Kind) -> tuple[int, str, int, str]:
    kinds = ("dense", "wide", *GROUPINGS)
    return list(BUDGETS).index(kind[0]), kind[1], kinds.index(kind[2].partition("+")[0]), kind[2]


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
