"""Rollouts by the paper's protocol (section 5.1): of one environment, or of many in batches."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from ldm_hf.dataset_builder.anchors.success import EpisodeSuccess
from ldm_hf.env_registry.registry import is_isolated, make
from ldm_hf.env_registry.remote.vector_env import RemoteEnv
from ldm_hf.env_registry.remote.worker_batch import STEP_TIMEOUT
from ldm_hf.errors import EnvironmentFailure, InvalidValueError, LDMError, one_line
from ldm_hf.evaluation.players import ModelPlayer, Player
from ldm_hf.evaluation.video import RENDER_MODE
from ldm_hf.modeling import LDMModel, LDMProcessor

EPISODES = 10
ROLLOUTS = 2

EVALUATION_SEED = 1_000_000_000
"""First seed of evaluation; training and reference scoring stay far below, so no evaluated start was trained on."""

Watch = Callable[[gymnasium.Env], None]
Wrap = Callable[[int, gymnasium.Env], gymnasium.Env]
Failure = LDMError


@dataclass(frozen=True)
class Protocol:
    """How much is rolled out. Rollout ``r`` begins with the seed ``EVALUATION_SEED + 1000 x seed + r``.

    Attributes:
        episodes: of each rollout.
        rollouts: of each environment.
        seed: of the environments.
        step_timeout: seconds that a step of an isolated environment may take; it has failed after that.
    """

    episodes: int = EPISODES
    rollouts: int = ROLLOUTS
    seed: int = 0
    step_timeout: float = STEP_TIMEOUT

    def first_seed(self, rollout: int) -> int:
        """The seed of the first reset of a rollout; the environment's own randomness continues from there."""
        return EVALUATION_SEED + 1000 * self.seed + rollout


