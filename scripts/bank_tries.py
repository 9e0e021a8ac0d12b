#!/usr/bin/env python
"""Add what races on the bank's environments cost and gave to docs/bank_tries.md: scripts/bank_tries.py RUNS...

RUNS are folders that ``ldm build`` wrote. Environments that the table has from before keep their row unless a race on them
is in RUNS; policies of the bank that no race in the table explains, and what is only on the list, get a row without figures.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bank_tries.md"
LIST = ROOT / "recipes" / "bank" / "environments.txt"
_PASSES = "in the bank"
_WRITTEN = re.compile(r"written and (?:dropped|failed): (.*)")
_HEAD = """# What was tried for the bank

Every environment of [the list](../recipes/bank/environments.txt), which was fixed before it was raced, with what became of
it; `scripts/bank_tries.py` writes this page from the records of the races (`race.json`). *Core minutes* and *transitions*
are those of all candidates of a race, kept or not. Policies without them come from experts, or from races whose records
are gone; of environments without a record it is not known here whether a race on them gave nothing or none was made. How
a policy is dropped is in [racing.md](racing.md) and [datasets.md](datasets.md).

{summary}

| environment | result | policy, or why none | candidates | core minutes | transitions |
|---|---|---|---:|---:|---:|
"""


def race_row(path: Path, in_bank: dict[str, tuple[str, str]]) -> tuple[str, list[str]]:
    """The environment of a race, and its row."""
    race = json.loads(path.read_text(encoding="utf-8"))
    tried = race["candidates"]
    environment = race["environment"]
    minutes = sum(sum(each["seconds"]) for each in tried) / 60
    transitions = sum(each["transitions"][-1] for each in tried if each["transitions"])
    figures = [str(len(tried)), f"{minutes:.1f}", f"{transitions:,}"]
    if environment in in_bank:
        return environment, [*in_bank[environment], *figures]
    if any(each["result"] == "running" for each in tried):
        return environment, ["not finished", "stopped before its end", *figures]
    if any(each["result"] == "kept" for each in tried):
        return environment, ["none", "kept, but flagged: its returns are one number", *figures]
    reasons = {found[1] for each in tried if (found := _WRITTEN.search(each["result"]))}
    return environment, ["none", "; ".join(sorted(reasons)) or tried[0]["result"], *figures]


def bank_policies() -> dict[str, tuple[str, str]]:
    """Of each environment of the bank, whether its policy passes every flag, and what made it, or the flags."""
    found = {}
    for path in sorted((ROOT / "bank").glob("*/*/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        flags = record["info"]["assessment"]["flags"]
        cells = ("in the bank, flagged", f"{record['run']}: {'; '.join(flags)}") if flags else (_PASSES, record["run"])
        found[record["environment"]] = cells
    return found


def listed() -> list[str]:
    """The environments of the list."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def known_rows() -> dict[str, list[str]]:
    """The rows that the page has, by environment."""
    if not PAGE.exists():
        return {}
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def summary(rows: Iterable[list[str]]) -> str:
    """How many environments gave a policy: of all, and of those whose races are known."""
    rows = list(rows)
    raced = [row for row in rows if row[3] != "—" and row[0] != "not finished"]
    made, hours = sum(row[0] == _PASSES for row in raced), sum(float(row[3]) for row in raced) / 60
    in_bank = sum(row[0] == _PASSES for row in rows)
    return (
        f"Of {len(rows)} environments {in_bank} have a policy in the bank that passes every flag. Of {len(raced)} races "
        f"with records, {hours:.1f} core hours, {made} gave one ({made / max(1, len(raced)):.0%} of the environments; "
        "before races, 43 of 120 runs were kept)."
    )


def main(folders: list[Path]) -> None:
    """Write the page."""
    in_bank, rows = bank_policies(), known_rows()
    found = dict(race_row(path, in_bank) for folder in folders for path in sorted(folder.rglob("race.json")))
    for environment in listed():
        made = in_bank.get(environment)
        old = rows.get(environment, ["no record", "", "—", "—", "—"])
        rows[environment] = [*made, *old[2:]] if made else old
    rows |= found
    table = "".join(f"| `{name}` | {' | '.join(row)} |\n" for name, row in sorted(rows.items()))
    PAGE.write_text(_HEAD.format(summary=summary(rows.values())) + table, encoding="utf-8")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
