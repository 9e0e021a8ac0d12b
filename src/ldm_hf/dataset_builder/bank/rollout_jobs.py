"""Rollouts as jobs: what is rolled out, and by whom; who hands them out does without torch."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.format.records import RECORD, RunRecord
from ldm_hf.dataset_builder.format.schema import POLICY_FOLDER, environment_folder
from ldm_hf.dataset_builder.reference.request import Progress
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import ConfigError, EnvironmentFailure, InvalidValueError, UnsupportedSpaceError
from ldm_hf.executors.base import Executor, JobResult
from ldm_hf.executors.jobs import run_jobs
from ldm_hf.files import remove, remove_leftovers

NOISE = (*[0.0] * 8, *[0.1] * 4, *[0.3] * 2, *[1.0] * 2)
"""Noise of each of 16 streams: half of the transitions are the policy's own, the others lead it astray, a few all the time.

Experts with noise of several levels, labelled by what the expert would do, are what Vintix (arXiv 2501.19400) and AD-eps
(arXiv 2312.12275) train on; JAT (arXiv 2402.09844) on experts only.
"""

ROLLOUT_SETTINGS = ("noise", "transitions", "policy_sha256")
"""Keys of the hyperparameters of a run that say how it was rolled out."""

ROLLOUTS_OF = "rollouts of "
"""Beginning of the source of a run that was rolled out."""


@dataclass(frozen=True)
class RolloutRequest:
    """What is rolled out.

    Attributes:
        environment: id of the environment.
        source: of the policy, see ``open_source``.
        timesteps: transitions to record; episodes that run then are played to their ends.
        seed: of the streams and of the noise.
        noise: of each stream, from 0 to 1. Of actions that are whole numbers, it is the share that is drawn at random; to
            real numbers, Gaussian noise is added whose standard deviation is this share of half their range.
        keep: ``fit`` keeps the data of a policy that passes curation, ``all`` of any.
        normalizer: a file of ``VecNormalize``, of an SB3 zip.
        run: name of the run; by default that of the source.
    """

    environment: str
    source: str
    timesteps: int
    seed: int = 0
    noise: tuple[float, ...] = NOISE
    keep: str = "fit"
    normalizer: str | None = None
    run: str = ""

    def __post_init__(self) -> None:
        if not self.noise or not all(0 <= level <= 1 for level in self.noise):
            raise ConfigError(f"noise must be levels from 0 to 1, got {list(self.noise)}")
        if self.timesteps < 1:
            raise ConfigError(f"transitions must be at least 1, got {self.timesteps}")
        if not self.run:
            path = Path(self.source.rpartition(":")[2])
            stem = (path.parent if path.name == POLICY_FOLDER else path).name.partition(".")[0] or "policy"
            object.__setattr__(self, "run", f"{stem}-rollouts-{self.seed}")
        if not self.run.replace("-", "").replace("_", "").replace(".", "").isalnum() or self.run.startswith("."):
            raise ConfigError(f"the name of a run must be letters, digits, '-', '_' and '.', got {self.run!r}")

    @property
    def settings(self) -> dict[str, Any]:
        """For the record: what tells these rollouts from others of the same name."""
        values = (list(self.noise), self.timesteps, fingerprint(self.source))
        return dict(zip(ROLLOUT_SETTINGS, values, strict=True))

    def folder(self, root: Path) -> Path:
        """Where the run lies under a data folder."""
        return environment_folder(root, self.environment) / self.run


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
        info = RunRecord.read(self.result.parent).info
        if info is None:
            return False
        found = {key: info.hyperparameters.get(key) for key in self.request.settings}
        return found == self.request.settings and info.seed == self.request.seed

    def refuse_to_replace(self) -> None:
        """Raise ``ConfigError`` if a run of this name of another policy is there; those of the same one are made again."""
        info = RunRecord.read(self.result.parent).info if self.result.is_file() else None
        key = ROLLOUT_SETTINGS[-1]
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
        if not result.job.is_done:
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


def fingerprint(source: str) -> str:
    """A hash of a policy's files, or of the name of a function and of the text that lies here."""
    found, path = hashlib.sha256(), Path(source)
    module, _, function = source.rpartition(":")
    if path.is_dir():  # records say when and where a policy was made, not what it is
        files = [one for name in ("policy.json", "*.safetensors", "*.py") for one in sorted(path.rglob(name))]
    else:
        found.update(function.encode())
        files = [one for one in (path, path.with_suffix(".json"), module_file(module)) if one.is_file()]
    for one in files:
        found.update(one.name.encode() + b"\0" + one.read_bytes())
    return found.hexdigest()[:16]


def module_file(module: str) -> Path:
    """Where the text of a module, or of a file with a function, would lie here."""
    return Path(module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
