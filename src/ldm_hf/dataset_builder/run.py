"""One run: train a reference policy, record, relabel, score, judge, and write its folder."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from ldm_hf.dataset_builder.candidates import observation_bytes
from ldm_hf.dataset_builder.curation import unfit
from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.recorder import RecorderVecEnv, Recording
from ldm_hf.dataset_builder.records import RunRecord, describe_files, package_versions
from ldm_hf.dataset_builder.reference import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.request import Progress, RunRequest
from ldm_hf.dataset_builder.schema import CHUNK_LENGTH, POLICY_FOLDER, RunInfo
from ldm_hf.dataset_builder.writer import ChunkRange, Terminals, plan_chunks, write_dataset
from ldm_hf.env_registry.flat import FlatObservations
from ldm_hf.env_registry.registry import library_version, make_vec, provenance, spec
from ldm_hf.env_registry.sb3 import Sb3VecEnv
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import ConfigError, EnvironmentFailure, LDMError
from ldm_hf.files import replacing, scratch_folder
from ldm_hf.modeling.spaces_ldm import InvalidValueError, SlotLayout, space_from_json, space_to_json
from ldm_hf.modeling.transitions_ldm import Transitions

DETERMINISTIC_EPISODES = 10
_SCORING_SEED = 500_000_000  # far from training seeds, and from those of model evaluation
_BATCH_BYTES = 2**26
"""Observations that the final policy labels at once: more than 4096 but for large pictures, whose networks need room."""


def build_run(request: RunRequest, root: Path, progress: Progress = lambda stage, done, total: None) -> RunRecord:
    """Train, record, relabel and score one run and write it to ``request.folder(root)``.

    The folder appears when it is complete; what stood there before is replaced. A run that is not fit to be kept leaves
    its record and its policy, but no data.

    Args:
        request: what to run.
        root: data folder.
        progress: told how far the run is.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: the environment does not exist, cannot be made, or broke; the
            algorithm cannot handle it; or too few episodes ended.
        UnsupportedSpaceError: its spaces do not fit a model.
        ConfigError: the candidate cannot act in it.
        StorageError: the disk is full.
    """
    environment, candidate = request.environment, request.candidate
    described = _described(request)
    # Spaces that no model takes are refused before any time is spent on them.
    observation = SlotLayout.of(described.observation_space)
    action = SlotLayout.of(described.action_space, role="action")
    start = time.monotonic()
    with scratch_folder(request.folder(root)) as scratch:
        with (
            _failures_of(f"{candidate.algorithm} on {environment}"),
            contextlib.closing(_environments(environment, candidate.num_envs, request.seed)) as venv,
        ):
            steps = -(-request.timesteps // candidate.num_envs)
            recording = Recording(scratch / "recording", steps, venv)
            recorder = RecorderVecEnv(venv, steps, recording)
            policy = _train(request, recorder, progress)
        with contextlib.closing(recording), replacing(request.folder(root)) as folder:
            policy.save(folder / POLICY_FOLDER)
            reloaded = ReferencePolicy.load(folder / POLICY_FOLDER)
            curve = LearningCurve.of(recorder.log.returns, recorder.log.ends)
            progress("scoring", 0, 1)
            with _failures_of(f"the policy that {candidate.algorithm} trained on {environment}"):
                returns = deterministic_returns(reloaded, environment, request.seed)
            info = _run_info(request, described, recording, curve, returns, time.monotonic() - start)
            judged = None if request.keep == "improved" else Sample.of(returns)
            dropped = None if request.keep == "all" else unfit(curve, judged)
            if dropped is None:
                flat = FlatObservations(space_from_json(described.observation_space))
                source = _Source(recording, reloaded, observation, action, flat)
                write_dataset(
                    folder,
                    info,
                    plan_chunks([recording.length] * recording.num_streams, request.seed),
                    source.transitions,
                    source.terminals(),
                    lambda rows: progress("writing", rows, info.num_transitions),
                )
            record = RunRecord(environment, info.run, dropped, info, describe_files(folder))
            record.write(folder)
    return record


def train_curve(request: RunRequest, progress: Progress = lambda stage, done, total: None) -> LearningCurve:
    """Train a candidate and keep nothing but its learning curve, for the ranking; raises as ``build_run``."""
    environment, candidate = request.environment, request.candidate
    _described(request)
    with (
        _failures_of(f"{candidate.algorithm} on {environment}"),
        contextlib.closing(_environments(environment, candidate.num_envs, request.seed)) as venv,
    ):
        recorder = RecorderVecEnv(venv, -(-request.timesteps // candidate.num_envs))
        _train(request, recorder, progress)
        return LearningCurve.of(recorder.log.returns, recorder.log.ends)


def _described(request: RunRequest) -> EnvironmentSpec:
    described = spec(request.environment)
    misfit = request.candidate.misfit(described.observation_space, described.action_space)
    if misfit:
        raise ConfigError(f"{request.candidate.name} cannot be trained on {request.environment}: {misfit}")
    return described


def _train(request: RunRequest, venv: VecEnv, progress: Progress) -> ReferencePolicy:
    torch.set_num_threads(1)  # One run, one core: runs are what is done in parallel.
    return train_policy(
        venv,
        request.candidate,
        timesteps=request.timesteps,
        seed=request.seed,
        progress=lambda done: progress("training", min(done, request.timesteps), request.timesteps),
        device=request.device,
    )


def _run_info(
    request: RunRequest,
    described: EnvironmentSpec,
    recording: Recording,
    curve: LearningCurve,
    deterministic: list[float],
    seconds: float,
) -> RunInfo:
    ended = recording.terminated[: recording.length] | recording.truncated[: recording.length]
    return RunInfo(
        environment=described.id,
        run=request.name,
        observation_space=described.observation_space,
        action_space=described.action_space,
        curve=curve,
        deterministic_returns=deterministic,
        num_episodes=int(ended.sum()),
        num_transitions=recording.length * recording.num_streams,
        num_streams=recording.num_streams,
        algorithm=request.candidate.algorithm,
        hyperparameters=request.candidate.settings,
        source=request.candidate.source,
        seed=request.seed,
        seconds=round(seconds, 1),
        library_version=library_version(described.id),
        licence=described.licence,
        provenance=provenance(described.id),
        packages=package_versions(),
    )


def deterministic_returns(policy: ReferencePolicy, environment: str, seed: int) -> list[float]:
    """Returns of ``DETERMINISTIC_EPISODES`` episodes of a policy, none favoured for being short."""
    venv = VecMonitor(_environments(environment, DETERMINISTIC_EPISODES // 2, _SCORING_SEED + 1000 * seed))
    try:
        # evaluate_policy gives every environment the same number of episodes.
        returns, _ = evaluate_policy(policy, venv, DETERMINISTIC_EPISODES, return_episode_rewards=True)
    finally:
        venv.close()
    return np.asarray(returns, float).tolist()


def _environments(environment: str, number: int, seed: int) -> VecEnv:
    # A worker that dies after hours is replaced: its episodes are truncated, the run goes on.
    venv = Sb3VecEnv(make_vec(environment, number, autoreset_mode="SameStep", restart=True))
    venv.seed(seed)
    return venv


@dataclass(frozen=True)
class _Source:
    """What is written of a run: its recording, labelled by its final policy, as slots."""

    recording: Recording
    policy: ReferencePolicy
    observation: SlotLayout
    action: SlotLayout
    flat: FlatObservations

    def transitions(self, chunk: ChunkRange) -> Transitions:
        """The transitions of a chunk, with their reference actions."""
        recording, rows = self.recording, slice(chunk.start, chunk.stop)
        size = max(1, _BATCH_BYTES // observation_bytes(space_to_json(self.flat.space)))
        slots, images, references = [], [], []
        for start in range(chunk.start, chunk.stop, size):
            batch = recording.observation_batch(chunk.stream, start, min(start + size, chunk.stop))
            observed, picture = self.observation.flatten(self.flat.restore(batch), batched=True)
            slots.append(observed)
            images += [] if picture is None else [picture]
            references.append(self.action.flatten(self.policy.act(batch), batched=True)[0])
        actions = recording.action_batch(chunk.stream, chunk.start, chunk.stop)
        return Transitions(
            np.concatenate(slots),
            np.concatenate(images) if images else None,
            self.action.flatten(actions, batched=True)[0],
            recording.rewards[rows, chunk.stream],
            recording.terminated[rows, chunk.stream],
            recording.truncated[rows, chunk.stream],
            np.concatenate(references),
        )

    def terminals(self) -> Iterator[Terminals]:
        """The observations that ended episodes, a few thousand at a time."""
        places = np.array(self.recording.terminals, np.int64).reshape(-1, 2)
        for start in range(0, len(places), CHUNK_LENGTH):
            part = places[start : start + CHUNK_LENGTH]
            batch = self.recording.terminal_batch(start, start + len(part))
            slots, images = self.observation.flatten(self.flat.restore(batch), batched=True)
            yield Terminals(part[:, 0], part[:, 1], slots, images)


@contextlib.contextmanager
def _failures_of(subject: str) -> Iterator[None]:
    """Turn whatever an environment or an algorithm raises into an ``EnvironmentFailure`` of one line."""
    try:
        yield
    except (LDMError, InvalidValueError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFailure(f"{subject} failed: {type(error).__name__}: {reason}") from error
