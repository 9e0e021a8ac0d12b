"""Draw docs/design.svg: the parts of the package, and which imports which, read from the code.

python scripts/draw_design.py
"""

import ast
import html
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src/ldm_hf"
OUTPUT = Path(__file__).parents[1] / "docs/design.svg"

PARTS = {
    "cli": "the ldm command",
    "experiments": "what is not LDM-v0",
    "demo": "a page to watch a model",
    "serving": "a model for many clients",
    "gallery": "a page per environment",
    "export": "ONNX, the browser",
    "finetuning": "a model on a new task",
    "training": "the loop, the mixture",
    "evaluation": "rollouts, scores, reports",
    "dataset_builder": "references, recording, the bank",
    "executors": "where jobs run",
    "env_registry": "environments, isolated",
    "hub": "loading, publishing",
    "utils": "files, processes, progress",
    "modeling": "the model and its processor",
}
"""The folders that are drawn, and what each is in a few words."""

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 210, 46, 26, 50


def imports() -> dict[str, set[str]]:
    """For each part, those that its files import, also inside functions."""
    found = {}
    for part in PARTS:
        trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / part).rglob("*.py"))
        nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules = [node.module for node in nodes if node.module and node.module.startswith("ldm_hf.")]
        found[part] = {module.split(".")[1] for module in modules} & (set(PARTS) - {part})
    return found


def reduced(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without arrows that a longer way says already."""

    def reached(part: str) -> set[str]:
        return arrows[part].union(*(reached(other) for other in arrows[part]))

    return {
        part: {one for one in own if not any(one in reached(other) for other in own - {one})}
        for part, own in arrows.items()
    }


def ranks(arrows: dict[str, set[str]]) -> dict[str, int]:
    """How far each part is from those that nothing imports, by the longest way."""

    def rank(part: str) -> int:
        return 1 + max((rank(other) for other, own in arrows.items() if part in own), default=-1)

    return {part: rank(part) for part in arrows}


def svg() -> str:
    """The drawing: who imports stands above what it imports."""
    arrows = reduced(imports())
    levels = ranks(arrows)
    rows: dict[int, list[str]] = {}
    for part in PARTS:
        rows.setdefault(levels[part], []).append(part)
    width = max(map(len, rows.values())) * (_WIDTH + _GAP_X) + _GAP_X
    places = {}
    for row, parts in rows.items():
        left = (width - len(parts) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for column, part in enumerate(parts):
            places[part] = left + column * (_WIDTH + _GAP_X), 12 + row * (_HEIGHT + _GAP_Y)
    height = 12 + len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 12
    lines = []
    for part in PARTS:
        x, y = places[part]
        for other in sorted(arrows[part]):
            to_x, to_y = places[other]
            start, end = (x + _WIDTH / 2, y + _HEIGHT), (to_x + _WIDTH / 2, to_y - 4)
            bend = f"C{start[0]:.0f},{start[1] + 28:.0f} {end[0]:.0f},{end[1] - 28:.0f}"
            lines.append(
                f'<path d="M{start[0]:.0f},{start[1]:.0f} {bend} {end[0]:.0f},{end[1]:.0f}" marker-end="url(#a)"/>'
            )
    for part, (x, y) in places.items():
        middle = x + _WIDTH / 2
        lines.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="7"/>')
        lines.append(f'<text x="{middle:.0f}" y="{y + 19:.0f}" class="name">{part}</text>')
        lines.append(f'<text x="{middle:.0f}" y="{y + 36:.0f}">{html.escape(PARTS[part])}</text>')
    body = "\n".join(lines)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>The parts of ldm_hf: an arrow is an import, and goes to what is imported</title>
<style>
rect {{ fill: #f1f5f9; stroke: #475569; }} path {{ fill: none; stroke: #64748b; stroke-width: 1.3; }}
text {{ font: 12px system-ui, sans-serif; text-anchor: middle; fill: #334155; }}
.name {{ font-weight: bold; font-size: 13.5px; }}
</style>
<defs><marker id="a" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0,0 L8,4 L0,8 z" style="fill: #64748b; stroke: none"/></marker></defs>
<rect x="0" y="0" width="{width}" height="{height}" style="fill: white; stroke: none"/>
{body}
</svg>
"""


if __name__ == "__main__":
    OUTPUT.write_text(svg(), encoding="utf-8")
