"""Rollouts of many environments, each at its own pace: the fast ones do not wait for the slow ones."""

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ldm_hf.env_registry.remote.ready import wait_for_workers
from ldm_hf.env_registry.remote.vector_env import RemoteEnv
from ldm_hf.errors import InvalidValueError
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import Protocol, RolloutResult
from ldm_hf.evaluation.trial import Row, Trial, outcomes

_AHEAD = 2
"""Environments that are being made while others are played."""

_PATIENCE = 0.05
"""Seconds after which it is asked whether the next environment is made."""


def roll_out_as_ready(
    player: ModelPlayer,
    environments: Sequence[str],
    protocol: Protocol,
    *,
    at_once: int,
    progress: Callable[[str, int], None] = lambda environment, done: None,
    finished: Callable[[str, RolloutResult], None] = lambda environment, result: None,
) -> list[RolloutResult]:
    """Roll out in many environments: those that have taken their steps act next, together.

    Where one has ended the next begins. Results are those of ``roll_out`` but for this: which environments act together
    depends on time, and with it the order of sums in their forward pass, as it does on the size of a batch.

    Args:
        player: what acts.
        environments: ids, in the order in which they begin.
        protocol: how much; the rollouts of an environment act together.
        at_once: how many environments are played at a time.
        progress, finished: as of ``roll_out``.

    Returns:
        A result for each environment, in order; ``failure`` says why one has fewer episodes.
    """
    trials = [Trial(name, protocol, progress, finished, asynchronous=True) for name in environments]
    waiting, unprepared, playing = deque(trials), deque(trials), list[_Rollouts]()
    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        while waiting or playing:
            while unprepared and len(waiting) - len(unprepared) < max(at_once - len(playing), 0) + _AHEAD:
                unprepared.popleft().prepare(executor, None)
            while waiting and len(playing) < at_once and (waiting[0].is_made or not playing):
                trial = waiting.popleft()
                trial.open(player)
                playing += [_Rollouts(trial, player)] if trial.result.failure is None else []
            patience = _PATIENCE if waiting and len(playing) < at_once else math.inf
            acting = [rollouts for rollouts in _ready(playing, patience) if rollouts.observe()]
            if acting:
                chosen = player.choose([rollouts.policy for rollouts in acting])
                for rollouts, actions in zip(acting, chosen, strict=True):
                    rollouts.send(actions)
            playing = [rollouts for rollouts in playing if rollouts.rows]
    finally:
        for trial in trials:
            trial.close()
        executor.shutdown()
    return [trial.result for trial in trials]


class _Rollouts:
    """The rollouts of an environment, which act together."""

    def __init__(self, trial: Trial, player: ModelPlayer):
        self.rows: list[Row] = [row for row in trial.rows if row.is_running]
        self.policy = player.start([row.env for row in self.rows])
        self._player = player
        self._acted = False

    @property
    def pending(self) -> list[RemoteEnv]:
        """The environments that are taking a step, or are being reset, in processes of their own."""
        return [row.env for row in self.rows if row.is_pending and isinstance(row.env, RemoteEnv)]

    def observe(self) -> bool:
        """Take what the environments gave, and tell the policy; whether it can choose actions then."""
        for row in self.rows:
            if row.is_pending:
                row.receive()
        self._drop_ended()
        if not self.rows or self.pending:
            return False
        seen = [row.observation for row in self.rows], *(outcomes(self.rows) if self._acted else ())
        try:
            self.policy.observe(*seen)
        except InvalidValueError:
            if all(row.is_readable(self._player) for row in self.rows):
                raise
            self._drop_ended()  # all of them: the environment has failed
            return False
        self._acted = True
        return True

    def send(self, actions: Sequence[object]) -> None:
        """Take actions, without waiting where the environment has a process of its own."""
        for row, action in zip(self.rows, actions, strict=True):
            row.send(action)
        self._drop_ended()

    def _drop_ended(self) -> None:
        kept = [index for index, row in enumerate(self.rows) if row.is_running]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[index] for index in kept]
            if kept:
                self.policy.select(kept)


def _ready(playing: Sequence[_Rollouts], patience: float) -> list[_Rollouts]:
    """Those all of whose environments have done what they were sent; at least one, if it does so in time."""
    waited = [env for rollouts in playing for env in rollouts.pending]
    least = 0 if any(not rollouts.pending for rollouts in playing) else 1
    while True:
        answered = wait_for_workers([env.awaited for env in waited], least, timeout=patience)
        found = {id(waited[index]) for index in answered}
        ready = [rollouts for rollouts in playing if all(id(env) in found for env in rollouts.pending)]
        if ready or len(answered) < least or not playing:
            return ready
        least = len(found) + 1
