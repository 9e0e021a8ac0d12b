"""Rollouts: a policy or a model plays, with noise or without; that is recorded, labelled, judged and written as a run."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.anchors.anchors import measure_anchors
from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.anchors.playing import Episodes, play
from ldm_hf.dataset_builder.bank.acting_model import ActingModel
from ldm_hf.dataset_builder.bank.policies import Policy, drawn
from ldm_hf.dataset_builder.bank.rollout_request import ROLLOUTS_OF, RolloutRequest
from ldm_hf.dataset_builder.bank.sources import open_source
from ldm_hf.dataset_builder.curves import BY_POLICY, LearningCurve, Sample
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files
from ldm_hf.dataset_builder.format.schema import POLICY_FOLDER, RunInfo
from ldm_hf.dataset_builder.format.writer import ChunkRange, plan_chunks, write_dataset
from ldm_hf.dataset_builder.reference.curation import unfit, unfit_policy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording, ValueFile
from ldm_hf.dataset_builder.reference.request import Progress
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.reference.run import run_info
from ldm_hf.env_registry.experts import bounds
from ldm_hf.env_registry.registry import spec
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.env_registry.worker.space_tree import join, leaves, split
from ldm_hf.errors import failures_of
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions
from ldm_hf.utils.files import replacing, scratch_folder

_COPIES, _EPISODES = 10, 20  # environments that score a policy, and episodes: as many as an evaluation has
_SCORING_SEED = 1_900_000_000  # far from the seeds of data, of training and of evaluations


def build_rollouts(
    request: RolloutRequest, root: Path, progress: Progress = lambda stage, done, total: None
) -> RunRecord:
    """Roll out a policy and write the run to ``request.folder(root)``, which appears when it is complete.

    0 % of its score is what a random policy returns, and 100 % what the policy does, acting deterministically; where the
    policy comes with the record of its training, it is the first and the last 10 % of that. A policy that is not fit to be
    imitated leaves its record and itself, but no data.

    With ``request.actor`` a model acts, and the policy labels what the model comes to see: a model that is trained on it
    learns what to do where its own mistakes lead (DAgger, arXiv 1011.0686, algorithm 3.1 without its mixture).

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: the environment does not exist, cannot be made, or broke; or the policy
            did, or too few episodes ended.
        UnsupportedSpaceError: its spaces do not fit a model.
        ConfigError, CheckpointError: the source is not a policy of this environment, or the actor no model.
        StorageError: the disk is full.
    """
    described = spec(request.environment)
    observation = SlotLayout.of(described.observation_space)
    action = SlotLayout.of(described.action_space, role="action")
    policy, origin = open_source(request.source, described, request.normalizer)
    start = time.monotonic()
    with scratch_folder(request.folder(root)) as scratch:
        with failures_of(f"{policy.description['algorithm']} on {request.environment}"):
            progress("scoring", 0, 1)
            scored = score(policy, request.environment, request.seed)
            assessment = Assessment.of(scored, measure_anchors(request.environment))
            recorded = _record(policy, request, described, scratch, progress)
        with recorded, replacing(request.folder(root)) as folder:
            policy.save(folder / POLICY_FOLDER)
            judged, random = Sample.of(scored.returns), assessment.anchors.random
            # Of episodes of several levels of noise, the first and the last 10 % would say nothing.
            curve = replace(recorded.recorder.curve(least=1), first=random, last=judged, order=BY_POLICY)
            dropped = unfit_policy(random, judged)
            if origin is not None and origin.curve.order != BY_POLICY:
                curve = origin.curve
                dropped = dropped or (unfit(curve, judged, random) if request.keep == "fit" else None)
            dropped = None if request.keep == "all" else dropped
            info = _info(request, described, policy, recorded, curve, scored.returns, assessment)
            if dropped is None:
                source = RecordedRows(recorded.recording, observation, action)
                write_dataset(
                    folder,
                    info,
                    plan_chunks(recorded.recording.lengths.tolist(), request.seed),
                    lambda chunk: _labelled(source, recorded.labels, chunk),
                    source.terminals(),
                    lambda rows: progress("writing", rows, info.num_transitions),
                    resets=recorded.recording.resets,
                )
            seconds = round(time.monotonic() - start, 1)
            record = RunRecord(described.id, info.run, dropped, info, describe_files(folder), seconds)
            record.write(folder)
    return record


def score(policy: Policy, environment: str, seed: int) -> Episodes:
    """Deterministic episodes of a policy in environments of their own."""
    with contextlib.closing(policy.environments(environment, _COPIES)) as envs:
        return play(envs, policy, _EPISODES, _SCORING_SEED + 1000 * seed)


@dataclass
class _Recorded:
    """What was recorded: the steps, and what the policy would have done at each of them."""

    recorder: Recorder
    recording: Recording
    labels: ValueFile

    def __enter__(self) -> "_Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        self.recording.close()
        self.labels.close()


def _record(
    policy: Policy, request: RolloutRequest, described: EnvironmentSpec, scratch: Path, progress: Progress
) -> _Recorded:
    streams, space = len(request.noise), described.action_space
    steps = -(-request.timesteps // streams)
    noise = Noise(request.noise, space, request.seed)
    with contextlib.closing(policy.environments(described.id, streams)) as envs:
        recording = Recording(scratch / "recording", steps, envs)
        (scratch / "labels").mkdir()
        labels = ValueFile(scratch / "labels", "label", envs.single_action_space, streams)
        recorder = Recorder(envs, steps, described.max_episode_steps, recording)
        actor = None if request.actor is None else ActingModel(request.actor, described, recorder)
        observations, _ = recorder.reset(seed=[request.seed + index for index in range(streams)])
        outcome: Sequence[Any] = ()
        done = 0
        while recorder.is_recording:
            wanted = policy.act(recorder, observations)
            labels.put(wanted)
            taken = wanted if actor is None else actor.act(observations, *outcome)
            observations, *outcome, _ = recorder.step(noise.add(taken))
            labels.advance()
            done += streams
            progress("recording", min(done, request.timesteps), request.timesteps)
    return _Recorded(recorder, recording, labels)


class Noise:
    """What is done to the actions of a policy in each of B environments, which have a level of noise each."""

    def __init__(self, levels: Sequence[float], action_space: dict[str, Any], seed: int) -> None:
        """Take the levels, of shape (B,), and an action space as JSON."""
        self._levels = np.array(levels, np.float64)
        self._space = action_space
        self._generator = np.random.default_rng(seed)

    def add(self, actions: Any) -> Any:
        """A batch of actions with noise, within their space."""
        if not self._levels.any():
            return actions
        chosen = self._generator.random(len(self._levels)) < self._levels
        pairs = zip(leaves(self._space), split(self._space, actions), strict=True)
        return join(self._space, (self._noisy(leaf, part, chosen) for (_, leaf), part in pairs))

    def _noisy(self, leaf: dict[str, Any], values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        by_row = (-1, *[1] * (values.ndim - 1))
        if leaf["type"] != "Box" or values.dtype.kind != "f":
            return np.where(chosen.reshape(by_row), drawn(leaf, len(values), self._generator), values)
        low, high = bounds(leaf)
        half = np.subtract(high, low, dtype=np.float64) / 2
        scale = self._levels.reshape(by_row) * np.where(np.isfinite(half), half, 1.0)
        return np.clip(values + scale * self._generator.standard_normal(values.shape), low, high).astype(values.dtype)


def _labelled(source: RecordedRows, labels: ValueFile, chunk: ChunkRange) -> Transitions:
    wanted = labels.read(chunk.stream, chunk.start, chunk.stop)
    return replace(source.transitions(chunk), reference_actions=source.action.flatten(wanted, batched=True)[0])


def _info(
    request: RolloutRequest,
    described: EnvironmentSpec,
    policy: Policy,
    recorded: _Recorded,
    curve: LearningCurve,
    deterministic: list[float],
    assessment: Assessment,
) -> RunInfo:
    return run_info(
        described,
        recorded.recording,
        isolated=policy.isolated,
        run=request.run,
        curve=curve,
        deterministic_returns=deterministic,
        training_steps=0,
        algorithm=policy.description["algorithm"],
        hyperparameters={**policy.description["hyperparameters"], **request.settings},
        source=f"{ROLLOUTS_OF}{policy.description['source']}",
        seed=request.seed,
        assessment=assessment,
    )
