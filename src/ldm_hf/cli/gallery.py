"""``ldm gallery``: a static site of the catalogue."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ldm_hf.utils.dependencies import require


def gallery(
    output: Annotated[Path, typer.Option(help="Folder to write; an earlier gallery there is replaced.")],
    runs: Annotated[
        list[Path] | None, typer.Option(help="Bank, or data folder of `ldm build`: references; repeatable.")
    ] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Model folder with its report; repeatable.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Data folder whose first transitions are shown; repeatable.")
    ] = None,
    videos: Annotated[int, typer.Option(min=0, help="Environments in which the first model is recorded.")] = 0,
) -> None:
    """Write a static site with a page for each environment of the catalogue, and the coverage ledger as its front.

    A page has the environment's spaces, how it is made and fine-tuned on, the returns of random, trivial, reference and
    known good policies and of models, the reference's learning curve, a sample of data, and why it is not further.
    """
    require("`ldm gallery`", "evaluate", *(["video"] if videos else []))
    from ldm_hf.evaluation.coverage import read_records
    from ldm_hf.evaluation.protocol import Protocol
    from ldm_hf.evaluation.report import Report
    from ldm_hf.evaluation.showcase import record_videos
    from ldm_hf.gallery.exhibits import collect
    from ldm_hf.gallery.samples import draw_samples
    from ldm_hf.gallery.site import refuse_others, write_site

    refuse_others(output)
    reports = [Report.load(path) for path in model or ()]
    exhibits, samples = collect(read_records(runs or ()), reports), draw_samples(data or ())
    shown: dict[str, dict[str, str]] = {}
    if videos and model:
        shown = record_videos(model[0], "cpu", reports[0], videos, output, Protocol())
    exhibits = [
        replace(one, sample=samples.get(one.environment), video=shown.get(one.environment, {}).get("file", ""))
        for one in exhibits
    ]
    write_site(exhibits, output, str(model[0]) if model else None)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    typer.echo(f"{output}: {len(exhibits):,} environments, {size / 2**20:.1f} MiB", err=True)
    typer.echo(output)
