"""Trains slices of runs, and writes the run that is kept from its slices."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from ldm_hf.dataset_builder.anchors.flags import ALIKE
from ldm_hf.dataset_builder.build.race.slice_results import (
    DEGENERATE,
    EPISODES,
    POLICY,
    RECORDING,
    STATE,
    SliceResult,
    slice_folder,
)
from ldm_hf.dataset_builder.build.race.training_state import load_state, save_state
from ldm_hf.dataset_builder.curves import MIN_EPISODES, LearningCurve, Sample
from ldm_hf.dataset_builder.format.records import RECORD, RunRecord, read_records
from ldm_hf.dataset_builder.reference.core_clock import CoreClock
from ldm_hf.dataset_builder.reference.joined_recording import JoinedRecording
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy, ReportProgress, finish_episodes, make_model
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.request import Progress
from ldm_hf.dataset_builder.reference.run import (
    described_environment,
    make_environments,
    write_run,
)
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.dataset_builder.reference.scoring import deterministic_episodes
from ldm_hf.env_registry.registry import provenance
from ldm_hf.errors import EnvironmentFailure, failures_of
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_from_json
from ldm_hf.utils.files import publish, remove, replacing, scratch_folder

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.build.race.slice_jobs import KeepJob, SliceJob

SLICE_EPISODES = 5
"""Episodes that score the policy a slice leaves."""

_CONFIRMING_EPISODES = 15
_LONGEST = 2  # times its transitions that a slice may train for, until enough episodes were begun in it
_SCORING_SEED, _CONFIRMING = 550_000_000, 10  # of slice k: from here on, 1000 a seed and 20 a slice
_UNLIMITED = 2**62


def train_slice(job: "SliceJob", progress: Progress = lambda stage, done, total: None) -> None:
    """Train a slice from the state that the one before it left, record it, score its policy and save its state.

    Everything in it follows from that state, the request and the number of the slice: its random numbers, and the first
    resets of its environments, are those of the seed ``seed + number * num_envs``. Episodes that were begun are played to
    their ends by the policy, without learning, after the state was saved.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: the environment does not exist, cannot be made, or broke; or the
            algorithm cannot handle it.
        UnsupportedSpaceError: its spaces do not fit a model.
        ConfigError: the candidate cannot act in it.
        StorageError: the disk is full.
    """
    request, candidate = job.request, job.request.candidate
    described = described_environment(request)
    SlotLayout.of(described.observation_space)
    SlotLayout.of(described.action_space, role="action")
    torch.set_num_threads(1)  # One run, one core: runs are what is done in parallel.
    clock = CoreClock(by_wall=request.device != "cpu" or provenance(request.environment)["provider"] == "docker")
    subject = f"{candidate.algorithm} on {request.environment}"
    with replacing(job.folder) as folder:
        folder.mkdir()
        with (
            failures_of(subject),
            contextlib.closing(make_environments(request.environment, candidate.num_envs)) as envs,
        ):
            rows = -(-job.transitions // candidate.num_envs)
            recording = Recording(folder / RECORDING, rows, envs)
            recorder = Recorder(envs, _UNLIMITED, described.max_episode_steps, recording)
            model, normalizer = make_model(
                Sb3VecEnv(recorder),
                candidate,
                timesteps=request.timesteps,
                seed=request.seed + job.number * candidate.num_envs,
                device=request.device,
            )
            if job.number:
                load_state(slice_folder(job.root, request, job.number - 1) / STATE, model, normalizer)
            before = model.num_timesteps
            begun = clock.seconds()
            rate = _learn(model, job, recorder, clock, progress)
            learned = clock.seconds() - begun
            save_state(folder / STATE, model, normalizer)
            trained = model.num_timesteps - before
            finish_episodes(model, normalizer, recorder)
            recording.save()
            recording.close()
            starts, returns = recorder.episodes()
            if not np.isfinite(returns).all():
                raise EnvironmentFailure("returns of its episodes are not finite: nothing can be scored")
            np.savez_compressed(folder / EPISODES, starts=starts + before, returns=returns)
            model.policy.to("cpu")
            ReferencePolicy.of(model, candidate, normalizer).save(folder / POLICY)
        progress("scoring", 0, 1)
        with failures_of(f"the policy that {subject} trained"):
            before_it = [slice_folder(job.root, request, number) for number in range(job.number)]
            episodes = len(returns) + sum(len(_episodes(one)["returns"]) for one in before_it)
            deterministic, confirmed = _score(job, ReferencePolicy.load(folder / POLICY), episodes)
        last = returns[-max(1, len(returns) // 3) :]
        seconds = round(clock.seconds(), 1)
        total = before + trained
        training = Sample.of(last) if len(last) else None
        SliceResult(
            None,
            trained,
            total,
            training,
            tuple(deterministic),
            tuple(confirmed),
            max(job.planned, total),
            round(rate, 2),
            round(seconds - learned, 1),
            round(job.seconds, 1),
            seconds,
        ).write(folder)
    if job.number:
        remove(slice_folder(job.root, request, job.number - 1) / STATE)


def _learn(model: BaseAlgorithm, job: "SliceJob", recorder: Recorder, clock: CoreClock, progress: Progress) -> float:
    """Train for the slice's transitions, and for longer where hardly an episode was begun in them.

    Schedules move from the first transition of a run to the last of one that wins its race; a run that is trained for longer
    reaches their end at the end of each slice. Returns the transitions a second of the second half, as far as
    something was learned in it; 0 if nothing was.
    """
    first = model.num_timesteps
    planned = max(job.planned, first + job.transitions)
    starts = getattr(model, "learning_starts", 0)  # until then a transition costs what it will not cost later
    half: list[tuple[float, int]] = []

    def follow(num_timesteps: int, total_timesteps: int) -> None:
        model._current_progress_remaining = max(0.0, 1.0 - num_timesteps / planned)

    model._update_current_progress_remaining = follow  # type: ignore[method-assign]

    def report(done: int) -> None:
        if not half and done - first >= job.transitions // 2 and done > starts:
            half.append((clock.seconds(), done))
        progress("training", min(done - first, job.transitions), job.transitions)

    callback = ReportProgress(report)
    model.learn(job.transitions, callback=callback, reset_num_timesteps=False)
    while recorder.begun < MIN_EPISODES and model.num_timesteps - first < _LONGEST * job.transitions:
        model.learn(-(-job.transitions // 4), callback=callback, reset_num_timesteps=False)
    if not half or half[0][1] == model.num_timesteps:
        return 0.0
    since, done = half[0]
    return (model.num_timesteps - done) / max(clock.seconds() - since, 1e-3)


def _score(job: "SliceJob", policy: ReferencePolicy, episodes: int) -> tuple[list[float], list[float]]:
    """Deterministic returns of a slice's policy, and, if they are near known good, those of further episodes.

    A run of too few training ``episodes`` to be written is not confirmed: its race continues.
    """
    seed = _SCORING_SEED + 1000 * job.request.seed + 20 * job.number
    found = deterministic_episodes(policy, job.request.environment, seed, SLICE_EPISODES).returns
    if job.target is None or np.mean(found) < job.target or episodes < MIN_EPISODES:
        return found, []
    more = deterministic_episodes(policy, job.request.environment, seed + _CONFIRMING, _CONFIRMING_EPISODES)
    return found, more.returns


def keep_run(job: "KeepJob", progress: Progress = lambda stage, done, total: None) -> None:
    """Write a run from the recordings of its slices, up to the best, relabelled by the policy that it left.

    Raises:
        EnvironmentFailure: too few episodes ended, or scoring failed.
        DatasetFormatError: a recording is damaged.
        StorageError: the disk is full.
    """
    request = job.request
    described = described_environment(request)
    start = time.monotonic()
    observation, action = space_from_json(described.observation_space), space_from_json(described.action_space)
    folders = [slice_folder(job.root, request, number) for number in range(job.best + 1)]
    results = [SliceResult.read(folder) for folder in folders]
    starts, returns = (
        np.concatenate([_episodes(folder)[name] for folder in folders]) for name in ("starts", "returns")
    )
    parts = [Recording.open(folder / RECORDING, observation, action) for folder in folders]
    with contextlib.closing(JoinedRecording(parts, observation)) as recording, scratch_folder(job.result) as scratch:
        record = write_run(
            request,
            scratch,
            ReferencePolicy.load(folders[-1] / POLICY),
            recording,
            LearningCurve.of(returns, starts),
            None,  # each slice has its own
            start - sum(result.seconds for result in results),
            progress,
            {"slices": [result.transitions for result in results], "planned": [result.planned for result in results]},
        )
        info = record.info
        assert info is not None
        reasons = [reason for reason in info.flags if not reason.endswith(ALIKE)]  # none where it cannot be assessed
        flagged = f"{DEGENERATE}{'; '.join(reasons)}" if reasons else None
        target = request.folder(job.root)
        # A run that was continued replaces the one it continues only if it is fit as well.
        fit = record.dropped is None and flagged is None
        if fit or not (target / RECORD).is_file() or RunRecord.read(target).dropped is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            publish(request.folder(scratch), target)
        if fit:
            _drop_others(target)
    job.finish(record.dropped or flagged, tuple(info.deterministic_returns))


def _drop_others(folder: Path) -> None:
    """Drop the data of an environment's other runs, which were kept for want of one that is fit."""
    for record in read_records(folder.parent):
        other = folder.parent / record.run
        if other != folder and record.dropped is None:
            policy = tuple(file for file in record.files if not file.path.endswith(".parquet"))
            # The record first: killed in between, the data are dropped but lie there, which harms nobody.
            replace(record, dropped=f"another run is kept: {folder.name}", files=policy).write(other)
            for path in other.glob("*.parquet"):
                remove(path)


def _episodes(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / EPISODES, allow_pickle=False) as file:
        return {name: file[name] for name in ("starts", "returns")}
