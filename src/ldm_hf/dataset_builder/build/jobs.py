"""The unit of work: one run, of the ranking or of the corpus. Its result is a file; that file is what says it is done."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ldm_hf.dataset_builder.curves import LearningCurve
from ldm_hf.dataset_builder.format.records import RECORD, RunRecord
from ldm_hf.dataset_builder.reference.request import Progress, RunRequest
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError, LDMError, StorageError
from ldm_hf.utils.files import replacing

RANKING_FOLDER = "_ranking"


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        request: what to run.
        root: data folder.
        ranking: whether only its learning curve is wanted.
        seconds: estimate of its time on one core.
        memory: estimate of its memory, in bytes.
        images: whether its policy reads images: it gains from an accelerator.
    """

    request: RunRequest
    root: Path
    ranking: bool
    seconds: float
    memory: int
    images: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        kind = "ranking " if self.ranking else ""
        return f"{kind}{self.request.environment} {self.request.candidate.name}"

    @property
    def result(self) -> Path:
        """The file that says that the job is done."""
        if not self.ranking:
            return self.request.folder(self.root) / RECORD
        parsed = EnvironmentId.parse(self.request.environment)
        return self.root / RANKING_FOLDER / parsed.library / parsed.config_name / f"{self.request.name}.json"

    @property
    def is_done(self) -> bool:
        """Whether it is."""
        return self.result.is_file()

    @property
    def wants_gpu(self) -> bool:
        """Whether it gains from one."""
        return self.images

    @property
    def decides(self) -> bool:
        """Whether what runs next depends on it."""
        return self.ranking

    @property
    def amount(self) -> int:
        """For progress bars: transitions."""
        return self.request.timesteps

    def on(self, device: str) -> "Job":
        """The same job, which trains on another device."""
        return replace(self, request=replace(self.request, device=device))

    def execute(self, progress: Progress = lambda stage, done, total: None) -> None:
        """Make the run and write its result; a run that fails by itself is a result too.

        Raises:
            StorageError: the disk is full, which says nothing of the run.
        """
        from ldm_hf.dataset_builder.reference.run import build_run, train_curve

        try:
            if self.ranking:
                _write_curve(self.result, train_curve(self.request, progress), None)
            else:
                build_run(self.request, self.root, progress)
        except StorageError:
            raise
        except LDMError as error:
            self.fail(f"failed: {error}")

    def fail(self, reason: str) -> None:
        """Record that the run cannot be made."""
        if self.ranking:
            _write_curve(self.result, None, reason)
        else:
            RunRecord(self.request.environment, self.request.name, reason, None).write(self.result.parent)

    def curve(self) -> LearningCurve | None:
        """What the ranking's run showed; None if it failed."""
        try:
            data = json.loads(self.result.read_text(encoding="utf-8"))["curve"]
            return None if data is None else LearningCurve.from_json(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetFormatError(f"{self.result} is not a result of a ranking: {error}") from error

    def describe(self) -> str:
        """A line on what it showed."""
        if self.ranking:
            curve = self.curve()
            return f"{self.name}: " + ("failed" if curve is None else f"{curve.last.mean:.4g}")
        record = RunRecord.read(self.result.parent)
        if record.info is None or record.dropped is not None:
            return f"{self.name}: dropped, {record.dropped}"
        return f"{self.name}: {record.info.first10:.4g} -> {record.info.last10:.4g}"


def _write_curve(path: Path, curve: LearningCurve | None, failure: str | None) -> None:
    with replacing(path) as temporary:
        values = {"curve": None if curve is None else asdict(curve), "failure": failure}
        temporary.write_text(json.dumps(values), encoding="utf-8")
