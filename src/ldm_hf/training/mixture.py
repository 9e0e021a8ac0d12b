"""The training mixture: which sequence of which environment comes when, as a pure function of (seed, counter).

Sequence number i of a run is decided by the seed and by i only, so a run continues exactly from a number, for any
number of loader workers, and another number of processes continues where the last one stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from ldm_hf.dataset_builder.format.checks import ValueChecks
from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.errors import ConfigError
from ldm_hf.modeling.processing_ldm import LDMProcessor, TokenSequence
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions
from ldm_hf.training.augmentation import augment
from ldm_hf.training.chunk_cache import ChunkCache

_SLOTS_PER_ENVIRONMENT = 64  # resolution of unequal weights: the smallest share is 1/64 of an equal one
_NO_EXPERT = -100  # which cross-entropy ignores
_SCHEDULE, _CHUNKS, _OFFSET, _AUGMENTATION = range(4)  # separate random streams


@dataclass(frozen=True)
class Source:
    """Where a sequence comes from.

    Attributes:
        environment: its id.
        file: the data file, as messages name it.
        first_row, last_row: of that file, counted from 0.
    """

    environment: str
    file: str
    first_row: int
    last_row: int


class Mixture(Dataset[TokenSequence]):
    """Sequences of ``context_length`` transitions, drawn from environments by weight; ``mixture[i]`` is the i-th.

    Environments take turns in shuffled rounds. Each visit to an environment takes its next chunk, every chunk once an
    epoch in shuffled order, and crops it at a random offset. Shorter chunks are taken whole.

    Args:
        datasets: the environments.
        processor: aligns the transitions.
        context_length: transitions of a sequence.
        weights: ``uniform``, ``size`` (by transitions), or a weight for each environment id.
        sequences_per_chunk: consecutive sequences that a visit to an environment takes from its chunk, side by side where it
            is long enough. More than 1 saves reading where the data do not fit into the cache.
        augmentation: share of the sequences that are shown as another task would be, see ``augment``.
        experts: of each environment the expert that its sequences are meant for, where routers are told.
        seed: of every choice.

    Attributes:
        cache: of decoded chunks; at first of the newest one only.
    """

    def __init__(
        self,
        datasets: Sequence[EnvironmentDataset],
        processor: LDMProcessor,
        *,
        context_length: int,
        weights: str | Mapping[str, float] = "uniform",
        sequences_per_chunk: int = 1,
        augmentation: float = 0.0,
        experts: Mapping[str, int] | None = None,
        seed: int = 0,
    ):
        self._datasets = list(datasets)
        self._processor = processor
        self._context_length = context_length
        self._per_chunk = sequences_per_chunk
        self._augmentation = augmentation
        self._experts = experts or {}
        self._seed = seed
        self._layouts = [
            (processor.observation_layout(data.observation_space), processor.action_layout(data.action_space))
            for data in self._datasets
        ]
        self._checks = [ValueChecks(*layouts) for layouts in self._layouts]
        self._turns = _turns_of_a_round(_weights(self._datasets, weights))
        self.cache = ChunkCache()
        self._rounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def context_length(self) -> int:
        """Transitions of a sequence, where its chunk has so many."""
        return self._context_length

    @property
    def layouts(self) -> list[tuple[SlotLayout, SlotLayout]]:
        """Of observations and actions of each environment."""
        return list(self._layouts)

    def __getitem__(self, number: int) -> TokenSequence:
        environment, chunk, start = self.locate(number)
        window = slice(start, start + self._context_length)
        transitions = self.cache.read(f"{environment}-{chunk}", window, lambda: self._read(environment, chunk))
        observed, acted = self._layouts[environment]
        random = self._random(_AUGMENTATION, number)
        if random.random() < self._augmentation:
            transitions, observed, acted = augment(transitions, observed, acted, random)
        return self._processor.align(transitions, observed, acted)

    def blank(self, number: int) -> TokenSequence:
        """A sequence of zeros that has the shape of sequence ``number``, made without reading it."""
        observation, action = self._layouts[self.locate(number)[0]]
        length, side = self.length(number), observation.image_size
        actions, never = np.zeros((length, action.num_slots), np.float32), np.zeros(length, bool)
        blank = Transitions(
            np.zeros((length, observation.num_slots), np.float32),
            None if observation.image is None else np.zeros((length, side, side, 3), np.uint8),
            actions,
            np.zeros(length, np.float32),
            never,
            never,
            actions,
        )
        return self._processor.align(blank, observation, action)

    def locate(self, number: int) -> tuple[int, int, int]:
        """Where sequence ``number`` comes from: environment index, chunk index, first transition in the chunk."""
        environment, visit, chunk = self._visit(number)
        length = int(self._datasets[environment].chunk_lengths[chunk])
        return environment, chunk, self._start(environment, visit, number % self._per_chunk, length)

    def source(self, number: int) -> Source:
        """The rows of a file that sequence ``number`` is made of, known without reading it."""
        index, chunk, start = self.locate(number)
        data = self._datasets[index]
        rows = data.rows(chunk)[start : start + self._context_length]
        return Source(data.environment, data.file(chunk), rows.start, rows.stop - 1)

    def expert(self, number: int) -> int | None:
        """The expert that sequence ``number`` is meant for, -100 where it is none's; None where routers are not told."""
        if not self._experts:
            return None
        environment, *_ = self._visit(number)
        return self._experts.get(self._datasets[environment].environment, _NO_EXPERT)

    def length(self, number: int) -> int:
        """Transitions of sequence ``number``, known without reading it."""
        environment, _, chunk = self._visit(number)
        return min(self._context_length, int(self._datasets[environment].chunk_lengths[chunk]))

    def _read(self, environment: int, chunk: int) -> Transitions:
        """A chunk by environment and number; raises ``DatasetFormatError`` if a value in it cannot be right."""
        data = self._datasets[environment]
        transitions = data.chunk(chunk)
        where = f"{data.environment}: {data.file(chunk)}"
        self._checks[environment].require(transitions, where, data.rows(chunk).start)
        return transitions

    def _visit(self, number: int) -> tuple[int, int, int]:
        """The environment of a sequence, how often it was visited before, and the chunk of this visit."""
        index, turn = divmod(number // self._per_chunk, int(self._turns.sum()))
        if index not in self._rounds:
            self._rounds = {index: self._round(index)}  # One round is enough: sequences are asked for in order.
        order, ranks = self._rounds[index]
        environment = int(order[turn])
        visit = index * int(self._turns[environment]) + int(ranks[turn])
        return environment, visit, self._chunk_of(environment, visit)

    def _start(self, environment: int, visit: int, place: int, length: int) -> int:
        """Where the ``place``-th sequence of a visit begins in a chunk of so many transitions."""
        room = length - self._per_chunk * self._context_length
        if room >= 0:
            return int(self._random(_OFFSET, environment, visit).integers(room + 1)) + place * self._context_length
        room = length - self._context_length
        return int(self._random(_OFFSET, environment, visit, place).integers(room + 1)) if room > 0 else 0

    def _round(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The environment of each turn of a round, and how many turns it had before in that round."""
        order = np.repeat(np.arange(len(self._turns)), self._turns)
        order = self._random(_SCHEDULE, index).permutation(order)
        by_environment = np.argsort(order, kind="stable")
        ranks = np.empty_like(order)
        ranks[by_environment] = np.concatenate([np.arange(turns) for turns in self._turns])
        return order, ranks

    def _chunk_of(self, environment: int, visit: int) -> int:
        epoch, position = divmod(visit, self._datasets[environment].num_chunks)
        if environment not in self._epochs or self._epochs[environment][0] != epoch:
            order = self._random(_CHUNKS, environment, epoch).permutation(self._datasets[environment].num_chunks)
            self._epochs[environment] = (epoch, order)
        return int(self._epochs[environment][1][position])

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *key))


class SequenceNumbers(Sampler[list[int]]):
    """The batches of one process: in step s, the processes share sequences s x batch_size to (s+1) x batch_size - 1.

    Args:
        steps: range of optimizer steps.
        batch_size: sequences of an optimizer step, over all processes: a multiple of ``pieces x world_size``.
        pieces: batches into which a process cuts its share.
        rank, world_size: of the process.
    """

    def __init__(self, steps: range, batch_size: int, pieces: int, rank: int, world_size: int):
        self._steps = steps
        self._batch_size = batch_size
        self._size = batch_size // (pieces * world_size)
        self._starts = range(rank * self._size, batch_size, world_size * self._size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            for start in self._starts:
                first = step * self._batch_size + start
                yield list(range(first, first + self._size))

    def __len__(self) -> int:
        return len(self._steps) * len(self._starts)


def _weights(datasets: Sequence[EnvironmentDataset], weights: str | Mapping[str, float]) -> np.ndarray:
    if weights == "uniform":
        return np.ones(len(datasets))
    if weights == "size":
        return np.array([data.num_transitions for data in datasets], float)
    assert not isinstance(weights, str)
    ids = [data.environment for data in datasets]
    if set(ids) != set(weights) or min(weights.values()) <= 0:
        differing = sorted(set(ids) ^ set(weights))
        raise ConfigError(f"weights must give each environment one positive number; look at {differing or weights}")
    return np.array([weights[environment] for environment in ids], float)


def _turns_of_a_round(weights: np.ndarray) -> np.ndarray:
    """How many turns each environment has in a round: whole numbers, at least 1, near to the weights."""
    if (weights == weights[0]).all():
        return np.ones(len(weights), np.int64)
    shares = weights / weights.sum() * len(weights) * _SLOTS_PER_ENVIRONMENT
    return np.maximum(1, np.rint(shares)).astype(np.int64)
