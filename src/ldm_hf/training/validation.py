"""Loss and error on data that are held back while a model is trained: which checkpoint is the best, and when to stop."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.modeling import LDMProcessor
from ldm_hf.modeling.processing_ldm import TokenSequence
from ldm_hf.modeling.quantization_ldm import ActionCode
from ldm_hf.modeling.spaces_ldm import ABSENT, CONTINUOUS
from ldm_hf.training.batches import Inputs, model_inputs, to_device
from ldm_hf.training.checkpoint import latest_checkpoint, on_main, read_record, save_checkpoint
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.optimizers import Optimizers

BEST = "best"
"""Folder of a run in which the checkpoint of the lowest ``metric_for_best_model`` is kept."""

_MOST = 64  # sequences: what a few more would add to the mean is below what training moves it by
_LOGITS = 2**27  # that are in memory at a time, to find the most likely of each slot: 512 MiB


class Validation:
    """Measures a model on held-back data every ``validation_steps``, and keeps the best checkpoint.

    The sequences are the same each time: consecutive windows of the data, at most 64, evenly spaced. What is the best so far
    stands in the checkpoint's record, so that a run that resumes knows it.

    Args:
        accelerator, config: of the run; ``config.validation_data`` is set.
        processor: aligns the data.
        context_length: transitions of a sequence.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        processor: LDMProcessor,
        context_length: int,
    ) -> None:
        self._accelerator, self._config, self._processor = accelerator, config, processor
        assert config.validation_data is not None
        self.datasets = open_datasets(config.validation_data, config.environments, cached=not config.stream)
        self._windows = _windows(self.datasets, processor, context_length)
        self._transitions = sum(map(len, self._windows))
        self._folder, self._code = Path(config.output_dir) / BEST, ActionCode.of(processor)
        self._key = f"validation_{config.metric_for_best_model}"
        self._best: tuple[int, float] | None = None
        if (path := self.best()) is not None:
            found = [on_main(accelerator, lambda: read_record(path), f"{path} cannot be read: {{}}; delete it")]
            (record,) = broadcast_object_list(found)
            if self._key in record:  # else an earlier version wrote it, by the loss
                self._best = int(record["step"]), float(record[self._key])

    @property
    def metric(self) -> str:
        """What decides, in words."""
        return self._config.metric_for_best_model.replace("_", " ")

    def best(self) -> Path | None:
        """The best checkpoint so far: the same for every process."""
        return latest_checkpoint(self._accelerator, self._folder)

    def is_due(self, done: int) -> bool:
        """Whether the loss is measured after this many steps."""
        return done % self._config.validation_steps == 0 or done == self._config.max_steps

    @torch.no_grad()
    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Means over the transitions that are held back; every process calls this, and computes all of it.

        Returns:
            ``loss``, and where it decides, ``action_error``: how far the most likely action is from the label, see
            ``action_error``.
        """
        model.eval()
        found = {"loss": self._loss(model)}
        if self._config.metric_for_best_model == "action_error":
            found["action_error"] = self._action_error(model)
        model.train()
        if isinstance(model, FSDPModule):
            model.reshard()  # no backward pass does it, and who reads or writes the weights next expects shards
        # Of one process, so that all of them decide alike: a last bit that differs would leave one waiting for the others.
        (found,) = broadcast_object_list([found])
        return found

    def check(
        self, model: torch.nn.Module, optimizers: Optimizers, done: int, record: Mapping[str, Any]
    ) -> dict[str, float]:
        """Measure after ``done`` steps, and keep the checkpoint if it is the best; every process calls this.

        Returns:
            ``validation/loss`` and the like, for the log.
        """
        found = self.measure(model)
        score = found[self._config.metric_for_best_model]
        if self._best is None or score < self._best[1]:
            parts = (self._accelerator, model, optimizers, self._processor, self._folder, done, 1)
            save_checkpoint(*parts, {**record, self._key: score})
            self._best = done, score
        return {f"validation/{name}": value for name, value in found.items()}

    def is_over(self, done: int) -> bool:
        """Whether the last ``early_stopping_patience`` measurements were all no better than the best."""
        patience = self._config.early_stopping_patience
        if patience is None or self._best is None:
            return False
        return done - self._best[0] >= patience * self._config.validation_steps

    def _loss(self, model: torch.nn.Module) -> float:
        total = torch.zeros((), device=self._accelerator.device)
        for batch in self._batches(self._config.per_device_train_batch_size or self._config.train_batch_size):
            total += model(**batch, num_items_in_batch=self._transitions, return_dict=True).loss.float()
        return float(total)

    def _action_error(self, model: torch.nn.Module) -> float:
        total = torch.zeros((), device=self._accelerator.device)
        longest = max(map(len, self._windows))
        slots = max(window.action_layout.num_slots for window in self._windows)
        for batch in self._batches(max(1, _LOGITS // (longest * slots * self._code.num_bins))):
            labels = batch.pop("labels")
            logits = model(**batch, return_dict=True).logits
            total += action_error(logits, labels, batch["action_kinds"], batch["action_bounds"], self._code)
        return float(total) / self._transitions

    def _batches(self, size: int) -> Iterator[Inputs]:
        for start in range(0, len(self._windows), size):
            inputs = model_inputs(self._processor, self._windows[start : start + size])
            yield to_device(inputs, self._accelerator.device)


def action_error(
    logits_BTAK: torch.Tensor,
    labels_BTA: torch.Tensor,
    kinds_BA: torch.Tensor,
    bounds_BA2: torch.Tensor,
    code: ActionCode,
) -> torch.Tensor:
    """How far the most likely actions are from the labels: from 0 to 1, averaged over slots, summed over transitions.

    Of a continuous slot the distance, as a share of the bins that it may take; of a discrete one 1 where the symbol is
    another. Unlike the cross-entropy, it does not rise where a model that is right grows too sure of what it gets wrong.

    Args:
        logits_BTAK: of the bins of the A slots, with those that are not allowed at the lowest value.
        labels_BTA: raw slot values; NaN where there is none.
        kinds_BA, bounds_BA2: of the slots.
        code: of the actions.
    """
    kinds_B1A, bounds_B1A2 = kinds_BA.unsqueeze(1), bounds_BA2.unsqueeze(1)
    bins_BTA, labelled_BTA = logits_BTAK.argmax(-1), ~labels_BTA.isnan() & (kinds_B1A != ABSENT)
    values_BTA = labels_BTA.nan_to_num()
    lowest, highest = code.allowed(kinds_B1A, bounds_B1A2).unbind(-1)
    distance_BTA = (bins_BTA + 0.5 - code.position(values_BTA, bounds_B1A2)).abs() / (highest - lowest + 1)
    error_BTA = torch.where(kinds_B1A == CONTINUOUS, distance_BTA, (bins_BTA != values_BTA).float())
    counts_B11 = (kinds_B1A != ABSENT).sum(-1, keepdim=True).clamp(min=1)
    return (error_BTA * labelled_BTA / counts_B11).sum()


def _windows(datasets: list[EnvironmentDataset], processor: LDMProcessor, context_length: int) -> list[TokenSequence]:
    places = [
        (data, chunk, start)
        for data in datasets
        for chunk in range(data.num_chunks)
        for start in range(0, int(data.chunk_lengths[chunk]), context_length)
    ]
    chosen = places[:: -(-len(places) // _MOST)]
    found = []
    for data, chunk, start in chosen:
        observation = processor.observation_layout(data.observation_space)
        action = processor.action_layout(data.action_space)
        transitions = data.chunk(chunk)[start : start + context_length]
        found.append(processor.align(transitions, observation, action))
    return found
