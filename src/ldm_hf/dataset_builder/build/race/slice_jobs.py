"""Slices of runs that race, and the writing of the run that is kept, as jobs of an executor."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ldm_hf.dataset_builder.build.race.slice_results import RESULT, SliceResult, race_folder, read_kept, slice_folder
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.reference.request import Progress, RunRequest
from ldm_hf.errors import LDMError, StorageError
from ldm_hf.utils.files import replacing


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
        """Record that the run cannot be written; the shorter one that it continues, if that is kept, stays as it is."""
        from ldm_hf.dataset_builder.format.records import RECORD, RunRecord

        folder = self.request.folder(self.root)
        if not (folder / RECORD).is_file() or RunRecord.read(folder).dropped is not None:
            RunRecord(self.request.environment, self.request.name, reason, None).write(folder)
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
