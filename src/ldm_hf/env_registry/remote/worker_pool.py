"""Several workers as one batch of environments, and what happens when one of them fails."""

import copy
import enum
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError

from ldm_hf.env_registry.remote.infos import Columns, check
from ldm_hf.env_registry.remote.ready import wait_for_workers
from ldm_hf.env_registry.remote.step import Step, StepLayout
from ldm_hf.env_registry.remote.worker_batch import CLIENT_SPIN, RemoteSettings, WorkerBatch
from ldm_hf.errors import ConfigError, EnvironmentFailure, InvalidValueError

FAILURE_KEY = "worker_failure"


def replaced(info: dict[str, Any]) -> np.ndarray | None:
    """Which environments a step under ``SAME_STEP`` cut off because their worker failed, shape (B,); None if none."""
    failed = info.get("final_info", {}).get(f"_{FAILURE_KEY}")
    return None if failed is None or not np.any(failed) else np.asarray(failed, bool)


"""Key of the info that says why a worker was replaced."""

COUNTS = ("steps", "observations_outside_space", "nonfinite_rewards", "vector_rewards")
"""What workers count."""

_MAX_FAILURES = 3  # of one worker without a step between them: then replacing it is of no use


class State(enum.Enum):
    """What a pool can be asked for."""

    READY = enum.auto()
    STEPPING = enum.auto()  # a step was sent, and its end is not awaited yet
    RESETTING = enum.auto()  # the same of a reset
    SENT = enum.auto()  # the same of a step of some workers
    INTERRUPTED = enum.auto()  # an exception ended a step or a reset before its answers were taken
    CLOSED = enum.auto()


