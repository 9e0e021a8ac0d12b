"""What is kept of every run, also of those that failed or were dropped: ``run.json`` in the run's folder."""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format.schema import DATA_FILES, RunInfo
from ldm_hf.errors import DatasetFormatError
from ldm_hf.utils.files import replacing

RECORD = "run.json"
_PACKAGES = ("ldm_hf", "gymnasium", "numpy", "sb3_contrib", "stable_baselines3", "torch")


@dataclass(frozen=True)
class FileRecord:
    """A file of a run.

    Attributes:
        path: within the run's folder.
        bytes: its size.
        sha256: of its content, in hexadecimal.
        chunks: transitions of each chunk of a data file; empty of other files.
    """

    path: str
    bytes: int
    sha256: str
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """A run that has ended, in whatever way.

    Attributes:
        environment: its id.
        run: its name.
        dropped: why its data are not in the dataset; None of a run that is kept.
        info: what its files say; None of a run that failed.
        files: what is in its folder beside the record.
        seconds: that training and recording took; it stands here only, so that equal runs have equal files.
    """

    environment: str
    run: str
    dropped: str | None
    info: RunInfo | None
    files: tuple[FileRecord, ...] = ()
    seconds: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the run broke; a run that is dropped for its returns has not."""
        return self.info is None

    def write(self, folder: Path) -> None:
        """Write ``run.json``."""
        values = {
            "environment": self.environment,
            "run": self.run,
            "dropped": self.dropped,
            "info": None if self.info is None else json.loads(self.info.to_json()),
            "files": [asdict(file) for file in self.files],
            "seconds": self.seconds,
        }
        with replacing(folder / RECORD) as path:
            path.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Read ``run.json``; ``DatasetFormatError`` if it is damaged."""
        path = folder / RECORD
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            info = None if values["info"] is None else RunInfo.from_json(json.dumps(values["info"]), path)
            files = tuple(FileRecord(**{**file, "chunks": tuple(file["chunks"])}) for file in values["files"])
            return cls(values["environment"], values["run"], values["dropped"], info, files, values.get("seconds"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DatasetFormatError):
                raise
            raise DatasetFormatError(f"{path} is not a record of a run: {' '.join(str(error).split())}") from error


def read_records(folder: Path) -> list[RunRecord]:
    """The records of the runs of an environment, sorted by name; ``DatasetFormatError`` if one is damaged."""
    return [RunRecord.read(path.parent) for path in sorted(folder.glob(f"*/{RECORD}"))]


def describe_files(folder: Path) -> tuple[FileRecord, ...]:
    """The files of a run's folder, hashed, but for its record."""
    return tuple(
        FileRecord(
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            sha256(path),
            _chunks(path) if path.match(DATA_FILES) else (),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of what trains and records runs."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _chunks(path: Path) -> tuple[int, ...]:
    metadata = pq.read_metadata(path)
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
