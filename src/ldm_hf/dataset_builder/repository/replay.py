"""Replays recorded actions in the real environment: data that say what happened say it twice."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.format.row_groups import read_table
from ldm_hf.dataset_builder.format.schema import BY_STREAM, EPISODES_FILE
from ldm_hf.env_registry.registry import make_vec, spec
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions


@dataclass(frozen=True)
class Replay:
    """How a run's data compare with what its environment does again.

    Attributes:
        rows: that were compared.
        different: of them, those whose observation, reward or end is another one.
        first: where the first of them is, and what differs there; empty if none does.
    """

    rows: int
    different: int
    first: str


def why_not(dataset: EnvironmentDataset) -> str | None:
    """Why a run cannot be replayed; None if it can."""
    info = dataset.info
    if info.seeding != BY_STREAM or info.max_episode_steps is None:
        return "its metadata do not say how its environment was seeded and limited"
    if spec(info.environment).nondeterministic:
        return "its library says that a seed does not fix this environment"
    return None


def replay(dataset: EnvironmentDataset, progress: Callable[[int], object] = lambda rows: None) -> Replay:
    """Step the recorded actions of one run in its environment, made, seeded and limited as its metadata say.

    Streams are stepped together as they were recorded, and reset when the algorithm reset them. Where one stream differs,
    all that follows in it may differ too: the first difference is what counts.

    Args:
        dataset: one run.
        progress: called with the number of rows that were compared since.

    Raises:
        DatasetFormatError: the run cannot be replayed, or its files are damaged.
        UnknownEnvironmentError, EnvironmentFailure: the environment cannot be made, or breaks.
        HubError: a file cannot be had from the Hub.
    """
    reason = why_not(dataset)
    if reason is not None:
        raise DatasetFormatError(f"{dataset.environment}, run {dataset.info.run} cannot be replayed: {reason}")
    info = dataset.info
    envs = make_vec(
        info.environment,
        info.num_streams,
        autoreset_mode=AutoresetMode.SAME_STEP,
        max_episode_steps=info.max_episode_steps,
    )
    with contextlib.closing(envs):
        return _Replaying(dataset, envs, progress).run()


class _Replaying:
    def __init__(self, dataset: EnvironmentDataset, envs: Any, progress: Callable[[int], object]) -> None:
        self._info = dataset.info
        self._envs, self._progress = envs, progress
        self._streams = [_Stream(dataset, index) for index in range(self._info.num_streams)]
        self._observation = SlotLayout.of(self._info.observation_space)
        self._action = SlotLayout.of(self._info.action_space, role="action")
        self._resets = _resets(dataset)
        self._rows = self._different = 0
        self._first = ""

    def run(self) -> Replay:
        observations: Any = None
        for step in range(max(stream.length for stream in self._streams)):
            observations = self._reset(step, observations)
            rows = [stream.row(step) for stream in self._streams]
            slots, images = self._observation.flatten(observations, batched=True)
            result = self._envs.step(self._actions(rows))
            observations, rewards, terminated, truncated, _ = result
            for index, row in enumerate(rows):
                if row is not None:
                    image = None if images is None else images[index]
                    ends = bool(terminated[index]), bool(truncated[index] and not terminated[index])
                    self._compare(index, step, row, slots[index], image, np.float32(rewards[index]), ends)
            self._progress(sum(row is not None for row in rows))
        return Replay(self._rows, self._different, self._first)

    def _reset(self, step: int, observations: Any) -> Any:
        """Reset what the algorithm reset before a step; a stream that has ended is not looked at."""
        resets = self._resets.get(step, {})
        for number in range(max(resets.values(), default=0)):
            mask = np.array([stream.length <= step or resets.get(index, 0) > number
                             for index, stream in enumerate(self._streams)])  # fmt: skip
            seeds = [self._info.seed + index for index in range(len(mask))] if step == number == 0 else None
            observations, _ = self._envs.reset(seed=seeds, options=None if mask.all() else {"reset_mask": mask})
        return observations

    def _actions(self, rows: "list[Transitions | None]") -> Any:
        """What the environments are given; a stream that has ended takes its last action again, and is not looked at."""
        last = [stream.last_action if row is None else row.actions[0]
                for row, stream in zip(rows, self._streams, strict=True)]  # fmt: skip
        return self._action.values(np.stack(last))

    def _compare(
        self,
        stream: int,
        step: int,
        row: Transitions,
        slots: np.ndarray,
        image: np.ndarray | None,
        reward: np.float32,
        ends: tuple[bool, bool],
    ) -> None:
        recorded_ends = bool(row.terminated[0]), bool(row.truncated[0])
        # What the algorithm broke off by a reset, the environment did not end.
        broken_off = recorded_ends == (False, True) and (
            stream in self._resets.get(step + 1, {}) or self._streams[stream].length == step + 1
        )
        differences = []
        wrong = np.flatnonzero(~np.equal(row.observations[0], slots))
        if wrong.size:
            slot = int(wrong[0])
            differences.append(
                f"slot {slot} of the observation is {slots[slot]:g}, recorded {row.observations[0, slot]:g}"
            )
        if image is not None and row.images is not None and (row.images[0] != image).any():
            differences.append("the image is another one")
        if reward != row.rewards[0]:
            differences.append(f"the reward is {reward:g}, recorded {row.rewards[0]:g}")
        if ends != recorded_ends and not (broken_off and ends == (False, False)):
            names = {(False, False): "continues", (True, False): "terminates", (False, True): "is truncated"}
            differences.append(f"the episode {names[ends]}, recorded that it {names.get(recorded_ends, 'ends twice')}")
        self._rows += 1
        if differences:
            self._different += 1
            self._first = self._first or f"stream {stream}, step {step}: {'; '.join(differences)}"


class _Stream:
    """The transitions of one stream in time order, of which one chunk is in memory."""

    def __init__(self, dataset: EnvironmentDataset, stream: int) -> None:
        places = [(start, chunk) for chunk, (found, start) in enumerate(dataset.places()) if found == stream]
        self._dataset, self._chunks = dataset, sorted(places)
        self.length = int(sum(dataset.chunk_lengths[chunk] for _, chunk in self._chunks))
        self._start, self._part = 0, dataset.chunk(self._chunks[0][1])
        self._next = 1
        self.last_action = self._part.actions[0]

    def row(self, step: int) -> Transitions | None:
        """The transition of the next step; None behind the last."""
        if step >= self.length:
            return None
        if step == self._start + len(self._part):
            self._start, chunk = self._chunks[self._next]
            self._part, self._next = self._dataset.chunk(chunk), self._next + 1
        row = self._part[step - self._start : step - self._start + 1]
        self.last_action = row.actions[0]
        return row


def _resets(dataset: EnvironmentDataset) -> dict[int, dict[int, int]]:
    """Of each step, how many times the algorithm reset each stream before it, where it did."""
    file = dataset.beside(EPISODES_FILE)
    table = file.storage.read(file.path, read_table)
    found: dict[int, dict[int, int]] = {}
    for stream, step, number in zip(*(table[name].to_pylist() for name in ("stream", "step", "resets")), strict=True):
        if number:
            found.setdefault(step, {})[stream] = number
    return found
