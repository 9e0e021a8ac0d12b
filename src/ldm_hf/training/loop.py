"""The training loop: next-action cross-entropy on the mixture, on any number of processes (paper section 4.4)."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from ldm_hf.dataset_builder.reader import EnvironmentDataset, open_datasets
from ldm_hf.errors import ConfigError
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.processes import Termination
from ldm_hf.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, save_finished
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.log import TrainingLog
from ldm_hf.training.lora import adapt
from ldm_hf.training.mixture import Mixture, SequenceNumbers
from ldm_hf.training.parallel import accumulating, asked_to_end, distribute, ignore_termination, make_accelerator
from ldm_hf.training.preflight import check_machine
from ldm_hf.training.scoring import score_model
from ldm_hf.training.stages import load_model


def train(config: TrainingConfig, progress: Callable[[int], None] | None = None) -> Path | None:
    """Train a model, going on from the newest checkpoint in ``config.output`` if there is one.

    Every process of an ``accelerate launch`` calls this. On SIGTERM the step is finished and a checkpoint written. With the
    stage ``experts`` it trains one of them, on all environments of the settings; ``experts.py`` trains several.

    Args:
        config: the settings.
        progress: told the number of steps that are done, instead of a progress bar.

    Returns:
        The folder of the finished model, which ``AutoModel`` and ``AutoProcessor`` load; None if SIGTERM came before.

    Raises:
        LDMError: settings, datasets or checkpoints that cannot be used.
    """
    check_machine(config)
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    disable_progress_bar()  # transformers' own, for weights: they would break up ours
    whole, processor = load_model(config)
    datasets = open_datasets(config.data, config.environments, cached=not config.stream)
    known = whole.config.environments or []
    whole.config.environments = sorted({*known, *(dataset.environment for dataset in datasets)})
    mixture = make_mixture(datasets, config, whole, processor)
    if config.lora_rank:
        adapt(whole, config.lora_rank)
    model = distribute(accelerator, whole, config)
    optimizer = _optimizer(model, config)
    checkpoint = latest_checkpoint(accelerator, Path(config.output))
    start = 0 if checkpoint is None else load_checkpoint(accelerator, model, optimizer, checkpoint)
    if accelerator.is_main_process:
        config.save(Path(config.output) / "training.yaml")
    _start_trackers(accelerator, config)
    finished = _run(accelerator, model, optimizer, processor, mixture, config, start, progress)
    output, precision = Path(config.output), config.save_precision
    folder = save_finished(accelerator, model, processor, output, precision) if finished else None
    # DDP must let go of the process group before it is closed, or now and then gloo waits for its own thread for ever.
    del model, optimizer
    accelerator.free_memory()
    accelerator.end_training()
    return folder


def _run(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    processor: LDMProcessor,
    mixture: Mixture,
    config: TrainingConfig,
    start: int,
    progress: Callable[[int], None] | None,
) -> bool:
    """The steps that are left; False if SIGTERM ended them before the last."""
    output = Path(config.output)
    references = _references(config)
    batches = _batches(mixture, processor, config, accelerator, start)
    termination = Termination()
    model.train()
    with contextlib.closing(TrainingLog(accelerator, config, start, progress)) as log, termination.heard():
        for step in range(start, config.steps):
            done, rate = step + 1, learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            first = step * config.batch_size
            transitions = sum(map(mixture.length, range(first, first + config.batch_size)))
            norm = _step(accelerator, model, optimizer, batches, transitions, config, log)
            log.step(done, rate, norm, transitions)
            stopping = asked_to_end(termination, accelerator) and done < config.steps
            with log.paused():
                if done % config.checkpoint_every == 0 or done == config.steps or stopping:
                    save_checkpoint(accelerator, model, optimizer, processor, output, done, config.keep_checkpoints)
                if stopping:
                    log.say(
                        f"SIGTERM: stopped after step {done}, whose checkpoint is written; started again, it goes on"
                    )
                    return False
                if config.evaluate_every and done % config.evaluate_every == 0:
                    scores, troubles = score_model(accelerator, model, processor, references, config.evaluate_episodes)
                    log.scores(done, scores)
                    for trouble in troubles:
                        log.say(trouble)
    return True


def _step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    transitions: int,
    config: TrainingConfig,
    log: TrainingLog,
) -> torch.Tensor:
    """One optimizer step on a batch of so many transitions over all processes; returns the norm of the gradient."""
    pieces = config.pieces(accelerator.num_processes)
    for piece in range(pieces):
        with log.waiting():
            batch = next(batches)
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with contextlib.nullcontext() if piece == pieces - 1 else accumulating(model):
            # The mean over processes, which gradients become, of losses that are divided by a process's share of the
            # transitions is the mean over all transitions, however many of them a piece has.
            loss = model(**batch, num_items_in_batch=transitions / accelerator.num_processes, return_dict=True).loss
            loss.backward()
        log.add_loss(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def _start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    if config.log_with == "none":
        return
    try:
        accelerator.init_trackers("ldm")
    except Exception as error:  # Each tracker has its own: no account, no server, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"log_with={config.log_with} cannot be started: {reason}; or set log_with=none") from error


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    decay_steps = config.decay_fraction * config.steps
    decay = min(1.0, (config.steps - step) / decay_steps) if decay_steps else 1.0
    return config.learning_rate * warmup * decay


def make_mixture(
    datasets: list[EnvironmentDataset], config: TrainingConfig, model: LDMModel, processor: LDMProcessor
) -> Mixture:
    """The sequences of a run; ``ConfigError`` if the model does not read such long ones."""
    longest = model.config.max_position_embeddings
    if config.context_length and config.context_length > longest:
        raise ConfigError(f"context_length {config.context_length} exceeds the model's {longest}")
    return Mixture(
        datasets,
        processor,
        context_length=config.context_length or longest,
        weights=config.weights,
        sequences_per_chunk=config.sequences_per_chunk,
        seed=config.seed,
        cache_bytes=int(config.cache_gib * 2**30),
    )


def _references(config: TrainingConfig) -> list[EnvironmentDataset]:
    """The environments to roll out in, with the scores of their reference runs."""
    if config.evaluate_every is None:
        return []
    return open_datasets(config.data, config.evaluate_environments or config.environments, cached=not config.stream)


def _optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},  # biases and norms
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon)


def _batches(
    mixture: Mixture, processor: LDMProcessor, config: TrainingConfig, accelerator: Accelerator, start: int
) -> Iterator[Any]:
    # The loader is not prepared by Accelerate: the numbers already belong to this process alone.
    numbers = SequenceNumbers(
        range(start, config.steps),
        config.batch_size,
        config.pieces(accelerator.num_processes),
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = DataLoader(
        mixture,
        batch_sampler=numbers,
        collate_fn=processor.collate,
        num_workers=config.num_workers,
        worker_init_fn=ignore_termination,
        generator=torch.Generator(),  # or it would draw from the random state that checkpoints keep
        pin_memory=accelerator.device.type == "cuda",
    )
    return iter(loader)
