"""``ldm quickstart``: from real environments to a policy loaded with ``from_pretrained``, step by step and resumable.

Each step writes its result under a temporary name and renames it; a result that is there is a step that is done.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.errors import ConfigError, EnvironmentFailure
from ldm_hf.files import remove_leftovers, replacing, sole_writer
from ldm_hf.processes import run_child
from ldm_hf.progress import progress_bar

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.build.jobs import Job
    from ldm_hf.executors.base import JobResult, Message


@dataclass(frozen=True)
class Reference:
    """How the reference policy of an environment is trained."""

    candidate: Candidate
    timesteps: int


REFERENCES = {
    # Continuous observations, discrete actions.
    "gymnasium/Acrobot-v1": Reference(Candidate("PPO", {"n_steps": 256}, num_envs=8), 100_000),
    "gymnasium/CartPole-v1": Reference(
        # RL Baselines3 Zoo's settings for this environment.
        Candidate(
            "PPO",
            {
                "n_steps": 32,
                "batch_size": 256,
                "gae_lambda": 0.8,
                "gamma": 0.98,
                "n_epochs": 20,
                "learning_rate": 1e-3,
            },
            num_envs=8,
        ),
        100_000,
    ),
    # Discrete observations and actions; optimistic values explore where policy gradients only learn to avoid the cliff.
    "gymnasium/CliffWalking-v1": Reference(
        Candidate(
            "DQN",
            {
                "learning_rate": 1e-3,
                "buffer_size": 50_000,
                "learning_starts": 1000,
                "train_freq": 4,
                "gradient_steps": 4,
                "batch_size": 64,
                "target_update_interval": 1000,
                "exploration_fraction": 0.3,
            },
            num_envs=8,
        ),
        80_000,
    ),
    # Continuous observations and actions.
    "gymnasium/Pendulum-v1": Reference(Candidate("TRPO", {"n_steps": 256, "gamma": 0.9}, num_envs=8), 150_000),
}

TRAINING: dict[str, Any] = {
    "model": "nano",
    "max_steps": 600,
    "train_batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "decay_fraction": 0.3,
    "save_steps": 100,
}


def quickstart(
    output: Path, *, jobs: int, seed: int, steps: int, references: Mapping[str, Reference] | None = None
) -> Path:
    """Train references, train a model on them, load it in a new process and evaluate it.

    Args:
        output: folder for everything; what is finished there is not repeated.
        jobs: processes that train references; half as many threads train the model.
        seed: of everything.
        steps: optimizer steps of the model.
        references: how the reference of each environment is trained, by default ``REFERENCES``.

    Returns:
        The report.

    Raises:
        ConfigError: the folder holds the steps of other settings.
        LDMError: a step failed.
    """
    references = REFERENCES if references is None else references
    _claim(
        output, {"seed": seed, "steps": steps, "references": {name: asdict(each) for name, each in references.items()}}
    )
    data, report = output / "data", output / "report.json"
    with sole_writer(data):
        build_references(references, data, jobs=jobs, seed=seed)
    # Threads wait for each other at every layer: one that shares its core holds up all, so half of the cores stay free.
    threads = max(1, jobs // 2)
    if not (output / "model").is_dir():
        _say("2/3  Training one model on all of them (ldm launch)")
        settings = {**TRAINING, "data": str(data), "output_dir": str(output), "seed": seed, "max_steps": steps}
        settings["environments"] = sorted(references)  # all, whatever their references are worth
        with replacing(output / "quickstart.yaml") as path:
            path.write_text(json.dumps(settings, indent=1))  # JSON is YAML.
        launch = [sys.executable, "-m", "ldm_hf", "launch", "--num_processes", "1", "--num_machines", "1"]
        flags = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(threads)]
        program = ["-m", "ldm_hf.training", "--config", str(output / "quickstart.yaml")]
        run_child([*launch, *flags, *program], {"OMP_NUM_THREADS": str(threads)})
    _say("3/3  Loading the model in a new process and evaluating it")
    run_child(
        [
            *(sys.executable, "-m", "ldm_hf", "evaluate", str(output / "model")),
            *("--data", str(data), "--output", str(output), "--seed", str(seed)),
        ],
        {"OMP_NUM_THREADS": "1"},
    )
    for name in ("README.md", "threshold_curve.png", "report.json"):
        with replacing(output / "model" / name) as path:
            shutil.copyfile(output / name, path)
    return report


def build_references(references: Mapping[str, Reference], data: Path, *, jobs: int, seed: int) -> None:
    """Train and record the references whose datasets are not there yet, ``jobs`` at a time."""
    from ldm_hf.dataset_builder.repository.repository import update_repository

    wanted = [_job(*item, data.absolute(), seed) for item in references.items()]
    missing = [job for job in wanted if not job.is_done]
    _say(f"1/3  Training reference policies: {len(missing)} of {len(wanted)} environments to go")
    for job in wanted:
        remove_leftovers(job.result.parent.parent)
    if missing:
        _build_in_parallel(missing, jobs)
    for repository in {job.result.parent.parent.parent for job in wanted}:
        update_repository(repository)


def _job(environment: str, reference: Reference, data: Path, seed: int) -> "Job":
    from ldm_hf.dataset_builder.build.jobs import Job
    from ldm_hf.dataset_builder.reference.request import RunRequest

    # Every reference is kept: the table of results has a row for each.
    request = RunRequest(environment, reference.candidate, reference.timesteps, seed, keep="all")
    return Job(request, data, ranking=False, seconds=float(reference.timesteps), memory=2**30)


def _build_in_parallel(missing: "list[Job]", jobs: int) -> None:
    from ldm_hf.dataset_builder.format.records import RunRecord
    from ldm_hf.executors.jobs import run_jobs
    from ldm_hf.executors.local import LocalExecutor

    # The longest first, so that none is left to run alone at the end.
    waiting = sorted(missing, key=lambda job: -job.seconds)
    bars = {
        job.name: progress_bar(
            f"{job.request.environment} (waiting)", job.request.timesteps, "step", position=position, unit_scale=True
        )
        for position, job in enumerate(missing)
    }
    executor = LocalExecutor(min(jobs, len(missing)))

    def ended(result: "JobResult", again: bool) -> None:
        if again:
            return
        if not result.job.is_done:
            raise EnvironmentFailure(f"{result.job.name}: {result.crash}")
        record = RunRecord.read(result.job.result.parent)
        if record.failed:
            shutil.rmtree(result.job.result.parent)
            raise EnvironmentFailure(f"{result.job.name}: {record.dropped}")

    def show(_running: "list[Job]", _waiting: "list[Job]") -> None:
        for message in executor.messages():
            _show(bars[message.name], message)

    try:
        run_jobs(executor, waiting, ended, show)
    finally:
        executor.close()
        for bar in bars.values():
            bar.close()


def _show(bar: tqdm, message: "Message") -> None:
    description = f"{message.name} ({message.stage})"
    if bar.desc != f"{description}: ":
        bar.reset(message.total)
        bar.set_description(description, refresh=False)
    bar.update(message.done - bar.n)


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Tie a folder to its settings, so that steps of different ones are never mixed."""
    path = output / "quickstart.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != json.loads(json.dumps(settings)):
            raise ConfigError(f"{output} holds a quickstart with other settings; choose another --output")
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings))


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)
