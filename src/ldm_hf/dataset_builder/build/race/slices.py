"""Slices of runs that race: what one is, where it lies, and what it showed. ``slice_training.py`` makes them."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.reference.request import Progress, RunRequest
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError, LDMError, StorageError
from ldm_hf.files import replacing

RACES_FOLDER = "_races"
RESULT = "result.json"
DEGENERATE = "degenerate: "
"""How the reason begins why a run is not fit that has flags."""

RECORDING, POLICY, STATE, EPISODES = "recording", "policy", "state.pt", "episodes.npz"


def race_folder(root: Path, environment: str) -> Path:
    """Where an environment's race lies under a data folder."""
    parsed = EnvironmentId.parse(environment)
    return root / RACES_FOLDER / parsed.library / parsed.config_name


def slice_folder(root: Path, request: RunRequest, number: int) -> Path:
    """Where a slice of a run lies."""
    return race_folder(root, request.environment) / request.name / f"slice-{number}"


@dataclass(frozen=True)
class SliceResult:
    """What a slice showed.

    Attributes:
        failure: why it could not be made; None if it was.
        transitions: that the slice trained for.
        total: that the run has trained for, up to its end.
        training: returns of the last third of its training episodes, by their start; None if none ended.
        deterministic: returns of the policy that it left, acting deterministically.
        confirmed: further such returns, on other seeds, where those before came near to known good.
        planned: transitions of the whole run by which its schedules moved.
        rate: transitions a second of a core, of the second half of its training; 0 where nothing was learned in it.
        overhead: seconds of a core that it took beside training: for the ends of episodes, and for scoring.
        estimate: seconds of a core that it was meant to take.
        seconds: of a core, that it took; machines and what else they do differ, so that results differ in this and in what
            follows from it, the lengths of later slices.
    """

    failure: str | None = None
    transitions: int = 0
    total: int = 0
    training: Sample | None = None
    deterministic: tuple[float, ...] = ()
    confirmed: tuple[float, ...] = ()
    planned: int = 0
    rate: float = 0.0
    overhead: float = 0.0
    estimate: float = 0.0
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Write the result into its slice's folder."""
        (folder / RESULT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "SliceResult":
        """Read the result of a slice; ``DatasetFormatError`` if it is damaged."""
        try:
            values: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            training = None if values["training"] is None else Sample(**values["training"])
            lists = {name: tuple(values[name]) for name in ("deterministic", "confirmed")}
            return cls(**{**values, **lists, "training": training})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetFormatError(f"{folder} holds no result of a slice: {error}") from error


@dataclass(frozen=True)
class SliceJob:
    """A slice to be made, from the state that the slice before it left.

    Attributes:
        request: the run; its ``timesteps`` are the most that its replay buffer holds.
        root: data folder.
        number: of the slice, from 0.
        transitions: to train for.
        planned: transitions of the run if it wins its race, by which schedules move.
        target: deterministic return near enough to known good to be confirmed on other seeds; None if that is not known.
        seconds: estimate of its time on one core.
        memory: estimate of its memory, in bytes.
        images: whether its policy reads images.
    """

    request: RunRequest
    root: Path
    number: int
    transitions: int
    planned: int
    target: float | None
    seconds: float
    memory: int
    images: bool = False

    decides = True  # what runs next depends on it

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.request.environment} {self.request.candidate.name} slice {self.number}"

    @property
    def folder(self) -> Path:
        """Where its result lies."""
        return slice_folder(self.root, self.request, self.number)

    @property
    def is_done(self) -> bool:
        """Whether it is."""
        return (self.folder / RESULT).is_file()

    @property
    def amount(self) -> int:
        """For progress bars: seconds of a core."""
        return round(self.seconds)

    @property
    def wants_gpu(self) -> bool:
        """Whether it gains from one."""
        return self.images

    def on(self, device: str) -> "SliceJob":
        """The same job, which trains on another device."""
        return replace(self, request=replace(self.request, device=device))

    def execute(self, progress: Progress = lambda stage, done, total: None) -> None:
        """Make the slice; one that fails by itself is a result too.

        Raises:
            StorageError: the disk is full, which says nothing of the run.
        """
        from ldm_hf.dataset_builder.build.race.slice_training import train_slice

        try:
            train_slice(self, progress)
        except StorageError:
            raise
        except LDMError as error:
            self.fail(f"failed: {error}")

    def fail(self, reason: str) -> None:
        """Record that the slice cannot be made."""
        with replacing(self.folder) as folder:
            folder.mkdir()
            SliceResult(reason, estimate=self.seconds).write(folder)

    def describe(self) -> str:
        """A line on what it showed."""
        result = SliceResult.read(self.folder)
        if result.failure is not None:
            return f"{self.name}: {result.failure}"
        training = "no episode" if result.training is None else f"{result.training.mean:.4g}"
        confirmed = f", confirmed {Sample.of(result.confirmed).mean:.4g}" if result.confirmed else ""
        return (
            f"{self.name}: {result.total:,} transitions, training {training}, "
            f"deterministic {Sample.of(result.deterministic).mean:.4g}{confirmed}, {result.seconds:.0f} s"
        )


@dataclass(frozen=True)
class KeepJob:
    """Writes a run from its slices, up to the one whose policy is best, and judges it.

    Attributes:
        request: the run.
        root: data folder.
        best: the slice whose policy is the run's.
        seconds, memory, images: as of ``SliceJob``.
    """

    request: RunRequest
    root: Path
    best: int
    seconds: float
    memory: int
    images: bool = False

    decides = True
    wants_gpu = False

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.request.environment} {self.request.candidate.name} written"

    @property
    def result(self) -> Path:
        """The file that says that it is done, and what became of the run."""
        return race_folder(self.root, self.request.environment) / self.request.name / f"kept-{self.best}.json"

    @property
    def is_done(self) -> bool:
        """Whether it is."""
        return self.result.is_file()

    @property
    def amount(self) -> int:
        """For progress bars."""
        return round(self.seconds)

    def on(self, device: str) -> "KeepJob":
        """The same job: it gains nothing from a device."""
        return self

    def execute(self, progress: Progress = lambda stage, done, total: None) -> None:
        """Write the run; one that cannot be written is a result too. Raises as ``SliceJob.execute``."""
        from ldm_hf.dataset_builder.build.race.slice_training import keep_run

        try:
            keep_run(self, progress)
        except StorageError:
            raise
        except LDMError as error:
            self.fail(f"failed: {error}")

    def fail(self, reason: str) -> None:
        """Record that the run cannot be written."""
        from ldm_hf.dataset_builder.format.records import RunRecord

        RunRecord(self.request.environment, self.request.name, reason, None).write(self.request.folder(self.root))
        self.finish(reason, ())

    def finish(self, dropped: str | None, deterministic: tuple[float, ...]) -> None:
        """Record what became of the run: why it was dropped, if it was, and its policy's returns on fresh seeds."""
        with replacing(self.result) as temporary:
            values = {"dropped": dropped, "deterministic": list(deterministic), "best": self.best}
            temporary.write_text(json.dumps(values), encoding="utf-8")

    def describe(self) -> str:
        """A line on what became of the run."""
        values = read_kept(self.result)
        kept = "kept" if values["dropped"] is None else f"dropped, {values['dropped']}"
        return f"{self.request.environment} {self.request.candidate.name}: {kept}"


def read_kept(path: Path) -> dict[str, Any]:
    """What ``KeepJob.finish`` wrote."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: values[name] for name in ("dropped", "deterministic", "best")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetFormatError(f"{path} does not say what became of a run: {error}") from error
