"""A model's own episodes in an environment, recorded as a dataset whose labels are the actions that it took."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.records import package_versions
from ldm_hf.dataset_builder.schema import RunInfo
from ldm_hf.dataset_builder.writer import Terminals
from ldm_hf.env_registry.registry import library_version, provenance, spec
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.rollout import Protocol, RolloutResult, roll_out
from ldm_hf.finetuning.episodes import write_run
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.modeling.transitions_ldm import Transitions

_ROWS = 8
_FIRST = (
    500_000  # as the seed of a protocol: first resets have seeds from 1,500,000,000 on, far from those of evaluation
)
_ROUNDS = 100  # of one seed

Progress = Callable[[int], None]
"""Called with the number of episodes that ended."""


def collect(
    model: LDMModel,
    processor: LDMProcessor,
    environment: str,
    root: Path,
    *,
    episodes: int,
    temperature: float,
    seed: int = 0,
    round_number: int = 1,
    progress: Progress = lambda done: None,
) -> RunInfo:
    """Let a model act and write its episodes as the one run ``rollouts-<round>`` of a data folder.

    Actions are drawn, because the most likely ones would make every episode alike where the environment is deterministic.
    Contexts are kept across episodes, as in evaluation.

    Args:
        model, processor: what acts.
        environment: id of the environment.
        root: data folder.
        episodes: how many. They are shared out evenly among the rows of a batch: among the most, up to 8, that divide them.
        temperature: of the actions, see ``LDMPolicy``.
        seed: of environments and actions.
        round_number: counted from 1; each has seeds of its own.
        progress: told of episodes.

    Raises:
        UnknownEnvironmentError: no environment has this id.
        EnvironmentFailure: it broke.
        UnsupportedSpaceError: it does not fit the model.
    """
    rows = max(number for number in range(1, _ROWS + 1) if episodes % number == 0)
    protocol = Protocol(episodes // rows, rows, _FIRST + _ROUNDS * seed + round_number)
    recorders: list[_Recorder] = []

    def recorded(_: int, env: gymnasium.Env) -> gymnasium.Env:
        recorders.append(_Recorder(env, processor))
        return recorders[-1]

    start = time.monotonic()
    player = ModelPlayer(model, processor, temperature=temperature, seed=protocol.first_seed(0))
    (result,) = roll_out(player, [environment], protocol, progress=lambda _, done: progress(done), wrap=recorded)
    if result.failure is not None:
        raise result.failure
    streams = [recorder.transitions() for recorder in recorders]
    info = _info(environment, result, protocol, round_number, temperature, time.monotonic() - start)
    write_run(root, info, streams, [recorder.terminals(stream) for stream, recorder in enumerate(recorders)])
    return info


class _Recorder(gymnasium.Wrapper):
    """Keeps what a rollout saw and did, as slots. An environment may use its arrays again, so they are read at once."""

    def __init__(self, env: gymnasium.Env, processor: LDMProcessor):
        super().__init__(env)
        self._observation = processor.observation_layout(env.observation_space)
        self._action = processor.action_layout(env.action_space)
        self._seen: tuple[np.ndarray, np.ndarray | None] = (np.empty(0), None)
        self._rows: list[tuple[np.ndarray, np.ndarray | None, np.ndarray, float, bool, bool]] = []
        self._last: list[tuple[int, np.ndarray, np.ndarray | None]] = []

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._seen = self._observation.flatten(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        slots, _ = self._action.flatten(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._rows.append((*self._seen, slots, float(reward), bool(terminated), bool(truncated and not terminated)))
        self._seen = self._observation.flatten(observation)
        if terminated or truncated:
            self._last.append((len(self._rows) - 1, *self._seen))
        return observation, reward, terminated, truncated, info

    def transitions(self) -> Transitions:
        """All of them, labelled with what was done."""
        slots, images, actions, rewards, terminated, truncated = zip(*self._rows, strict=True)
        taken = np.stack(actions).astype(np.float32)
        ends = np.array(terminated, bool), np.array(truncated, bool)
        return Transitions(_slots(slots), _images(images), taken, np.array(rewards, np.float32), *ends, taken)

    def terminals(self, stream: int) -> Terminals:
        """The observations that ended episodes."""
        steps, slots, images = zip(*self._last, strict=True)
        return Terminals(np.full(len(steps), stream), np.array(steps), _slots(slots), _images(images))


def _slots(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(values).astype(np.float32)


def _images(values: Sequence[np.ndarray | None]) -> np.ndarray | None:
    pictures = [value for value in values if value is not None]
    return np.stack(pictures) if pictures else None


def _info(
    environment: str, result: RolloutResult, protocol: Protocol, number: int, temperature: float, seconds: float
) -> RunInfo:
    described = spec(environment)
    returns = [value for rollout in result.returns for value in rollout]
    starts = [step for lengths in result.lengths for step in np.cumsum([0, *lengths[:-1]])]
    curve = LearningCurve.of(returns, starts, least=1)
    # One policy made all of them: their first and their last are no 0 % and 100 % that anything could be scored by.
    curve = replace(curve, first=Sample.of(returns), last=Sample.of(returns))
    return RunInfo(
        environment=described.id,
        run=f"rollouts-{number}",
        observation_space=described.observation_space,
        action_space=described.action_space,
        curve=curve,
        deterministic_returns=[],
        num_episodes=len(returns),
        num_transitions=sum(map(sum, result.lengths)),
        num_streams=protocol.rollouts,
        training_steps=0,
        algorithm="LDM",
        hyperparameters={"temperature": temperature},
        source="a model's own rollouts; labels are the actions that it took",
        seed=protocol.first_seed(0),
        seconds=round(seconds, 1),
        library_version=library_version(environment),
        licence=described.licence,
        provenance=provenance(environment),
        packages=package_versions(),
    )