@dataclass
class RolloutResult:
    """Returns and lengths of the episodes of each rollout, in order; why there are no more, where it failed.

    ``successes`` says of each whether it succeeded; it is empty where the environment does not say.
    """

    returns: list[list[float]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    failure: Failure | None = None
    successes: list[list[bool]] = field(default_factory=list)

    @property
    def mean_return(self) -> float:
        """Mean over all episodes of all rollouts."""
        every = [value for rollout in self.returns for value in rollout]
        return sum(every) / len(every)


def evaluate_environment(
    model: LDMModel,
    processor: LDMProcessor,
    environment: str,
    *,
    episodes: int = EPISODES,
    rollouts: int = ROLLOUTS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Watch | None = None,
    compile: bool = False,
) -> RolloutResult:
    """Roll a model out: the context is empty at the start of a rollout and kept across its episodes.

    The rollouts are rows of one batch. Only the first reset of each is seeded, see ``Protocol``.

    Args:
        model, processor: what acts, by masked argmax.
        environment: id of the environment.
        episodes: of each rollout.
        rollouts: how many.
        seed: of the environments.
        progress: told the number of episodes that ended, and of all.
        watch: called with the first rollout's environment, made to show images, after each of its resets and steps.
        compile: as of ``LDMPolicy``.

    Raises:
        EnvironmentFailure: the environment broke; the message names it.
        UnsupportedSpaceError: it does not fit the model.
    """
    protocol = Protocol(episodes, rollouts, seed)

    def told(_: str, done: int) -> None:
        progress(done, episodes * rollouts)

    player = ModelPlayer(model, processor, compile=compile)
    (result,) = roll_out(player, [environment], protocol, progress=told, watch=watch)
    if result.failure is not None:
        raise result.failure
    return result


def roll_out(
    player: Player,
    environments: Sequence[str],
    protocol: Protocol,
    *,
    progress: Callable[[str, int], None] = lambda environment, done: None,
    finished: Callable[[str, RolloutResult], None] = lambda environment, result: None,
    watch: Watch | None = None,
    wrap: Wrap = lambda rollout, env: env,
) -> list[RolloutResult]:
    """Roll out in several environments at once; every rollout is a row of one batch, and leaves it when it ends.

    Isolated environments start, and take their steps, at the same time; those of this process one after another.
    An environment that breaks leaves the batch with all of its rows, and the others continue.

    Args:
        player: what acts.
        environments: ids.
        protocol: how much.
        progress: told an environment and how many of its episodes ended.
        finished: given the result of an environment as soon as it is complete, or failed.
        watch: as in ``evaluate_environment``, of the first environment.
        wrap: given the number of a rollout and its environment, makes the environment that is acted in.

    Returns:
        A result for each environment, in order; ``failure`` says why one has fewer episodes.
    """
    trials = [_Trial(name, protocol, progress, finished, wrap) for name in environments]
    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        for index, trial in enumerate(trials):
            trial.prepare(executor, watch if index == 0 else None)
        for trial in trials:
            trial.open(player)
        _play([row for trial in trials for row in trial.rows if row.is_running], player)
    finally:
        for trial in trials:
            trial.close()
        executor.shutdown()
    return [trial.result for trial in trials]


def _play(rows: list["_Row"], player: Player) -> None:
    """Act in all rows until the last one has ended."""
    if not rows:
        return
    policy = player.start([row.env for row in rows])
    acted = False
    while rows:
        try:
            actions = policy.act([row.observation for row in rows], *(_outcomes(rows) if acted else ()))
        except InvalidValueError:
            # The policy is as it was. Rows whose observation it cannot read leave, and it is asked again.
            if all(row.is_readable(player) for row in rows):
                raise
        else:
            acted = True
            for row, action in zip(rows, actions, strict=True):
                row.send(action)
            for row in rows:
                row.receive()
        kept = [index for index, row in enumerate(rows) if row.is_running]
        if len(kept) < len(rows):
            rows = [rows[index] for index in kept]
            if rows:
                policy.select(kept)


def _outcomes(rows: Sequence["_Row"]) -> tuple[list[float], list[bool], list[bool]]:
    """What the last actions brought: rewards, terminations and truncations."""
    return [row.reward for row in rows], [row.terminated for row in rows], [row.truncated for row in rows]


class _Trial:
    """An environment on trial: its rollouts, and what they gave."""

    def __init__(self, environment: str, protocol: Protocol, progress: Callable, finished: Callable, wrap: Wrap):
        self.environment, self.protocol = environment, protocol
        self.result = RolloutResult()
        self.rows: list[_Row] = []
        self._progress, self._finished, self._wrap = progress, finished, wrap
        self._watch: Watch | None = None
        self._futures: dict[int, Future[gymnasium.Env]] = {}

    def prepare(self, executor: Executor, watch: Watch | None) -> None:
        """Have isolated environments made, all of them at the same time."""
        self._watch = watch
        self.guard(self._prepare, executor)

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

    def episode_ended(self, row: "_Row") -> None:
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
        drawn = number == 0 and self._watch is not None
        try:
            return make(
                self.environment, render_mode=RENDER_MODE if drawn else None, step_timeout=self.protocol.step_timeout
            )
        except EnvironmentFailure as error:
            if not drawn:
                raise
            raise EnvironmentFailure(f"{self.environment} cannot be made to draw itself: {error}") from error

    def _open_row(self, number: int, player: Player) -> None:
        future = self._futures.pop(number, None)
        env = self._make(number) if future is None else future.result()
        row = _Row(self, number, self._wrap(number, env), self._watch if number == 0 else None)
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

    def _named(self, error: Exception) -> Failure:
        if isinstance(error, Failure):
            return error
        reason = one_line(error)
        failure = EnvironmentFailure(f"{self.environment} broke while it was rolled out: {reason}")
        failure.__cause__ = error
        return failure


class _Row:
    """One rollout: an environment, and what its last step gave."""

    def __init__(self, trial: _Trial, number: int, env: gymnasium.Env, watch: Watch | None):
        self.trial, self.number, self.env = trial, number, env
        self.is_running = True
        self.observation: object = None
        self._action: object = None
        self.reward = 0.0
        self.terminated = self.truncated = False
        self._total, self._length, self._success = 0.0, 0, EpisodeSuccess()
        self._watch = watch or (lambda _: None)

    def send(self, action: object) -> None:
        """Take an action, without waiting where the environment has a process of its own."""
        self._action = action
        if isinstance(self.env, RemoteEnv):
            self.trial.guard(self.env.step_async, action)

    def receive(self) -> None:
        """What the action brought; the next episode begins where one ends, unless it was the last."""
        self.trial.guard(self._step)
        if self.is_running and (self.terminated or self.truncated):
            self.trial.result.returns[self.number].append(self._total)
            self.trial.result.lengths[self.number].append(self._length)
            if self._success.result is not None:
                self.trial.result.successes[self.number].append(self._success.result)
            self.trial.episode_ended(self)

    def start_episode(self, seed: int | None = None) -> None:
        """Reset; the outcome keeps the done flags of the step before, beside the reset's observation."""
        self.observation, _ = self.env.reset(seed=seed)
        self._total, self._length, self._success = 0.0, 0, EpisodeSuccess()
        self._watch(self.env)

    def is_readable(self, player: Player) -> bool:
        """Whether the player can read the observation; if not, the environment has failed."""
        self.trial.guard(player.check, self.env, self.observation)
        return self.is_running

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
