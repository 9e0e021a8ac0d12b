"""An environment that is rolled out: its rows in a batch, from their first reset to their last episode."""

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Literal

import gymnasium

from ldm_hf.dataset_builder.anchors.success import EpisodeSuccess
from ldm_hf.env_registry.registry import is_isolated, make
from ldm_hf.env_registry.remote.vector_env import RemoteEnv
from ldm_hf.errors import EnvironmentFailure, LDMError, one_line
from ldm_hf.evaluation.players import Player
from ldm_hf.evaluation.protocol import Protocol, RolloutResult
from ldm_hf.evaluation.video import RENDER_MODE

Watch = Callable[[gymnasium.Env], None]
Wrap = Callable[[int, gymnasium.Env], gymnasium.Env]


class Trial:
    """An environment on trial: its rollouts, and what they gave.

    With ``asynchronous``, isolated environments start later episodes without being waited for.
    """

    def __init__(
        self,
        environment: str,
        protocol: Protocol,
        progress: Callable,
        finished: Callable,
        wrap: Wrap = lambda rollout, env: env,
        asynchronous: bool = False,
    ):
        self.environment, self.protocol, self.asynchronous = environment, protocol, asynchronous
        self.result = RolloutResult()
        self.rows: list[Row] = []
        self._progress, self._finished, self._wrap = progress, finished, wrap
        self._watch: Watch | None = None
        self._futures: dict[int, Future[gymnasium.Env]] = {}

    def prepare(self, executor: Executor, watch: Watch | None) -> None:
        """Have isolated environments made, all of them at the same time."""
        self._watch = watch
        self.guard(self._prepare, executor)

    @property
    def is_made(self) -> bool:
        """Whether opening it waits for no environment to be made."""
        return all(future.done() for future in self._futures.values())

    def open(self, player: Player) -> None:
        """Make the other environments, and reset those of all rollouts."""
        for number in range(self.protocol.rollouts):
            self.guard(self._open_row, number, player)

    def guard(self, action: Callable, *arguments: Any) -> None:
        """Do something with the environment, unless it has failed; from its failure on, it takes part no more."""
        if self.result.failure is not None:
            return
        try:
            action(*arguments)
        except Exception as error:  # Libraries fail in ways of their own.
            self.result.failure = self._named(error)
            self._finish()

    def episode_ended(self, row: "Row") -> None:
        """Tell of an episode; after the last one, the environments are closed and the result is handed on."""
        self._progress(self.environment, sum(map(len, self.result.returns)))
        row.is_running = len(self.result.returns[row.number]) < self.protocol.episodes
        if row.is_running:
            self.guard(row.start_episode)
        elif not any(row.is_running for row in self.rows):
            self._finish()

    def close(self) -> None:
        """Close what is still open."""
        envs = [row.env for row in self.rows]
        for future in self._futures.values():
            if not future.cancel() and future.exception() is None:
                envs.append(future.result())
        self.rows, self._futures = [], {}
        for env in envs:
            with contextlib.suppress(Exception):  # What is wrong with it at its end is nobody's concern.
                env.close()

    def _prepare(self, executor: Executor) -> None:
        if is_isolated(self.environment):
            self._futures = {number: executor.submit(self._make, number) for number in range(self.protocol.rollouts)}

    def _make(self, number: int) -> gymnasium.Env:
        rendered = number == 0 and self._watch is not None
        try:
            return make(
                self.environment, render_mode=RENDER_MODE if rendered else None, step_timeout=self.protocol.step_timeout
            )
        except EnvironmentFailure as error:
            if not rendered:
                raise
            raise EnvironmentFailure(f"{self.environment} cannot be made to draw itself: {error}") from error

    def _open_row(self, number: int, player: Player) -> None:
        future = self._futures.pop(number, None)
        env = self._make(number) if future is None else future.result()
        row = Row(self, number, self._wrap(number, env), self._watch if number == 0 else None)
        self.rows.append(row)
        self.result.returns.append([])
        self.result.lengths.append([])
        self.result.successes.append([])
        row.start_episode(self.protocol.first_seed(number))
        player.check(env, row.observation)

    def _finish(self) -> None:
        for row in self.rows:
            row.is_running = False
        self.close()
        self._finished(self.environment, self.result)

    def _named(self, error: Exception) -> LDMError:
        if isinstance(error, LDMError):
            return error
        reason = one_line(error)
        failure = EnvironmentFailure(f"{self.environment} broke while it was rolled out: {reason}")
        failure.__cause__ = error
        return failure


class Row:
    """One rollout: an environment, and what its last step gave."""

    def __init__(self, trial: Trial, number: int, env: gymnasium.Env, watch: Watch | None):
        self.trial, self.number, self.env = trial, number, env
        self.is_running = True
        self.observation: object = None
        self._action: object = None
        self._doing: Literal["step", "reset"] | None = None
        self.reward = 0.0
        self.terminated = self.truncated = False
        self._total, self._length, self._success = 0.0, 0, EpisodeSuccess()
        self._watch = watch or (lambda _: None)

    def send(self, action: object) -> None:
        """Take an action, without waiting where the environment has a process of its own."""
        self._action, self._doing = action, "step"
        if isinstance(self.env, RemoteEnv):
            self.trial.guard(self.env.step_async, action)

    @property
    def is_pending(self) -> bool:
        """Whether there is something to receive: what the action brought, or what an episode begins with."""
        return self._doing is not None

    def receive(self) -> None:
        """What the action brought; the next episode begins where one ends, unless it was the last."""
        doing, self._doing = self._doing, None
        if doing == "reset":
            assert isinstance(self.env, RemoteEnv)
            self.trial.guard(self._begin, self.env.reset_wait)
            return
        self.trial.guard(self._step)
        if self.is_running and (self.terminated or self.truncated):
            self.trial.result.returns[self.number].append(self._total)
            self.trial.result.lengths[self.number].append(self._length)
            if self._success.result is not None:
                self.trial.result.successes[self.number].append(self._success.result)
            self.trial.episode_ended(self)

    def start_episode(self, seed: int | None = None) -> None:
        """Reset; the outcome keeps the done flags of the step before, beside the reset's observation."""
        if self.trial.asynchronous and seed is None and isinstance(self.env, RemoteEnv):
            self.env.reset_async()
            self._doing = "reset"
            return
        self._begin(lambda: self.env.reset(seed=seed))

    def is_readable(self, player: Player) -> bool:
        """Whether the player can read the observation; if not, the environment has failed."""
        self.trial.guard(player.check, self.env, self.observation)
        return self.is_running

    def _begin(self, reset: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
        self.observation, _ = reset()
        self._total, self._length, self._success = 0.0, 0, EpisodeSuccess()
        self._watch(self.env)

    def _step(self) -> None:
        result = self.env.step_wait() if isinstance(self.env, RemoteEnv) else self.env.step(self._action)
        self.observation, reward, self.terminated, self.truncated, info = result
        self._success.see(info)
        self.reward = float(reward)
        if not math.isfinite(self.reward):
            raise EnvironmentFailure(f"{self.trial.environment} gave a reward of {self.reward}: nothing can be scored")
        self._total += self.reward
        self._length += 1
        self._watch(self.env)


def outcomes(rows: Sequence[Row]) -> tuple[list[float], list[bool], list[bool]]:
    """What the last actions brought: rewards, terminations and truncations."""
    return [row.reward for row in rows], [row.terminated for row in rows], [row.truncated for row in rows]