class WorkerPool:
    """``num_envs`` environments, divided over ``num_workers`` workers that step at the same time.

    What is asked for at the wrong time is refused: ``ClosedEnvironmentError`` after ``close``, ``AlreadyPendingCallError``
    between ``send_step`` and ``receive_step``, and ``EnvironmentFailure`` after a step or a reset that an exception such as
    ``KeyboardInterrupt`` ended: nobody saw what it did, so that only a reset of all environments can follow. The shared
    memory is written to by one side at a time for the same reason.
    """

    def __init__(self, settings: RemoteSettings, num_envs: int, num_workers: int, autoreset: str) -> None:
        """Start the workers.

        Raises:
            ConfigError: there are more workers than environments, or none.
            EnvironmentFailure: one did not start; none is left.
        """
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, got {num_envs}")
        if not 1 <= num_workers <= num_envs:
            raise ConfigError(f"num_workers must lie between 1 and num_envs ({num_envs}), got {num_workers}")
        self.settings, self.num_envs, self.autoreset = settings, num_envs, autoreset
        self._state = State.READY
        bounds = [num_envs * worker // num_workers for worker in range(num_workers + 1)]
        self.slices = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        self._sizes = [part.stop - part.start for part in self.slices]
        self._spin = num_workers < len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else False
        self._failures = [0] * num_workers
        self._failed: list[EnvironmentFailure | None] = [None] * num_workers
        self.workers: list[WorkerBatch | None] = [None] * num_workers
        self._last: list[Any] = []
        self._sent: set[int] = set()  # workers whose step was sent by `send_rows` and not received
        try:
            with ThreadPoolExecutor(min(num_workers, 8)) as pool:
                list(pool.map(self._start, range(num_workers)))
        except BaseException:
            self.close()
            raise
        first = self.workers[0]
        assert first is not None
        self.description = first.description
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self._layout = StepLayout(self.description["observation_space"], self.slices)

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict[str, Any] | None], mask: np.ndarray | None
    ) -> Step:
        """Reset the environments of the mask, or all; failed workers are replaced first."""
        if mask is not None and self._state is State.INTERRUPTED:
            raise EnvironmentFailure(f"{self.settings.id}: the last call was interrupted; reset all environments")
        self._prepare_reset()

        def ask(index: int) -> dict[str, Any]:
            part = self.slices[index]
            return self._worker(index).reset(seeds[part], options[part], None if mask is None else mask[part].tolist())

        return self._gather(ask, self._indices())

    def send_reset(self, seeds: Sequence[int | None]) -> None:
        """Reset all environments without waiting; ``receive_reset`` must follow."""
        self._prepare_reset()
        self._state = State.INTERRUPTED
        for index, part in enumerate(self.slices):
            self._failed[index] = None
            self._worker(index).send_reset(seeds[part], [None] * self._sizes[index])
        self._state = State.RESETTING

    def receive_reset(self) -> Step:
        """Wait until the environments that were sent to reset have."""
        self._refuse_when_closed()
        if self._state is not State.RESETTING:
            raise NoAsyncCallError("Calling `reset_wait` without any prior call to `reset_async`.", "reset")
        return self._gather(lambda index: self._worker(index).receive("reset"), self._indices())

    def step(self, actions: Sequence[Any]) -> Step:
        """Have every environment take its action; ``actions`` are the leaves of a batch of the action space."""
        self._send_step(actions)
        return self._gather(self._receive, self._indices())

    def send_step(self, actions: Sequence[Any]) -> None:
        """Have every environment take its action without waiting; ``receive_step`` must follow."""
        self._send_step(actions)
        self._state = State.STEPPING

    def receive_step(self) -> Step:
        """Wait until every environment has taken the step that was sent."""
        self._refuse_when_closed()
        if self._state is not State.STEPPING:
            raise NoAsyncCallError("Calling `step_wait` without any prior call to `step_async`.", "step")
        return self._gather(self._receive, self._indices())

    def send_rows(self, rows: np.ndarray, actions: Sequence[Any]) -> None:
        """Have all environments of some workers take their actions without waiting; ``receive_rows`` must follow.

        Args:
            rows: numbers of environments, those of a worker one after another.
            actions: leaves of a batch of the action space, of as many environments.
        """
        if self._state is not State.SENT:
            self._refuse_unless_ready("send")
        workers = self._workers_of(rows)
        self._check_number(actions, len(rows))
        stops = np.cumsum([self._sizes[index] for index in workers])
        parts = [slice(first, last) for first, last in itertools.pairwise([0, *stops])]
        self._send(workers, [[values[part] for values in actions] for part in parts])
        self._sent.update(workers)
        self._state = State.SENT

    def receive_rows(self, least: int) -> tuple[np.ndarray, Step]:
        """Wait until ``least`` environments that were sent actions are ready, or all: which ones, and their step."""
        self._refuse_when_closed()
        if self._state is not State.SENT:
            raise NoAsyncCallError("Calling `recv` without any prior call to `send`.", "step")
        sent = sorted(self._sent)
        workers = [self.awaited(index) for index in sent]
        enough = -(-least // min(self._sizes[index] for index in sent))
        found = wait_for_workers(workers, max(1, enough), spin=CLIENT_SPIN if self._spin else 0.0)
        ready = [sent[place] for place in found]
        self._state = State.INTERRUPTED
        self._sent.difference_update(ready)
        step = self._gather(self._receive, ready, put_off=True)
        ready = [index for index in ready if index not in self._sent]
        rows = np.concatenate([self._rows(index) for index in ready])
        return rows, step.part(rows, ready)

    def awaited(self, index: int) -> WorkerBatch | None:
        """A worker that was sent a step or a reset; None where that has failed."""
        return None if self._failed[index] else self.workers[index]

    def ask(self, do: str, key: str = "values", **request: Any) -> list[Any]:
        """What a request gives for each environment: a value each, under ``key`` of the answers."""
        self._refuse_while_stepping(do)
        found = []
        for index, part in enumerate(self.slices):
            answer = self._worker(index).ask(do, **request)
            found += self._listed(index, answer, key, part.stop - part.start)
        return found

    def ask_rows(self, do: str, rows: Sequence[int], values: Sequence[Any] | None = None, **request: Any) -> list[Any]:
        """What a request gives for the environments of some rows, in the order of the rows.

        Args:
            do: the request.
            rows: numbers of environments.
            values: one per row, for the request.
            **request: what else the request holds.
        """
        self._refuse_while_stepping(do)
        found: dict[int, Any] = {}
        for index, part in enumerate(self.slices):
            mine = [place for place, row in enumerate(rows) if part.start <= row < part.stop]
            if mine:
                own = {} if values is None else {"values": [values[place] for place in mine]}
                places = [rows[place] - part.start for place in mine]
                answer = self._worker(index).ask(do, rows=places, **own, **request)
                found.update(zip(mine, self._listed(index, answer, "values", len(mine)), strict=True))
        return [found[place] for place in range(len(rows))]

    def render(self) -> list[Any]:
        """What each environment renders: an image, a text, None, or a list of these."""
        frames = self.ask("render", "frames")
        for index, part in enumerate(self.slices):
            with self._worker(index).trust():
                for frame in frames[part]:
                    _check_frame(frame)
        return frames

    def diagnostics(self) -> dict[str, Any]:
        """What the workers count, added up; see ``RemoteVectorEnv.diagnostics``."""
        self._refuse_while_stepping("diagnostics")
        counts = dict.fromkeys(COUNTS, 0)
        for index in self._indices():
            answer = self._worker(index).ask("diagnostics")
            with self._worker(index).trust():
                counts.update({key: counts[key] + int(answer[key]) for key in COUNTS})
                values = answer["step_values"]
        told = {key: self.description[key] for key in ("max_episode_steps", "time_limit_is_default")}
        return {**counts, "step_values": values, **told}

    def close(self) -> None:
        """End all workers."""
        self._state = State.CLOSED
        for index, worker in enumerate(self.workers):
            if worker is not None:
                worker.close()
            self.workers[index] = None

    def _refuse_when_closed(self) -> None:
        if self._state is State.CLOSED:
            raise ClosedEnvironmentError(f"{self.settings.id}: the environment is closed")

    def _refuse_while_stepping(self, name: str) -> None:
        self._refuse_when_closed()
        wait = {State.STEPPING: "step_wait", State.RESETTING: "reset_wait", State.SENT: "recv"}.get(self._state)
        if wait is not None:
            raise AlreadyPendingCallError(
                f"Calling `{name}` while waiting for a pending call to `step` to complete; call `{wait}` first", "step"
            )

    def _prepare_reset(self) -> None:
        self._refuse_while_stepping("reset")
        self._sent.clear()
        for index, worker in enumerate(self.workers):
            if worker is None or worker.ended:
                self._start(index)

    def _refuse_unless_ready(self, name: str) -> None:
        if self._state is not State.READY:
            self._refuse_while_stepping(name)
            raise EnvironmentFailure(f"{self.settings.id}: the last call was interrupted; call reset()")

    def _send_step(self, actions: Sequence[Any]) -> None:
        self._refuse_unless_ready("step_async")
        self._check_number(actions, self.num_envs)
        self._send(self._indices(), [[values[part] for values in actions] for part in self.slices])

    def _send(self, workers: Sequence[int], parts: Sequence[Sequence[Any]]) -> None:
        """Have the environments of some workers take their actions."""
        # All actions are checked before any environment steps.
        inline = [self._worker(index).write_actions(part) for index, part in zip(workers, parts, strict=True)]
        self._state = State.INTERRUPTED  # until the answers are taken
        for index, values in zip(workers, inline, strict=True):
            # A failure here is kept until the answers are read, when the other workers have finished.
            self._failed[index] = None
            try:
                self._worker(index).send_step(values)
            except EnvironmentFailure as failure:
                self._failed[index] = failure

    def _check_number(self, actions: Sequence[Any], number: int) -> None:
        for values in actions:
            if len(values) != number:
                raise InvalidValueError(
                    f"{self.settings.id}: actions have shape {np.shape(values)}, but there are {number} environments"
                )

    def _workers_of(self, rows: np.ndarray) -> list[int]:
        """The workers whose environments these are, in their order; refused if one has others too, or is stepping."""
        workers: list[int] = []
        if not len(rows):
            raise ConfigError("env_ids must be those of one worker at least, got none")
        while (done := sum(self._sizes[index] for index in workers)) < len(rows):
            starts = [index for index in self._indices() if self.slices[index].start == rows[done]]
            whole = [index for index in starts if np.array_equal(rows[done:][: self._sizes[index]], self._rows(index))]
            if not whole or whole[0] in workers or whole[0] in self._sent:
                raise ConfigError(
                    f"env_ids must be those of whole workers that are not stepping, as recv gives them, got {rows.tolist()}"
                )
            workers += whole
        return workers

    def _listed(self, index: int, answer: dict[str, Any], key: str, size: int) -> list[Any]:
        with self._worker(index).trust():
            if not isinstance(answer[key], list) or len(answer[key]) != size:
                raise ValueError(f"{key} are not those of {size} environments")
            return answer[key]

    def _receive(self, index: int) -> dict[str, Any]:
        failure = self._failed[index]
        if failure is not None:
            raise failure
        return self._worker(index).receive("step")

    def _indices(self) -> range:
        return range(len(self.slices))

    def _rows(self, index: int) -> np.ndarray:
        """Numbers of a worker's environments."""
        return np.arange(self.slices[index].start, self.slices[index].stop)

    def _start(self, index: int) -> None:
        part = self.slices[index]
        self.workers[index] = WorkerBatch(
            self.settings, part.stop - part.start, autoreset=self.autoreset, spin=self._spin
        )

    def _worker(self, index: int) -> WorkerBatch:
        worker = self.workers[index]
        if worker is None or worker.ended:
            raise EnvironmentFailure(f"{self.settings.id}: a worker has ended; call reset() to replace it")
        return worker

    def _attempt(self, index: int, ask: Callable[[int], dict[str, Any]], step: Step) -> EnvironmentFailure | None:
        """Read what a worker answers; one that fails is ended, because the state of its environments is unknown."""
        try:
            answer, worker = ask(index), self._worker(index)
            try:  # as `trust` does, in less time
                self._layout.read(index, worker, answer, step)
            except Exception as error:
                raise worker.distrust(error) from error
        except EnvironmentFailure as failure:
            failed = self.workers[index]
            if failed is not None:
                failed.close()
            self.workers[index] = None
            self._failures[index] += 1
            return failure
        self._failures[index] = 0
        return None

    def _gather(self, ask: Callable[[int], dict[str, Any]], workers: Sequence[int], *, put_off: bool = False) -> Step:
        """Take the answers of workers in turn, each copied while later ones are still busy.

        With ``put_off``, a failure is kept for the next ``receive_rows`` where other workers have answered.
        """
        self._state = State.INTERRUPTED
        step = self._layout.empty()
        failures = {}
        for index in workers:
            failure = self._attempt(index, ask, step)
            if failure is not None:
                failures[index] = failure
        for index, failure in list(failures.items()):
            if self.settings.restart and self._last and self._failures[index] <= _MAX_FAILURES:
                continue
            if put_off and len(failures) < len(workers):  # others are handed over first
                self._failed[index] = failures.pop(index)
                self._sent.add(index)
                workers = [other for other in workers if other != index]
                continue
            self._state = self._next_state()  # for a reset, as the worker has ended
            raise failure
        for index, failure in failures.items():
            self._replace(index, str(failure), step)
        self._keep_last(step, workers)
        self._state = self._next_state()
        return step

    def _next_state(self) -> State:
        return State.SENT if self._sent else State.READY

    def _keep_last(self, step: Step, workers: Sequence[int]) -> None:
        """Keep the observations with which episodes end whose worker fails."""
        if len(workers) == len(self.slices):
            self._last = step.observations
        elif self.settings.restart and self._last:
            self._last = [copy.copy(values) for values in self._last]  # they were handed out
            for values, new in zip(self._last, step.observations, strict=True):
                for index in workers:
                    values[self.slices[index]] = new[self.slices[index]]

    def _replace(self, index: int, reason: str, step: Step) -> None:
        """Start a new worker in place of a failed one; its environments' episodes end as truncated."""
        part = self.slices[index]
        size = part.stop - part.start
        info: Columns = {FAILURE_KEY: [[reason] * size, [True] * size]}
        self._start(index)
        step.rewards[part], step.ends[0, part], step.ends[1, part] = 0.0, False, True
        if self.autoreset == "SameStep":
            step.final_observations = step.final_observations or self._layout.room()
            step.final_infos[index] = info, size
            answer = self._worker(index).reset([None] * size, [None] * size)
            with self._worker(index).trust():
                check(answer.get("infos"), size)
                step.infos[index] = answer.get("infos"), size
                self._layout.copy(
                    self._worker(index).shared.observations, answer.get("inline"), part, step.observations
                )
        else:
            step.infos[index] = info, size
        last = step.final_observations if self.autoreset == "SameStep" else step.observations
        for values, before in zip(last, self._last, strict=True):
            values[part] = before[part]


def _check_frame(frame: Any, *, alone: bool = True) -> None:
    if isinstance(frame, list) and alone:
        for one in frame:
            _check_frame(one, alone=False)
    elif isinstance(frame, np.ndarray):
        if frame.ndim != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame has the shape {frame.shape} and holds {frame.dtype}")
    elif frame is not None and not isinstance(frame, str):
        raise ValueError(f"a frame is a {type(frame).__name__}")
