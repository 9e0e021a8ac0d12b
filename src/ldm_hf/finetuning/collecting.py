"""A model's own episodes in an environment, recorded as a dataset whose labels are the actions that it took."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np

from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.format.records import package_versions
from ldm_hf.dataset_builder.format.schema import RunInfo, environment_folder
from ldm_hf.dataset_builder.format.writer import ChunkRange
from ldm_hf.dataset_builder.reference.recorder import EpisodeRecorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.env_registry.registry import library_version, provenance, spec
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import Protocol, RolloutResult
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.finetuning.choosing import OWN
from ldm_hf.finetuning.episodes import write_run
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.modeling.spaces_ldm import SlotLayout
from ldm_hf.utils.files import scratch_folder

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

    Actions are sampled, because the most likely ones would make every episode alike where the environment is deterministic.
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
    recordings: list[Recording] = []

    def recorded(_: int, env: gymnasium.Env) -> gymnasium.Env:
        recordings.append(stack.enter_context(contextlib.closing(Recording(scratch / str(len(recordings)), 0, env))))
        return EpisodeRecorder(env, recordings[-1])

    player = ModelPlayer(model, processor, temperature=temperature, seed=protocol.first_seed(0))
    with (
        scratch_folder(environment_folder(root, environment) / _run(round_number)) as scratch,
        contextlib.ExitStack() as stack,
    ):
        (result,) = roll_out(player, [environment], protocol, progress=lambda _, done: progress(done), wrap=recorded)
        if result.failure is not None:
            raise result.failure
        info = _info(environment, result, protocol, round_number, temperature)
        layouts = SlotLayout.of(info.observation_space), SlotLayout.of(info.action_space, role="action")
        streams = [RecordedRows(recording, *layouts) for recording in recordings]
        whole = [rows.transitions(ChunkRange(0, 0, int(rows.recording.lengths[0]))) for rows in streams]
        ends = [
            replace(end, streams=end.streams + stream)
            for stream, rows in enumerate(streams)
            for end in rows.terminals()
        ]
    write_run(root, info, whole, ends)
    return info


def _run(number: int) -> str:
    return f"rollouts-{number}"


def _info(environment: str, result: RolloutResult, protocol: Protocol, number: int, temperature: float) -> RunInfo:
    described = spec(environment)
    returns = [value for rollout in result.returns for value in rollout]
    starts = [step for lengths in result.lengths for step in np.cumsum([0, *lengths[:-1]])]
    curve = LearningCurve.of(returns, starts, least=1)
    # One policy made all of them: their first and their last are no 0 % and 100 % that anything could be scored by.
    curve = replace(curve, first=Sample.of(returns), last=Sample.of(returns))
    return RunInfo(
        environment=described.id,
        run=_run(number),
        observation_space=described.observation_space,
        action_space=described.action_space,
        curve=curve,
        deterministic_returns=[],
        num_episodes=len(returns),
        num_transitions=sum(map(sum, result.lengths)),
        num_streams=protocol.rollouts,
        training_steps=0,
        algorithm=OWN,
        hyperparameters={"temperature": temperature},
        source="a model's own rollouts; labels are the actions that it took",
        seed=protocol.first_seed(0),
        max_episode_steps=described.max_episode_steps,
        seeding=None,
        library_version=library_version(environment),
        licence=described.licence,
        provenance=provenance(environment),
        packages=package_versions(),
    )
