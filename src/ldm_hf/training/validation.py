"""The loss on data that are held back while a model is trained: which checkpoint is the best, and when to stop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.modeling import LDMProcessor
from ldm_hf.modeling.processing_ldm import TokenSequence
from ldm_hf.training.batches import model_inputs, to_device
from ldm_hf.training.checkpoint import latest_checkpoint, on_main, read_record, save_checkpoint
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.optimizers import Optimizers

BEST = "best"
"""Folder of a run in which the checkpoint of the lowest validation loss is kept."""

_MOST = 64  # sequences: what a few more would add to the mean is below what training moves it by
_LOSS = "validation_loss"


class Validation:
    """Measures the loss on held-back data every ``validation_steps``, and keeps the best checkpoint.

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
        self._folder = Path(config.output_dir) / BEST
        self._best: tuple[int, float] | None = None
        if (path := self.best()) is not None:
            found = [on_main(accelerator, lambda: read_record(path), f"{path} cannot be read: {{}}; delete it")]
            (record,) = broadcast_object_list(found)
            self._best = int(record["step"]), float(record[_LOSS])

    def best(self) -> Path | None:
        """The best checkpoint so far: the same for every process."""
        return latest_checkpoint(self._accelerator, self._folder)

    def is_due(self, done: int) -> bool:
        """Whether the loss is measured after this many steps."""
        return done % self._config.validation_steps == 0 or done == self._config.max_steps

    @torch.no_grad()
    def measure(self, model: torch.nn.Module) -> float:
        """The mean loss of the transitions that are held back; every process calls this, and computes all of it."""
        model.eval()
        size = self._config.per_device_train_batch_size or self._config.train_batch_size
        total = torch.zeros((), device=self._accelerator.device)
        for start in range(0, len(self._windows), size):
            batch = to_device(
                model_inputs(self._processor, self._windows[start : start + size]), self._accelerator.device
            )
            total += model(**batch, num_items_in_batch=self._transitions, return_dict=True).loss.float()
        model.train()
        if isinstance(model, FSDPModule):
            model.reshard()  # no backward pass does it, and who reads or writes the weights next expects shards
        # Of one process, so that all of them decide alike: a last bit that differs would leave one waiting for the others.
        (loss,) = broadcast_object_list([float(total)])
        return float(loss)

    def check(
        self, model: torch.nn.Module, optimizers: Optimizers, done: int, record: Mapping[str, Any]
    ) -> dict[str, float]:
        """Measure the loss after ``done`` steps, and keep the checkpoint if it is the lowest; every process calls this.

        Returns:
            ``validation/loss``, for the log.
        """
        loss = self.measure(model)
        if self._best is None or loss < self._best[1]:
            parts = (self._accelerator, model, optimizers, self._processor, self._folder, done, 1)
            save_checkpoint(*parts, {**record, _LOSS: loss})
            self._best = done, loss
        return {"validation/loss": loss}

    def is_over(self, done: int) -> bool:
        """Whether the last ``early_stopping_patience`` measurements were all no better than the best."""
        patience = self._config.early_stopping_patience
        if patience is None or self._best is None:
            return False
        return done - self._best[0] >= patience * self._config.validation_steps


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
