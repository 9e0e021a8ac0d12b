"""What people read of a dataset repository: its card, and the plot of its learning curves."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ldm_hf.dataset_builder.anchors.anchors import worth
from ldm_hf.dataset_builder.format.schema import EPISODES_FILE, MANIFEST, RunInfo
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.utils.files import replacing

NOTES_MARK = "<!-- What is written below this line is kept when the dataset is published again. -->\n"
"""Last line of a card. What the Hub's card has below it is its owner's."""

_HUB_LICENCES = {
    "AGPL-3.0-or-later": "agpl-3.0",
    "Apache-2.0": "apache-2.0",
    "BSD-2-Clause": "bsd-2-clause",
    "BSD-3-Clause": "bsd-3-clause",
    "CC-BY-4.0": "cc-by-4.0",
    "CC0-1.0": "cc0-1.0",
    "GPL-2.0-only": "gpl-2.0",
    "GPL-3.0-only": "gpl-3.0",
    "GPL-3.0-or-later": "gpl-3.0",
    "LGPL-3.0-only": "lgpl-3.0",
    "LGPL-3.0-or-later": "lgpl-3.0",
    "MIT": "mit",
    "MPL-2.0": "mpl-2.0",
    "Unlicense": "unlicense",
    "Zlib": "zlib",
    "zlib": "zlib",
}
"""The Hub's names of licences (https://huggingface.co/docs/hub/repositories-licenses) by SPDX expression."""

Row = dict[str, Any]


def render_card(library: str, manifest: Sequence[Row], runs: Sequence[Row]) -> str:
    """The card of a library's repository, from the rows of its manifest and of its table of runs."""
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        resources.files("ldm_hf.dataset_builder.repository").joinpath("dataset_card.md").read_text(encoding="utf-8")
    )
    infos = [RunInfo.from_json(row["info"], MANIFEST) for row in manifest]
    licences = sorted({info.licence or "unknown" for info in infos})
    text = template.render(
        library=library,
        rows=manifest,
        configs=list(dict.fromkeys(row["config"] for row in manifest)),
        size=sum(row["rows"] for row in manifest),
        dropped=[run for run in runs if not run["kept"]],
        licences=licences,
        hub_licences=hub_licences(licences),
        has_episodes=any(entry["path"].endswith(f"/{EPISODES_FILE}") for row in manifest for entry in row["files"]),
        infos=infos,
        worth=[_worth(info) for info in infos],
    )
    return f"{text.rstrip()}\n\n{NOTES_MARK}"


def _worth(info: RunInfo) -> tuple[str, ...]:
    """What the deterministic policy of a run is worth, as cells of the table."""
    if info.assessment is None:
        return worth(info.environment, info.deterministic_return, None)
    return worth(info.environment, info.deterministic_return, info.assessment.anchors, info.assessment.successes)


def hub_licences(licences: Sequence[str]) -> list[str]:
    """The Hub's names of licences given as SPDX expressions; ``other`` where it has none."""
    return sorted({_HUB_LICENCES.get(licence, "other") for licence in licences}) or ["other"]


def plot_curves(runs: Sequence[Row], path: Path) -> None:
    """One small plot per environment, one line per run; dropped runs are grey. At most the first 48 environments."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    shown: dict[str, list[Row]] = {}
    for run in runs:
        if run.get("curve_returns"):
            shown.setdefault(run["environment"], []).append(run)
    environments = list(shown)[:48]
    if not environments:
        return
    columns = min(4, len(environments))
    rows = -(-len(environments) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, environment in zip(axes, environments, strict=False):
        for run in shown[environment]:
            style = {"linewidth": 1.2, "label": run["run"]} if run["kept"] else {"linewidth": 0.8, "color": "0.75"}
            axis.plot(run["curve_transitions"], run["curve_returns"], **style)
        axis.set_title(EnvironmentId.parse(environment).name, fontsize=8)
        axis.tick_params(labelsize=6)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=5)
    for axis in axes[len(environments) :]:
        axis.axis("off")
    figure.supxlabel("transitions", fontsize=8)
    figure.supylabel("mean return of the training episodes", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
