"""The training loop: next-action cross-entropy on the mixture, on any number of processes (paper section 4.4)."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.distributed.tensor import DTensor
from transformers.utils.logging import disable_progress_bar

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.errors import ConfigError, InvalidValueError, LDMError, one_line
from ldm_hf.hub.pretrained import SETTINGS
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.batches import Batch, Failure, Inputs, make_batches, to_device
from ldm_hf.training.checkpoint import latest_checkpoint, load_checkpoint, on_main, save_checkpoint, save_finished
from ldm_hf.training.chunk_cache import node_cache
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.datasets import described, training_datasets
from ldm_hf.training.divergence import RECORD, divergence
from ldm_hf.training.log import TrainingLog
from ldm_hf.training.lora import adapt
from ldm_hf.training.memory import check_shared_memory, loader_bytes
from ldm_hf.training.mixture import Mixture
from ldm_hf.training.model import load_model
from ldm_hf.training.optimizers import Optimizers, make_optimizers
from ldm_hf.training.parallel import (
    accumulating,
    all_finite,
    distribute,
    make_accelerator,
    on_any_process,
)
from ldm_hf.training.preflight import check_machine
from ldm_hf.training.resume import bound_settings, check_resume, made_with
from ldm_hf.training.scoring import score_model
from ldm_hf.training.validation import BEST, Validation
from ldm_hf.utils.files import remove
from ldm_hf.utils.processes import Termination

_log = logging.getLogger(__name__)


def train(
    config: TrainingConfig,
    progress: Callable[[int], None] | None = None,
    load: Callable[[Any], tuple[LDMModel, LDMProcessor]] = load_model,
    base_model: str | None = None,
) -> Path | None:
    """Train a model, continuing from the newest checkpoint in ``config.output_dir`` if there is one.

    Every process of an ``accelerate launch`` calls this. On SIGTERM the step is finished and a checkpoint written.

    Args:
        config: the settings.
        progress: told the number of steps that are done, instead of a progress bar.
        load: gives the model and its processor; parameters that need no gradient are not trained.
        base_model: which model the card names as the one that this one is made from; by default ``config.model``.

    Returns:
        The folder of the finished model, which ``AutoModel`` and ``AutoProcessor`` load; None if SIGTERM came before.

    Raises:
        LDMError: settings, datasets or checkpoints that cannot be used.
        TrainingDivergedError: loss, gradient or weights were not finite after a step; the last checkpoint is kept.
    """
    check_machine(config)
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    disable_progress_bar()  # transformers' own, for weights: they would break up ours
    whole, processor = load(config)
    if config.previous_action_dropout is not None:
        whole.config.previous_action_dropout = config.previous_action_dropout
    datasets = training_datasets(config, functools.partial(_say, accelerator))
    mixture = make_mixture(datasets, config, whole, processor)
    passes = config.accumulation_steps(accelerator.num_processes) * accelerator.num_processes
    rows = config.train_batch_size // passes
    check_shared_memory(loader_bytes(mixture.layouts, rows, mixture.context_length), config)
    about = described(config, datasets, base_model)
    checkpoint = latest_checkpoint(accelerator, Path(config.output_dir))
    if checkpoint is None:  # what an attempt that ended before its first checkpoint found best is none of this one's
        on_main(
            accelerator, lambda: remove(Path(config.output_dir) / BEST), f"{config.output_dir} cannot be used: {{}}"
        )
    validation = _validation(accelerator, config, processor, mixture.context_length)
    held_back = [] if validation is None else validation.datasets
    bound = bound_settings(config, datasets, mixture.context_length, held_back)
    history, seen = ([], []) if checkpoint is None else check_resume(accelerator, checkpoint, bound, whole.config)
    known = {*(whole.config.environments or []), *seen}
    whole.config.environments = sorted(known | {dataset.environment for dataset in datasets})
    if config.lora_rank:
        adapt(whole, config.lora_rank)
    model = distribute(accelerator, whole, config)
    optimizers = make_optimizers(model, config)
    start = 0 if checkpoint is None else load_checkpoint(accelerator, model, optimizers, checkpoint)
    if accelerator.is_main_process:
        config.save(Path(config.output_dir) / SETTINGS)
        (Path(config.output_dir) / RECORD).unlink(missing_ok=True)  # of an earlier attempt
    _start_trackers(accelerator, config)
    record = made_with(accelerator, config, bound, start, history)
    folder, failure = None, None
    try:
        if _run(accelerator, model, optimizers, processor, mixture, config, start, record, progress, validation):
            output = Path(config.output_dir)
            if validation is not None and (best := validation.best()) is not None:
                load_checkpoint(accelerator, model, optimizers, best)
            folder = save_finished(accelerator, model, processor, output, config.save_precision, about)
    except (LDMError, InvalidValueError) as error:  # as on all processes
        failure = error.with_traceback(None)  # which holds the model
    # DDP must let go of the process group before it is closed, or now and then gloo waits for its own thread forever.
    del model, optimizers
    accelerator.free_memory()
    accelerator.end_training()
    if failure is not None:
        raise failure
    return folder


def _run(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizers: Optimizers,
    processor: LDMProcessor,
    mixture: Mixture,
    config: TrainingConfig,
    start: int,
    record: Mapping[str, Any],
    progress: Callable[[int], None] | None,
    validation: Validation | None,
) -> bool:
    """The steps that are left; False if SIGTERM ended them before the last."""
    output, saved = Path(config.output_dir), start or None
    references = _references(config)
    termination = Termination()
    model.train()
    with (
        node_cache(accelerator, int(config.cache_gib * 2**30)) as mixture.cache,
        contextlib.closing(make_batches(mixture, processor, config, accelerator, start)) as batches,
        contextlib.closing(TrainingLog(accelerator, config, start, progress)) as log,
        termination.heard(),
    ):
        if validation is not None and start == 0:  # what training begins with may be the best already
            with log.paused():
                log.scores(0, validation.check(model, optimizers, 0, record))
        for step in range(start, config.max_steps):
            done, rate = step + 1, learning_rate(config, step)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            first = step * config.train_batch_size
            transitions = sum(map(mixture.length, range(first, first + config.train_batch_size)))
            norm, failed, batch, error = _step(accelerator, model, optimizers, batches, transitions, config, log)
            *failures, unread, asked = on_any_process(accelerator, failed, error is not None, termination.asked)
            if unread:
                raise next(each for each in gather_object([error]) if each is not None)
            if any(failures):
                raise divergence(accelerator, mixture, config, step, failures, saved)
            log.step(done, rate, norm, transitions)
            stopping = asked and done < config.max_steps
            with log.paused():
                if done % config.save_steps == 0 or done == config.max_steps or stopping:
                    failures = on_any_process(accelerator, _cannot_continue(model, batch))
                    if any(failures):
                        raise divergence(accelerator, mixture, config, step, failures, saved)
                    keep = config.save_total_limit
                    save_checkpoint(accelerator, model, optimizers, processor, output, done, keep, record)
                    saved = done
                if validation is not None and validation.is_due(done):
                    log.scores(done, validation.check(model, optimizers, done, record))
                    if validation.is_over(done):
                        log.say(f"the validation {validation.metric} did not fall again: stopped after step {done}")
                        return True
                if stopping:
                    log.say(
                        f"SIGTERM: stopped after step {done}, whose checkpoint is written; started again, it continues"
                    )
                    return False
                if config.eval_steps and done % config.eval_steps == 0:
                    scores, warnings = score_model(accelerator, model, processor, references, config.eval_episodes)
                    log.scores(done, scores)
                    for warning in warnings:
                        log.say(warning)
    return True


def _step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizers: Optimizers,
    batches: Iterator[Batch],
    transitions: int,
    config: TrainingConfig,
    log: TrainingLog,
) -> tuple[torch.Tensor, torch.Tensor, Inputs, Failure | None]:
    """One optimizer step on a batch of so many transitions over all processes.

    Returns:
        The norm of the gradient; whether loss, gradient norm and weights are not finite on this process, bool of shape (3,);
        the last piece of the batch; and why some of it cannot be read, which makes the step worthless.
    """
    error: Failure | None = None
    pieces, total = config.accumulation_steps(accelerator.num_processes), torch.zeros((), device=accelerator.device)
    for piece in range(pieces):
        with log.waiting():
            batch, failure = next(batches)
        error = error or failure
        batch = to_device(batch, accelerator.device)
        with contextlib.nullcontext() if piece == pieces - 1 else accumulating(model):
            # The mean over processes, which gradients become, of losses that are divided by a process's share of the
            # transitions is the mean over all transitions, however many of them a piece has.
            loss = model(**batch, num_items_in_batch=transitions / accelerator.num_processes, return_dict=True).loss
            loss.backward()
        log.add_loss(loss)
        total = total + loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    # After the step, which may itself overflow: nobody asks before, so that the device is waited for once a step.
    finite = [total.isfinite(), norm.isfinite(), all_finite(optimizers)]
    return norm, ~torch.stack(finite), batch, error


@torch.no_grad()
def _cannot_continue(model: torch.nn.Module, batch: Inputs) -> torch.Tensor:
    """Whether the loss that the weights have by now is not finite, bool of shape (1,).

    Weights may be so large after a step that nothing is finite in the next: a checkpoint of them must not be written, nor
    take the place of the last one from which training can continue.
    """
    model.eval()  # draws nothing from the random state that checkpoints keep
    loss = model(**batch, return_dict=True).loss
    model.train()
    return ~loss.isfinite().reshape(1)


def _start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    if config.report_to == "none":
        return
    try:
        accelerator.init_trackers("ldm")
    except Exception as error:  # Each tracker has its own: no account, no server, ...
        reason = one_line(error, 300)
        raise ConfigError(f"report_to={config.report_to} cannot be started: {reason}; or set report_to=none") from error


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    decay_steps = config.decay_fraction * config.max_steps
    decay = min(1.0, (config.max_steps - step) / decay_steps) if decay_steps else 1.0
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
        augmentation=config.augmentation,
        experts=expert_labels(model.config),
        seed=config.seed,
    )


def expert_labels(config: LDMConfig) -> dict[str, int]:
    """Of each environment the expert that routers are told to choose; none where they are not told."""
    groups = (config.expert_environments or []) if config.router_aux_loss_coef else []
    return {environment: index for index, group in enumerate(groups) for environment in group}


def _validation(
    accelerator: Accelerator, config: TrainingConfig, processor: LDMProcessor, context_length: int
) -> Validation | None:
    if config.validation_data is None:
        if config.early_stopping_patience is not None:
            raise ConfigError("early_stopping_patience needs validation_data, whose loss decides when training stops")
        return None
    return Validation(accelerator, config, processor, context_length)


def _references(config: TrainingConfig) -> list[EnvironmentDataset]:
    """The environments to roll out in, with the scores of their reference runs."""
    if config.eval_steps is None:
        return []
    if config.eval_environments:
        return open_datasets(config.data, config.eval_environments, cached=not config.stream)
    return training_datasets(config)


def _say(accelerator: Accelerator, line: str) -> None:
    if accelerator.is_main_process:
        _log.info(line)
