"""Rollouts by the paper's protocol (section 5.1): of one environment, or of many in batches."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ldm_hf.errors import InvalidValueError
from ldm_hf.evaluation.players import ModelPlayer, Player
from ldm_hf.evaluation.protocol import EPISODES, ROLLOUTS, Protocol, RolloutResult
from ldm_hf.evaluation.trial import Row, Trial, Watch, Wrap, outcomes
from ldm_hf.modeling import LDMModel, LDMProcessor


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
    trials = [Trial(name, protocol, progress, finished, wrap) for name in environments]
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


def _play(rows: list[Row], player: Player) -> None:
    """Act in all rows until the last one has ended."""
    if not rows:
        return
    policy = player.start([row.env for row in rows])
    acted = False
    while rows:
        try:
            actions = policy.act([row.observation for row in rows], *(outcomes(rows) if acted else ()))
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
