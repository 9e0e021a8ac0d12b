"""The second stage: an expert for each group of environments, trained as independent jobs and merged into one model.

The state is the files of ``output``: ``groups.json`` says which environments each expert has, ``expert-<i>`` is an ordinary
training run, ``model`` holds the backbone with all experts. Whatever is there is not done again.
"""

import json
import logging
import signal
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import set_seed

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.errors import ConfigError
from ldm_hf.executors.base import Executor, JobResult
from ldm_hf.executors.jobs import run_jobs
from ldm_hf.experiments.m3dt.config import ExpertsConfig
from ldm_hf.experiments.m3dt.grouping import Groups, gradient_groups, random_groups
from ldm_hf.experiments.m3dt.stages import load_backbone, load_stage, merge_experts
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.training.checkpoint import save_model
from ldm_hf.training.datasets import described, training_datasets
from ldm_hf.training.loop import train
from ldm_hf.utils.files import remove, remove_leftovers, replacing
from ldm_hf.utils.processes import ChildFailure, Termination
from ldm_hf.utils.progress import progress_bar

_log = logging.getLogger(__name__)

_OVERHEAD = 2**30  # of a process, its libraries and its data


@dataclass(frozen=True)
class ExpertJob:
    """The training of one expert.

    Attributes:
        index: which.
        config: of its run: its environments, its folder.
        memory: estimate, in bytes.
        wants_gpu: it does.
    """

    index: int
    config: ExpertsConfig
    memory: int
    wants_gpu: bool = True

    @property
    def name(self) -> str:
        """For messages."""
        return f"expert {self.index}"

    @property
    def model(self) -> Path:
        """Where its model is."""
        return Path(self.config.output_dir) / "model"

    @property
    def is_done(self) -> bool:
        """Whether its model is complete: the record is written after it."""
        try:
            return json.loads(self._record.read_text(encoding="utf-8")) == {"steps": self.config.max_steps}
        except (OSError, ValueError):
            return False

    def on(self, device: str) -> "ExpertJob":
        """Itself: Accelerate takes the GPU that its process sees."""
        return self

    @property
    def stop(self) -> Path:
        """A file that asks all experts to end after the step they are at: every node sees it."""
        return Path(self.config.output_dir).with_name("stop")

    def execute(self, progress: Callable[[str, int, int], None]) -> None:
        """Train, or continue from the last checkpoint; end early, with a checkpoint, where ``stop`` appears."""
        steps = self.config.max_steps

        def after_step(done: int) -> None:
            progress("training", done, steps)
            if self.stop.exists():
                signal.raise_signal(signal.SIGTERM)

        if train(self.config, after_step, load_stage) is not None:
            with replacing(self._record) as temporary:
                temporary.write_text(json.dumps({"steps": steps}), encoding="utf-8")

    @property
    def _record(self) -> Path:
        return Path(self.config.output_dir) / "finished.json"


def train_experts(config: ExpertsConfig, make_executor: Callable[[int], Executor]) -> Path | None:
    """Attach experts to the backbone ``config.model`` and train each on its group of environments.

    It may be killed at any time and called again. On SIGTERM every expert that is at work finishes its step and writes a
    checkpoint.

    Args:
        config: the settings.
        make_executor: gives what runs so many jobs.

    Returns:
        The folder of the model with all experts, whose routers know nothing yet; None if SIGTERM came before.

    Raises:
        LDMError: settings, datasets or checkpoints that cannot be used, or a job that died twice.
    """
    config = _with_whole_paths(config)
    output = Path(config.output_dir)
    backbone, processor = load_backbone(config)
    datasets = training_datasets(config, _log.info)
    remove_leftovers(output)
    config.save(output / "training.yaml")
    groups = _groups(config, backbone, processor, datasets)
    jobs = [_job(config, index, group, backbone) for index, group in enumerate(groups)]
    waiting = [job for job in jobs if not job.is_done]
    folder = output / "model"
    if waiting:
        remove(folder)  # of fewer steps
        if not _run(jobs, waiting, make_executor):
            return None
    if not folder.exists():
        set_seed(config.seed)  # of the routers
        merged = merge_experts(backbone, [job.model for job in jobs], config)
        merged.config.environments = sorted(dataset.environment for dataset in datasets)
        merged.config.expert_environments = groups
        with replacing(folder) as temporary:
            about = described(config, datasets)
            save_model(merged.config, merged.state_dict(), processor, temporary, about, load_as=folder)
    return folder


