"""One run: train a reference policy, record, relabel, score, judge, and write its folder."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from ldm_hf.dataset_builder.anchors.assessment import Assessment, assess
from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files, package_versions
from ldm_hf.dataset_builder.format.schema import BY_STREAM, POLICY_FOLDER, RunInfo
from ldm_hf.dataset_builder.format.writer import plan_chunks, write_dataset
from ldm_hf.dataset_builder.reference.candidates import observation_bytes
from ldm_hf.dataset_builder.reference.curation import unfit
from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations
from ldm_hf.dataset_builder.reference.joined_recording import JoinedRecording
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.request import Progress, RunRequest
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.dataset_builder.reference.scoring import deterministic_episodes
from ldm_hf.env_registry.registry import library_version, make_vec, provenance, spec
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import ConfigError, failures_of
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_from_json, space_to_json
from ldm_hf.utils.files import replacing, scratch_folder

_SCORING_SEED = 500_000_000  # far from training seeds, and from those of model evaluation
_BATCH_BYTES = 2**26
"""Observations that the final policy labels at once: more than 4096 but for large images, whose networks need room."""


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
    described = described_environment(request)
    # Spaces that no model takes are refused before any time is spent on them.
    SlotLayout.of(described.observation_space)
    SlotLayout.of(described.action_space, role="action")
    start = time.monotonic()
    with scratch_folder(request.folder(root)) as scratch:
        with (
            failures_of(f"{candidate.algorithm} on {environment}"),
            contextlib.closing(make_environments(environment, candidate.num_envs)) as envs,
        ):
            recording = Recording(scratch / "recording", _steps(request), envs)
            recorder = Recorder(envs, _steps(request), described.max_episode_steps, recording)
            policy = _train(request, recorder, progress)
        with contextlib.closing(recording):
            return write_run(
                request, root, policy, recording, recorder.curve(), recorder.training_steps, start, progress
            )


def write_run(
    request: RunRequest,
    root: Path,
    policy: ReferencePolicy,
    recording: Recording | JoinedRecording,
    curve: LearningCurve,
    training_steps: int | None,
    start: float,
    progress: Progress,
    extra: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Relabel a recording by its final policy, score it and write it; the last part of ``build_run``.

    Args:
        request, root, progress: as of ``build_run``.
        policy: of the end of the run.
        recording: of all of it.
        curve: of all of it.
        training_steps: as of ``RunInfo``.
        start: when the run began, by ``time.monotonic``.
        extra: what the record's hyperparameters say beside the candidate's.
    """
    environment = request.environment
    described = described_environment(request)
    observation = SlotLayout.of(described.observation_space)
    action = SlotLayout.of(described.action_space, role="action")
    with replacing(request.folder(root)) as folder:
        policy.save(folder / POLICY_FOLDER)
        reloaded = ReferencePolicy.load(folder / POLICY_FOLDER)
        progress("scoring", 0, 1)
        with failures_of(f"the policy that {request.candidate.algorithm} trained on {environment}"):
            episodes = deterministic_episodes(reloaded, environment, _SCORING_SEED + 1000 * request.seed)
        assessment = assess(episodes, environment)
        info = _run_info(
            request, described, recording, training_steps, curve, episodes.returns, extra or {}, assessment
        )
        judged = None if request.keep == "improved" else Sample.of(episodes.returns)
        random = None if assessment is None else assessment.anchors.random
        dropped = None if request.keep == "all" else unfit(curve, judged, random)
        if dropped is None:
            flat = FlatObservations(space_from_json(described.observation_space))
            batch = max(1, _BATCH_BYTES // observation_bytes(space_to_json(flat.space)))
            source = RecordedRows(recording, observation, action, lambda seen: reloaded.act(flat.flatten(seen)), batch)
            write_dataset(
                folder,
                info,
                plan_chunks(recording.lengths.tolist(), request.seed),
                source.transitions,
                source.terminals(),
                lambda rows: progress("writing", rows, info.num_transitions),
                resets=recording.resets,
            )
        seconds = round(time.monotonic() - start, 1)
        record = RunRecord(environment, info.run, dropped, info, describe_files(folder), seconds)
        record.write(folder)
    return record


def train_curve(request: RunRequest, progress: Progress = lambda stage, done, total: None) -> LearningCurve:
    """Train a candidate and keep nothing but its learning curve, for the ranking; raises as ``build_run``."""
    environment, candidate = request.environment, request.candidate
    described = described_environment(request)
    with (
        failures_of(f"{candidate.algorithm} on {environment}"),
        contextlib.closing(make_environments(environment, candidate.num_envs)) as envs,
    ):
        recorder = Recorder(envs, _steps(request), described.max_episode_steps)
        _train(request, recorder, progress)
        return recorder.curve()


def described_environment(request: RunRequest) -> EnvironmentSpec:
    """What is known of a run's environment; ``ConfigError`` if the candidate cannot act in it."""
    described = spec(request.environment)
    incompatibility = request.candidate.incompatibility(described.observation_space, described.action_space)
    if incompatibility:
        raise ConfigError(f"{request.candidate.name} cannot be trained on {request.environment}: {incompatibility}")
    return described


def _steps(request: RunRequest) -> int:
    """Of each environment."""
    return -(-request.timesteps // request.candidate.num_envs)


def _train(request: RunRequest, recorder: Recorder, progress: Progress) -> ReferencePolicy:
    torch.set_num_threads(1)  # One run, one core: runs are what is done in parallel.
    venv = Sb3VecEnv(recorder)
    venv.seed(request.seed)
    return train_policy(
        venv,
        request.candidate,
        timesteps=request.timesteps,
        seed=request.seed,
        progress=lambda done: progress("training", min(done, request.timesteps), request.timesteps),
        device=request.device,
        recorder=recorder,
    )


def _run_info(
    request: RunRequest,
    described: EnvironmentSpec,
    recording: Recording | JoinedRecording,
    training_steps: int | None,
    curve: LearningCurve,
    deterministic: list[float],
    extra: Mapping[str, Any],
    assessment: Assessment | None,
) -> RunInfo:
    return run_info(
        described,
        recording,
        run=request.name,
        curve=curve,
        deterministic_returns=deterministic,
        training_steps=training_steps,
        algorithm=request.candidate.algorithm,
        hyperparameters={**request.candidate.settings, **extra},
        source=request.candidate.source,
        seed=request.seed,
        assessment=assessment,
    )


def run_info(
    described: EnvironmentSpec, recording: Recording | JoinedRecording, *, isolated: bool = False, **values: Any
) -> RunInfo:
    """What is kept of a run: of its environment and its recording, and ``values``, the other fields of ``RunInfo``.

    Args:
        described: the environment.
        recording: what was recorded.
        isolated: whether it was recorded where code that must not run in this process runs beside the environment.
        **values: by name.
    """
    return RunInfo(
        environment=described.id,
        observation_space=described.observation_space,
        action_space=described.action_space,
        num_episodes=recording.num_episodes,
        num_transitions=int(recording.lengths.sum()),
        num_streams=recording.num_streams,
        max_episode_steps=described.max_episode_steps,
        seeding=BY_STREAM,
        library_version=library_version(described.id, isolated=isolated),
        licence=described.licence,
        provenance=provenance(described.id, isolated=isolated),
        packages=package_versions(),
        **values,
    )


def make_environments(environment: str, number: int) -> VectorEnv:
    """Environments that are recorded."""
    # A worker that dies after hours is replaced: its episodes are truncated, the run continues.
    return make_vec(environment, number, autoreset_mode="SameStep", restart=True)
