"""The commands of datasets that are there: ``ldm check`` and ``ldm convert``."""

import enum
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_hf.cli.common import Output
from ldm_hf.errors import ConfigError, DatasetFormatError, UnknownEnvironmentError
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import sole_writer

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.repository.conversion import Progress
    from ldm_hf.dataset_builder.repository.verification import RunCheck


class Format(str, enum.Enum):
    """A format of episodes that is converted from, and to."""

    minari = "minari"
    lerobot = "lerobot"


def check(
    data: Annotated[
        str, typer.Argument(help="Data folder, one repository, or hf://datasets/<namespace>/<name>[@revision].")
    ],
    environment: Annotated[list[str] | None, typer.Option(help="Id; repeatable. Default: all.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also step the recorded actions in the environments, and compare.")
    ] = False,
) -> None:
    """Check datasets: what manifests say, the SHA-256 of all files, every value of every row.

    Each defect is a line with file and row; exit status 1 if there is one. Observations outside the space that an
    environment declares are counted, and are not defects.
    """
    require("`ldm check`", "data")
    from ldm_hf.dataset_builder.format.storage import open_storages
    from ldm_hf.dataset_builder.repository.verification import check_repository
    from ldm_hf.utils.progress import progress_bar

    runs = defects = 0
    with progress_bar("checking", 0, "row", unit_scale=True) as bar:
        for storage in open_storages(data):
            for found in check_repository(storage, environment, bar.update):
                lines, replayed = found.defects, ""
                if replay and found.dataset is not None and not lines:
                    lines, replayed = _replay(found, bar.update)
                runs, defects = runs + 1, defects + len(lines)
                bar.clear()
                for line in lines or [f"{found.name}: {found.rows:,} rows are right{_remarks(found)}{replayed}"]:
                    typer.echo(line)
    if not runs:
        raise UnknownEnvironmentError(f"{data} has no data of {', '.join(environment or ['any environment'])}")
    if defects:
        raise DatasetFormatError(f"{data} has {defects} defects in {runs} runs, which are listed above")


def _replay(found: "RunCheck", progress: Callable[[int], object]) -> tuple[list[str], str]:
    """What differs when a run is replayed, and a remark if nothing does."""
    from ldm_hf.dataset_builder.repository.replay import replay, why_not

    assert found.dataset is not None
    reason = why_not(found.dataset)
    if reason is not None:
        return [], f"; not replayed: {reason}"
    again = replay(found.dataset, progress)
    if not again.different:
        return [], "; replayed, the environment does the same"
    what = f"{again.different:,} of {again.rows:,} rows differ when they are replayed"
    return [f"{found.where}: {found.name}: {what}, the first at {again.first}"], ""


def _remarks(found: "RunCheck") -> str:
    if not found.outside:
        return ""
    return (
        f"; {found.outside:,} observations lie outside the space that the environment declares, "
        f"the first at {found.first_outside}"
    )


def convert(
    source: Annotated[
        str, typer.Argument(help="With --from, a dataset: Minari id or folder, or LeRobot folder; with --to, an id.")
    ],
    from_: Annotated[
        Format | None, typer.Option("--from", help="Make a run of SOURCE, a dataset of this format, under --output.")
    ] = None,
    to: Annotated[
        Format | None, typer.Option(help="Make a dataset --name of this format of the best run of environment SOURCE.")
    ] = None,
    output: Output = Path("runs/data"),
    environment: Annotated[str | None, typer.Option(help="With --from: id. Default: what the dataset names.")] = None,
    name: Annotated[
        str | None, typer.Option(help="With --to: Minari id of the new dataset, such as cartpole/ppo-v0, or folder.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="With --to: name of the run. Default: the best.")] = None,
) -> None:
    """Convert datasets from Minari and LeRobot (version 3.0), and to them.

    Minari's own datasets are under MINARI_DATASETS_PATH.
    """
    from ldm_hf.utils.progress import progress_bar

    if (from_ is None) == (to is None):
        raise ConfigError("one of --from and --to must be given: minari or lerobot")
    if to and name is None:
        raise ConfigError(f"--to {to.value} needs --name, the id or folder of the new dataset")
    require("`ldm convert`", "minari" if Format.minari in (from_, to) else "data")
    with progress_bar("converting", 0, "episode") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if from_ is not None:
            with sole_writer(output.absolute()):
                made = _read(from_, source, output, environment, progress)
        else:
            assert to is not None and name is not None
            made = _written(to, output, source, name, run, progress)
    typer.echo(made)


def _read(kind: Format, source: str, output: Path, environment: str | None, progress: "Progress") -> str:
    if kind == Format.minari:
        from ldm_hf.dataset_builder.repository.minari_reading import from_minari

        record = from_minari(source, output, environment=environment, progress=progress)
    else:
        from ldm_hf.dataset_builder.repository.lerobot_reading import from_lerobot

        record = from_lerobot(Path(source), output, environment=environment, progress=progress)
    return f"{record.environment}, run {record.run}, in {output}"


def _written(kind: Format, data: Path, environment: str, name: str, run: str | None, progress: "Progress") -> str:
    if kind == Format.minari:
        from ldm_hf.dataset_builder.repository.minari_writing import to_minari

        return str(to_minari(data, environment, name, run=run, progress=progress))
    from ldm_hf.dataset_builder.repository.lerobot_writing import to_lerobot

    return str(to_lerobot(data, environment, Path(name), run=run, progress=progress))
