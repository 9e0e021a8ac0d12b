"""The gallery's files: a front page with the ledger, a table of all environments, and a page for each."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.coverage import MEANINGS, STAGES
from ldm_hf.export.vendor import npm_files
from ldm_hf.gallery.charts import curve
from ldm_hf.gallery.exhibits import Exhibit, parts
from ldm_hf.hub.spaces import PAGE
from ldm_hf.utils.files import replacing

_TEMPLATES = Path(__file__).with_name("templates")
_ASSETS = "assets"
_TABLES = {
    "package": "datatables.net",
    "version": "3.1.5",
    "sha512": "phu9fVz1cOhD7kZDO5Ztj15qwghCkmdwX5AezLi+PxfMtnFAq0itpewvXzdwdr6bOwPqO2zuXsXWUU5x3wQptw==",
    "files": {"js/dataTables.min.mjs": "dataTables.js"},
}
"""The library that sorts, searches and pages tables (MIT licence)."""


@dataclass(frozen=True)
class LibraryRow:
    """One library on the front page: its slug, licence, Python, and how many environments passed each stage."""

    slug: str
    licence: str
    python: str
    homepage: str
    counts: dict[str, int]


def write_site(exhibits: Sequence[Exhibit], folder: Path, model: str | None) -> None:
    """Write the site; what an earlier gallery wrote there is replaced, videos of ``exhibits`` are kept.

    Args:
        exhibits: of ``collect``, with videos, which lie in ``folder`` already, and samples.
        folder: where to.
        model: what the lines name that fine-tune; None shows none.

    Raises:
        HubError: the library for tables cannot be fetched.
    """
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    pages.filters["number"] = lambda value: f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    pages.globals["parts"], pages.globals["chart"] = parts, _chart
    libraries = _libraries(exhibits)
    with replacing(folder) as made:
        made.mkdir()
        for video in {one.video for one in exhibits if one.video}:
            (made / video).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / video, made / video)
        (made / _ASSETS).mkdir()
        kept = npm_files(**_TABLES)  # type: ignore[arg-type]
        shutil.copyfile(kept / "dataTables.js", made / _ASSETS / "dataTables.js")
        for name in ("style.css", "gallery.js"):
            shutil.copyfile(_TEMPLATES / name, made / _ASSETS / name)
        counts = Counter(stage for one in exhibits for stage in one.place.reached)
        stages = [(stage, counts[stage], MEANINGS[stage]) for stage in STAGES]
        front = {"libraries": libraries, "stages": stages, "exhibits": exhibits, "root": ""}
        for name in ("index.html", "environments.html"):
            (made / name).write_text(pages.get_template(name).render(front), encoding="utf-8")
        page = pages.get_template("environment.html")
        for one in exhibits:
            (made / one.page).parent.mkdir(exist_ok=True)
            (made / one.page).write_text(page.render(one=one, model=model, stages=STAGES, root="../"), encoding="utf-8")
        (made / PAGE).write_text('{"sdk": "static"}\n')
        (made / "README.md").write_text(_CARD.format(number=len(exhibits), libraries=len(libraries)), encoding="utf-8")


def refuse_others(folder: Path) -> None:
    """See that a folder is new, empty, or an earlier gallery; ``ConfigError`` otherwise, because it would be replaced."""
    ours = (folder / PAGE).is_file() and (folder / _ASSETS / "gallery.js").is_file()
    if folder.exists() and not ours and any(one.name != "videos" for one in folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than a gallery: choose another --output")


def _libraries(exhibits: Sequence[Exhibit]) -> list[LibraryRow]:
    rows: dict[str, LibraryRow] = {}
    for one in exhibits:
        manifest = one.manifest
        row = rows.setdefault(
            one.library,
            LibraryRow(
                one.library, manifest.licence, one.validated.python, manifest.homepage, dict.fromkeys(STAGES, 0)
            ),
        )
        for stage in one.place.reached:
            row.counts[stage] += 1
    return [rows[slug] for slug in sorted(rows)]


def _chart(one: Exhibit) -> str:
    """The learning curve of a reference as SVG, empty where there is none."""
    info = one.reference
    if info is None or len(info.curve.transitions) < 2:
        return ""
    lines = [(name, value) for name, value, _ in one.scores() if name in ("random policy", "known good")]
    label = f"mean return over {info.num_transitions:,} transitions of training"
    return curve(info.curve.transitions, info.curve.returns, lines, label)


_CARD = """---
title: Environments of Large Decision Models
emoji: 🗺️
colorFrom: blue
colorTo: yellow
sdk: static
app_file: index.html
pinned: false
license: apache-2.0
short_description: A page for each of thousands of RL environments
tags:
- reinforcement-learning
- gymnasium
- ldm
---

# Environments of Large Decision Models

{number:,} environments of {libraries} libraries: what each is, how far it has come, and what acts there how well.

Made by `ldm gallery` of `ldm_hf`.
"""
