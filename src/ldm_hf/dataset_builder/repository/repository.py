"""A library's dataset repository: its manifest, the table of all its runs, its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format.records import RECORD, RunRecord, read_records
from ldm_hf.dataset_builder.format.schema import MANIFEST, RunInfo
from ldm_hf.dataset_builder.repository.card import plot_curves, render_card
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError
from ldm_hf.utils.files import remove_leftovers, replacing

RUNS, CARD, CURVES = "runs.parquet", "README.md", "learning_curves.png"

_FILE = pa.struct(
    [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("chunks", pa.list_(pa.int32()))]
)
_SCORES = [(name, pa.float64()) for name in ("first10", "last10", "deterministic_return")]
MANIFEST_SCHEMA = pa.schema(
    [
        *(("environment", pa.string()), ("config", pa.string()), ("run", pa.string()), ("rows", pa.int64())),
        *_SCORES,
        *(("algorithm", pa.string()), ("observations", pa.string()), ("actions", pa.string())),
        *(("files", pa.list_(_FILE)), ("info", pa.string())),
    ]
)
_RUNS_SCHEMA = pa.schema(
    [
        *(("environment", pa.string()), ("run", pa.string()), ("kept", pa.bool_()), ("reason", pa.string())),
        *_SCORES,
        *(("transitions", pa.int64()), ("episodes", pa.int64()), ("seed", pa.int64())),
        *(("curve_transitions", pa.list_(pa.int64())), ("curve_returns", pa.list_(pa.float64()))),
    ]
)


Row = dict[str, Any]


@dataclass(frozen=True)
class Description:
    """What describes a dataset repository: its manifest, the table of its runs, and what is made from these two.

    Attributes:
        manifest: one row per run that is kept.
        runs: one row per run, those that failed or were dropped too.
    """

    manifest: Sequence[Row]
    runs: Sequence[Row]

    def write(self, folder: Path, library: str, notes: str = "") -> None:
        """Write manifest, table of runs, curves and card to a folder; the card ends with the notes."""
        with replacing(folder / MANIFEST) as path:
            pq.write_table(pa.Table.from_pylist(list(self.manifest), MANIFEST_SCHEMA), path, write_page_checksum=True)
        with replacing(folder / RUNS) as path:
            pq.write_table(pa.Table.from_pylist(list(self.runs), _RUNS_SCHEMA), path, write_page_checksum=True)
        plot_curves(self.runs, folder / CURVES)
        with replacing(folder / CARD) as path:
            path.write_text(render_card(library, self.manifest, self.runs) + notes, encoding="utf-8")


def run_records(repository: Path) -> list[RunRecord]:
    """The records of all runs of a library, sorted by environment and run."""
    return [record for folder in sorted(repository.iterdir()) if folder.is_dir() for record in read_records(folder)]


def update_repository(repository: Path) -> None:
    """Rewrite manifest, table of runs, curves and card of a library from the records of its runs.

    Nobody else may be writing to it. A library none of whose runs is kept has an empty manifest.

    Raises:
        DatasetFormatError: there are no runs, a record is damaged, or a file of a run that is kept is not the one recorded.
    """
    remove_leftovers(repository)
    records = run_records(repository)
    if not records:
        raise DatasetFormatError(f"{repository} holds no runs: there is no <config>/<run>/{RECORD} in it")
    kept = [_manifest_row(record, record.info) for record in records if record.dropped is None and record.info]
    for entry in (entry for row in kept for entry in row["files"]):
        path = repository / entry["path"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DatasetFormatError(f"{path} is missing or has another size than the record of its run says")
    Description(kept, [_run_row(record) for record in records]).write(repository, repository.name)


def _manifest_row(record: RunRecord, info: RunInfo) -> dict[str, Any]:
    config = EnvironmentId.parse(info.environment).config_name
    return {
        "environment": info.environment,
        "config": config,
        "run": info.run,
        "rows": info.num_transitions,
        "first10": info.first10,
        "last10": info.last10,
        "deterministic_return": info.deterministic_return,
        "algorithm": info.algorithm,
        "observations": _describe(info.observation_space),
        "actions": _describe(info.action_space),
        "files": [{**vars(file), "path": f"{config}/{info.run}/{file.path}"} for file in record.files],
        "info": info.to_json(),
    }


def _run_row(record: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "environment": record.environment,
        "run": record.run,
        "kept": record.dropped is None,
        "reason": record.dropped or "",
    }
    info = record.info
    if info is not None:
        row |= {name: getattr(info, name) for name in ("first10", "last10", "deterministic_return", "seed")}
        row |= {"transitions": info.num_transitions, "episodes": info.num_episodes}
        row |= {"curve_transitions": info.curve.transitions, "curve_returns": info.curve.returns}
    return row


def _describe(space: dict[str, Any]) -> str:
    """A space in a few words, for a table."""
    kind = space["type"]
    if kind == "Dict":
        return f"Dict({', '.join(f'{name}: {_describe(part)}' for name, part in space['spaces'].items())})"
    if kind == "Tuple":
        return f"Tuple({', '.join(map(_describe, space['spaces']))})"
    if kind == "Text":
        return "Text"
    size = space["shape"] if kind == "Box" else space["nvec"] if kind == "MultiDiscrete" else space["n"]
    return f"{kind}({' x '.join(map(str, size)) if isinstance(size, list) else size})"