def _groups(
    config: ExpertsConfig, backbone: LDMModel, processor: LDMProcessor, datasets: Sequence[EnvironmentDataset]
) -> Groups:
    """The environments of each expert: those of ``groups.json``, or new ones, which are written there."""
    environments = [dataset.environment for dataset in datasets]
    if config.num_experts is None or not 2 <= config.num_experts <= len(environments):
        raise ConfigError(
            f"num_experts must be from 2 to {len(environments)}, the number of environments, got {config.num_experts}"
        )
    path = Path(config.output_dir) / "groups.json"
    settings = {name: getattr(config, name) for name in ("num_experts", "grouping", "gradient_batches", "seed")}
    settings |= {"model": config.model, "environments": environments}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in settings if found["settings"].get(name) != settings[name]]
        if differing:
            raise ConfigError(
                f"{config.output_dir} holds experts of another {', '.join(differing)}; set another output"
            )
        return found["groups"]
    if config.grouping == "random":
        groups = random_groups(environments, config.num_experts, config.seed)
    else:
        folder = path.with_name(f"gradients-{zlib.crc32(json.dumps(settings).encode()):08x}")
        groups = gradient_groups(backbone, processor, datasets, config, folder)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "groups": groups}, indent=1), encoding="utf-8")
    for folder in path.parent.glob("gradients-*"):
        remove(folder)
    return groups


def _job(config: ExpertsConfig, index: int, group: list[str], backbone: LDMModel) -> ExpertJob:
    weights = config.weights
    own = replace(
        config,
        output_dir=str(Path(config.output_dir) / f"expert-{index}"),
        environments=group,
        eval_environments=[each for each in config.eval_environments or () if each in group] or None,
        weights=weights if isinstance(weights, str) else {name: weights[name] for name in group if name in weights},
        seed=config.seed + index,
        dataloader_num_workers=0,  # a job's process may have no children
    )
    return ExpertJob(index, own, _memory(own, backbone))


def _memory(config: ExpertsConfig, backbone: LDMModel) -> int:
    """Bytes: float32 weights; gradients and moments of the expert; what layers keep for the backward pass."""
    shape = backbone.config
    expert = 3 * shape.num_hidden_layers * shape.hidden_size * shape.intermediate_size
    tokens = (config.per_device_train_batch_size or config.train_batch_size) * (
        config.context_length or shape.max_position_embeddings
    )
    kept = tokens * shape.num_hidden_layers * (32 * shape.intermediate_size + 64 * shape.hidden_size)
    return _OVERHEAD + 4 * (backbone.num_parameters() + 4 * expert) + kept


def _run(jobs: Sequence[ExpertJob], waiting: list[ExpertJob], make_executor: Callable[[int], Executor]) -> bool:
    """Run the jobs that wait; one whose process dies is started once more. False if SIGTERM ended them before."""
    steps, stop = jobs[0].config.max_steps, jobs[0].stop
    done = {job.name: 0 if job in waiting else steps for job in jobs}
    termination = Termination()
    stop.unlink(missing_ok=True)
    executor = make_executor(len(waiting))

    def ended(result: JobResult, again: bool) -> None:
        if result.job.is_done:
            done[result.job.name] = steps
        elif not again and not termination.asked:
            raise ChildFailure(f"{result.job.name}: {result.crash or 'it was told to end'}")

    def watch(_running: list[ExpertJob], _waiting: list[ExpertJob]) -> None:
        if termination.asked:
            stop.touch()
        done.update({message.name: message.done for message in executor.messages()})
        bar.update(sum(done.values()) - bar.n)

    title = f"training {len(jobs)} experts"
    try:
        with (
            progress_bar(title, steps * len(jobs), "step", initial=sum(done.values())) as bar,
            termination.heard(),
        ):
            finished = run_jobs(executor, waiting, ended, watch, lambda: termination.asked)
    finally:
        executor.close()
        stop.unlink(missing_ok=True)
    return finished and all(job.is_done for job in jobs)


def _with_whole_paths(config: ExpertsConfig) -> ExpertsConfig:
    """Jobs may run in another working directory."""
    places = [config.data] if isinstance(config.data, str) else config.data
    data = [place if "://" in place else str(Path(place).absolute()) for place in places]
    model = str(Path(config.model).absolute()) if Path(config.model).is_dir() else config.model
    output = str(Path(config.output_dir).absolute())
    return replace(config, data=data if isinstance(config.data, list) else data[0], model=model, output_dir=output)
