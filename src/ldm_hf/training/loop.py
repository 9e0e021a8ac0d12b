"""The training loop: next-action cross-entropy on the mixture, on any number of processes (paper section 4.4)."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from ldm_hf.dataset_builder.reader import open_datasets
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.files import replacing
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.progress import progress_bar
from ldm_hf.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, save_model
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.mixture import Mixture, SequenceNumbers


def train(config: TrainingConfig) -> Path:
    """Train a model, going on from the newest checkpoint in ``config.output`` if there is one.

    Every process of an ``accelerate launch`` calls this.

    Returns:
        The folder of the finished model, which ``AutoModel`` and ``AutoProcessor`` load.

    Raises:
        LDMError: settings, datasets or checkpoints that cannot be used.
    """
    output = Path(config.output)
    accelerator = Accelerator(
        mixed_precision=_precision(config.precision),
        gradient_accumulation_steps=config.accumulation_steps,
        log_with=None if config.log_with == "none" else config.log_with,
        project_dir=output,
    )
    set_seed(config.seed)
    disable_progress_bar()  # transformers' own, for weights: they would break up ours
    model, processor = load_model(config)
    context_length = config.context_length or model.config.max_position_embeddings
    if context_length > model.config.max_position_embeddings:
        raise ConfigError(f"context_length {context_length} exceeds the model's {model.config.max_position_embeddings}")
    mixture = Mixture(
        open_datasets(config.data, config.environments, cached=not config.stream),
        processor,
        context_length=context_length,
        weights=config.weights,
        sequences_per_chunk=config.sequences_per_chunk,
        seed=config.seed,
        cache_bytes=int(config.cache_gib * 2**30),
    )
    model, optimizer = accelerator.prepare(model, _optimizer(model, config))
    checkpoint = latest_checkpoint(output)
    start = 0 if checkpoint is None else load_checkpoint(accelerator, model, optimizer, checkpoint)
    if accelerator.is_main_process:
        config.save(output / "training.yaml")
    if config.log_with != "none":
        accelerator.init_trackers("ldm")
    batches = _batches(mixture, processor, config, accelerator, start)
    model.train()
    with contextlib.closing(_Progress(accelerator, config, start, config.batch_size * context_length)) as progress:
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            for _ in range(config.accumulation_steps):
                with progress.waiting():
                    batch = {name: tensor.to(accelerator.device) for name, tensor in next(batches).items()}
                with accelerator.accumulate(model):
                    loss = model(**batch).loss
                    accelerator.backward(loss)
                    progress.add_loss(loss)
                    if accelerator.sync_gradients:
                        progress.norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
            done = step + 1
            progress.step(done, learning_rate(config, step))
            if done % config.checkpoint_every == 0 or done == config.steps:
                save_checkpoint(accelerator, model, optimizer, processor, output, done, config.keep_checkpoints)
    folder = _finish(accelerator, model, processor, output)
    accelerator.end_training()
    return folder


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    decay_steps = config.decay_fraction * config.steps
    decay = min(1.0, (config.steps - step) / decay_steps) if decay_steps else 1.0
    return config.learning_rate * warmup * decay


def load_model(config: TrainingConfig) -> tuple[LDMModel, LDMProcessor]:
    """A new model of a preset, or the model of a folder or Hub name, with its processor.

    Raises:
        ConfigError: a field of ``model_overrides`` does not exist or has a value that cannot be used.
        CheckpointError: the folder holds no Large Decision Model.
    """
    if config.model in LDMConfig.presets():
        return _new_model(config)
    if not Path(config.model).is_dir() and "/" not in config.model:
        raise ConfigError(
            f"model {config.model!r} is neither a preset ({', '.join(LDMConfig.presets())}) nor a model folder"
        )
    try:
        model = AutoModel.from_pretrained(config.model, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(config.model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config.model} cannot be loaded as a model: {' '.join(str(error).split())}") from error
    if not isinstance(model, LDMModel):
        raise CheckpointError(f"{config.model} holds a {type(model).__name__}, not a Large Decision Model")
    return model, processor


def _new_model(config: TrainingConfig) -> tuple[LDMModel, LDMProcessor]:
    try:
        model_config = LDMConfig.preset(config.model, **config.model_overrides)
    except Exception as error:  # strict configurations raise their own kinds of validation errors
        raise ConfigError(f"model_overrides cannot be used: {' '.join(str(error).split())}") from error
    unknown = set(config.model_overrides) - set(LDMConfig().to_dict())
    if unknown:
        raise ConfigError(f"model_overrides sets {', '.join(sorted(unknown))}, which LDMConfig does not have")
    return LDMModel(model_config), LDMProcessor.for_config(model_config)


def _precision(name: str) -> str:
    if name == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return {"bf16": "bf16", "fp32": "no"}[name]


def _optimizer(model: LDMModel, config: TrainingConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
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
        config.accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = DataLoader(
        mixture,
        batch_sampler=numbers,
        collate_fn=processor.collate,
        num_workers=config.num_workers,
        generator=torch.Generator(),  # or it would draw from the random state that checkpoints keep
        pin_memory=accelerator.device.type == "cuda",
    )
    return iter(loader)


def _finish(accelerator: Accelerator, model: torch.nn.Module, processor: LDMProcessor, output: Path) -> Path:
    folder = output / "model"
    if accelerator.is_main_process:
        with replacing(folder) as temporary:
            save_model(accelerator.unwrap_model(model), processor, temporary)
    accelerator.wait_for_everyone()
    return folder


class _Progress:
    """The bar, and the figures that go to the trackers: loss, learning rate, gradient norm, speed, time waited."""

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, start: int, tokens_per_step: int):
        self._accelerator = accelerator
        self._config = config
        self._tokens_per_step = tokens_per_step
        self._losses: list[torch.Tensor] = []
        self._waited = 0.0
        self._since = time.perf_counter()
        self._last_step = start
        self.norm: torch.Tensor | None = None
        self._bar = progress_bar(
            "training", config.steps, "step", initial=start, disable=not accelerator.is_main_process
        )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the device waits for."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add_loss(self, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def step(self, done: int, rate: float) -> None:
        self._bar.update(1)
        if done % self._config.log_every and done != self._config.steps:
            return
        elapsed = time.perf_counter() - self._since
        loss = self._accelerator.reduce(torch.stack(self._losses).mean(), "mean").item()
        values = {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": float(self.norm) if self.norm is not None else 0.0,
            "transitions_per_second": (done - self._last_step) * self._tokens_per_step / elapsed,
            "wait_fraction": self._waited / elapsed,
        }
        self._accelerator.log(values, step=done)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {values['transitions_per_second']:,.0f} transitions/s")
        self._losses, self._waited, self._since, self._last_step = [], 0.0, time.perf_counter(), done

    def close(self) -> None:
        self._bar.close()
