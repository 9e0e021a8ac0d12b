"""The batches of one process: the mixture through a loader."""

import functools
from collections.abc import Generator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ldm_hf.errors import InvalidValueError, LDMError
from ldm_hf.modeling import LDMProcessor
from ldm_hf.modeling.packing_ldm import group_rows, pack_rows
from ldm_hf.modeling.processing_ldm import TokenSequence
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.mixture import Mixture, SequenceNumbers
from ldm_hf.training.parallel import ignore_termination

Failure = LDMError | InvalidValueError
Inputs = dict[str, Any]
"""Arguments of a model: tensors, and which rows are computed together."""

Batch = tuple[Inputs, Failure | None]


def make_batches(
    mixture: Mixture, processor: LDMProcessor, config: TrainingConfig, accelerator: Accelerator, start: int
) -> Generator[Batch]:
    """The batches of this process from step ``start`` on, one for each piece of a step; close the iterator at the end.

    Where a sequence cannot be read, the error that says why comes with its batch, in which the sequence is blank: the
    other processes wait for the gradient of this one, and learn of it at the end of the step.
    """
    # The loader is not prepared by Accelerate: the numbers already belong to this process only.
    numbers = SequenceNumbers(
        range(start, config.max_steps),
        config.train_batch_size,
        config.accumulation_steps(accelerator.num_processes),
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = DataLoader(
        _Reporting(mixture),
        batch_sampler=numbers,
        collate_fn=functools.partial(_collate, processor),
        num_workers=config.dataloader_num_workers,
        worker_init_fn=ignore_termination,
        generator=torch.Generator(),  # or it would draw from the random state that checkpoints keep
        pin_memory=accelerator.device.type == "cuda",
    )
    # Closed, this generator lets go of the loader's iterator, which ends the workers. They ignore SIGTERM: a process that
    # ended before them, for an error that holds its frames, would wait for them forever.
    yield from loader


class _Reporting(Dataset[tuple[TokenSequence, int | None, Failure | None]]):
    """The sequences of a mixture, each with the expert that it is meant for, and with the reason if it cannot be read.

    Raised by a worker, that would be a traceback.
    """

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def __getitem__(self, number: int) -> tuple[TokenSequence, int | None, Failure | None]:
        expert = self._mixture.expert(number)
        try:
            return self._mixture[number], expert, None
        except (LDMError, InvalidValueError) as error:
            return self._mixture.blank(number), expert, error.with_traceback(None)


def _collate(processor: LDMProcessor, items: Sequence[tuple[TokenSequence, int | None, Failure | None]]) -> Any:
    sequences, experts, failures = zip(*items, strict=True)
    inputs = model_inputs(processor, sequences)
    if None not in experts:
        inputs["expert_labels"] = torch.tensor(experts)
    return inputs, next((error for error in failures if error is not None), None)


def model_inputs(processor: LDMProcessor, sequences: Sequence[TokenSequence]) -> Inputs:
    """A batch that no device has to be asked about: what depends on its values is found out here, on the host."""
    batch = dict(processor.collate(sequences))
    groups = group_rows(batch["observation_kinds"], batch["action_kinds"])
    return {**batch, "row_groups": groups, "packing": pack_rows([len(sequence) for sequence in sequences], groups)}


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """A batch on a device, without waiting for it where the batch is in pinned memory."""
    return {name: None if value is None else value.to(device, non_blocking=True) for name, value in inputs.items()}
