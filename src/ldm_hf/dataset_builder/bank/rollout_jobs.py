"""Rollouts as jobs: what is rolled out, and by whom; who hands them out does without torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_hf.dataset_builder.bank.rollout_request import ROLLOUT_SETTINGS, RolloutRequest
from ldm_hf.dataset_builder.format.records import RECORD, RunRecord
from ldm_hf.dataset_builder.reference.request import Progress
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import ConfigError, EnvironmentFailure, InvalidValueError, UnsupportedSpaceError
from ldm_hf.executors.base import Executor, JobResult
from ldm_hf.executors.jobs import run_jobs
from ldm_hf.utils.files import remove, remove_leftovers


@dataclass(frozen=True)
class RolloutJob:
    """Rollouts to be made, for an executor."""

    request: RolloutRequest
    root: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.request.environment} {self.request.run}"

    @property
    def memory(self) -> int:
        """Estimate, in bytes: what torch and ten environments take, mostly."""
        return 2**30

    @property
    def wants_gpu(self) -> bool:
        """Its networks are small."""
        return False

    @property
    def result(self) -> Path:
        """The file that says that it is done."""
        return self.request.folder(self.root) / RECORD

    @property
    def is_done(self) -> bool:
        """Whether these rollouts are there: of this policy, with these settings."""
        if not self.result.is_file():
            return False
        record = RunRecord.read(self.result.parent)
        info = record.info
        if info is None or (record.dropped is not None and self.request.keep == "all"):
            return False
        found = {key: info.hyperparameters[key] for key in ROLLOUT_SETTINGS if key in info.hyperparameters}
        return found == self.request.settings and info.seed == self.request.seed

    def refuse_to_replace(self) -> None:
        """Raise ``ConfigError`` if a run of this name of another policy is there; those of the same one are made again."""
        info = RunRecord.read(self.result.parent).info if self.result.is_file() else None
        key = "policy_sha256"
        if info is not None and info.hyperparameters.get(key) != self.request.settings[key]:
            raise ConfigError(
                f"{self.result.parent} is a run of another policy: give this one another name by --run, or choose another "
                "--output"
            )

    def on(self, device: str) -> "RolloutJob":
        """The same job."""
        return self

    def execute(self, progress: Progress = lambda stage, done, total: None) -> None:
        """Make the rollouts; that an environment broke is a result too.

        Raises:
            ConfigError, CheckpointError: the policy is none of this environment.
            StorageError: the disk is full.
        """
        from ldm_hf.dataset_builder.bank.rollouts import build_rollouts

        try:
            build_rollouts(self.request, self.root, progress)
        except (EnvironmentFailure, UnsupportedSpaceError, InvalidValueError) as error:
            self.fail(f"failed: {error}")

    def fail(self, reason: str) -> None:
        """Record that the rollouts cannot be made."""
        remove(self.result.parent)
        RunRecord(self.request.environment, self.request.run, reason, None).write(self.result.parent)


def run_rollouts(
    jobs: Sequence[RolloutJob],
    executor: Executor,
    root: Path,
    say: Callable[[str], None],
    watch: Callable[[Executor, Sequence[RolloutJob]], None] = lambda executor, jobs: None,
) -> list[RunRecord]:
    """Make the rollouts that are not there, and describe the libraries again. Killed, it may be called again.

    Args:
        jobs: what to make.
        executor: where; the caller closes it.
        root: data folder.
        say: called with a line for each that ends.
        watch: called now and then, with the jobs that run.

    Returns:
        The records of all of them, those that were there before too.

    Raises:
        ConfigError: a run of another policy would be replaced; nothing was done then.
        LDMError: something that no job can get past.
    """
    for job in jobs:
        remove_leftovers(job.result.parent.parent)
        job.refuse_to_replace()

    def ended(result: JobResult, again: bool) -> None:
        if again:
            say(f"{result.job.name}: {result.crash}; once more")
            return
        if result.crash is not None and not result.job.is_done:
            result.job.fail(f"failed: {result.crash}")
        say(describe(RunRecord.read(result.job.result.parent)))

    run_jobs(executor, [job for job in jobs if not job.is_done], ended, lambda running, _: watch(executor, running))
    for library in dict.fromkeys(EnvironmentId.parse(job.request.environment).library for job in jobs):
        update_repository(root / library)
    return [RunRecord.read(job.result.parent) for job in jobs]


def describe(record: RunRecord) -> str:
    """A line on rollouts that have ended."""
    name = f"{record.environment}, run {record.run}"
    if record.info is None or record.dropped is not None:
        return f"{name}: dropped, {record.dropped}"
    info = record.info
    return f"{name}: {info.num_transitions:,} transitions, the policy returns {info.deterministic_return:.4g}"
