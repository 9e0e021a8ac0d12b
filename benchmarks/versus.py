"""Another commit beside this one: both run the same benchmark in turns, and their figures are compared within each round.

    git worktree add /tmp/before COMMIT
    python benchmarks/versus.py /tmp/before --rounds 5 remote_env.py -- --contenders venv sb3 --rounds 1

What follows ``--`` is passed to both. Each commit runs its own file of that name with its own package, in this installation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ldm_hf.experiments.figures import print_table, write_json

HERE = Path(__file__).resolve().parent.parent
RATES = (
    "_per_s",
    "_per_second",
    "_time_ratio",
    "_over_sync",
    "_over_venv",
)  # endings of figures that say how fast something is


def measure(checkout: Path, script: str, options: list[str]) -> dict[str, float]:
    """Run one benchmark of one checkout; returns the figures that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "figures.json"
        command = [sys.executable, str(checkout / "benchmarks" / script), *options, "--json", str(written)]
        path = os.pathsep.join([str(checkout / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        return {key: value for key, value in json.loads(written.read_text()).items() if key.endswith(RATES)}


def main() -> None:
    """Measure both commits and print their figures and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout of the commit to compare with")
    parser.add_argument("script", help="file in benchmarks/ that takes --json")
    parser.add_argument("options", nargs="*", help="options of that file, after --")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object")
    arguments = parser.parse_args()

    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(arguments.rounds):
        # Which one runs first alternates: the second of two finds files in memory that the first had to read.
        order = [HERE, arguments.before.resolve()][:: 1 if number % 2 else -1]
        measured = {checkout: measure(checkout, arguments.script, arguments.options) for checkout in order}
        now, before = measured[HERE], measured[arguments.before.resolve()]
        for key in sorted(now.keys() & before.keys()):
            found.setdefault(key, []).append((now[key], before[key]))

    rows, figures = [], {}
    for key, pairs in found.items():
        ratios = [now / before for now, before in pairs]
        now, before = (statistics.median(side) for side in zip(*pairs, strict=True))
        figures.update({f"{key}_now": now, f"{key}_before": before, f"{key}_ratio": statistics.median(ratios)})
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append([key, f"{before:,.3g}", f"{now:,.3g}", spread])
    print_table(f"{arguments.script}, {arguments.rounds} rounds", ["", "before", "now", "now / before"], rows)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
