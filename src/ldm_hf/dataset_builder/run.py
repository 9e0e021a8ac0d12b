"""One run: train a reference policy, record, relabel, score, and write the dataset of its environment."""

import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from ldm_hf.dataset_builder.candidates import Candidate
from ldm_hf.dataset_builder.recorder import RecorderVecEnv, Recording, first_and_last10
from ldm_hf.dataset_builder.reference import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.schema import RunInfo
from ldm_hf.dataset_builder.writer import ChunkRange, plan_chunks, write_dataset
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.registry import make, spec
from ldm_hf.errors import ConfigError
from ldm_hf.files import replacing, scratch_folder
from ldm_hf.modeling.processing_ldm import Transitions
from ldm_hf.modeling.spaces_ldm import SlotLayout

Progress = Callable[[str, int, int], None]
"""Called with the stage (``training``, ``scoring``, ``writing``), how much of it is done, and how much there is."""

DETERMINISTIC_EPISODES = 20
_SCORING_SEED = 500_000_000  # far from training seeds, and from those of model evaluation
_PACKAGES = ("ldm_hf", "gymnasium", "numpy", "sb3_contrib", "stable_baselines3", "torch")


def dataset_folder(root: Path, environment: str) -> Path:
    """Where an environment's dataset lies under a data folder: ``<library>/<config name>``."""
    parsed = EnvironmentId.parse(environment)
    return root / parsed.library / parsed.config_name


def build_run(
    environment: str,
    candidate: Candidate,
    *,
    timesteps: int,
    seed: int,
    root: Path,
    progress: Progress = lambda stage, done, total: None,
) -> RunInfo:
    """Train, record, relabel and score one run and write it to ``dataset_folder(root, environment)``.

    The folder appears when it is complete; what stood there before is replaced.

    Args:
        environment: id of the environment.
        candidate: what to train.
        timesteps: transitions to train for and to record.
        seed: of the run.
        root: data folder.
        progress: told how far the run is.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: the environment does not exist, cannot be made, or broke.
        UnsupportedSpaceError: its spaces do not fit a model.
        ConfigError: the candidate cannot act in it.
        StorageError: the disk is full.
    """
    described = spec(environment)
    if not candidate.takes(described.action_space):
        raise ConfigError(
            f"{candidate.algorithm} cannot act in {environment}: its actions are {described.action_space}"
        )
    # Spaces that no model takes are refused before any time is spent on them.
    observation, action = (
        SlotLayout.of(described.observation_space),
        SlotLayout.of(described.action_space, role="action"),
    )
    torch.set_num_threads(1)  # One run, one core: runs are what is done in parallel.
    with scratch_folder(dataset_folder(root, environment)) as scratch:
        venv = _environments(environment, candidate.num_envs, seed)
        recording = Recording(scratch / "recording", -(-timesteps // candidate.num_envs), venv)
        recorder = RecorderVecEnv(venv, recording)
        try:
            policy = train_policy(
                recorder,
                candidate,
                timesteps=timesteps,
                seed=seed,
                progress=lambda done: progress("training", min(done, timesteps), timesteps),
            )
        finally:
            venv.close()
        with replacing(dataset_folder(root, environment)) as folder:
            policy.save(folder / "policy")
            reloaded = ReferencePolicy.load(folder / "policy")
            progress("scoring", 0, 1)
            returns = deterministic_returns(reloaded, environment, seed)
            info = RunInfo(
                environment,
                described.observation_space,
                described.action_space,
                *first_and_last10(recording.episode_returns()),
                float(np.mean(returns)),
                returns,
                len(recording.episode_returns()),
                recording.length * recording.num_streams,
                recording.num_streams,
                candidate.algorithm,
                {**candidate.hyperparameters, "num_envs": candidate.num_envs, "normalize": candidate.normalize},
                seed,
                described.library_version,
                package_versions(),
            )
            write_dataset(
                folder,
                info,
                plan_chunks([recording.length] * recording.num_streams, seed),
                lambda chunk: _relabelled(recording, chunk, reloaded, observation, action),
                lambda rows: progress("writing", rows, info.num_transitions),
            )
    return info


def deterministic_returns(policy: ReferencePolicy, environment: str, seed: int) -> list[float]:
    """Returns of ``DETERMINISTIC_EPISODES`` episodes of a policy, none favoured for being short."""
    venv = VecMonitor(_environments(environment, DETERMINISTIC_EPISODES // 2, _SCORING_SEED + 1000 * seed))
    try:
        # evaluate_policy gives every environment the same number of episodes.
        returns, _ = evaluate_policy(
            policy,
            venv,
            DETERMINISTIC_EPISODES,
            return_episode_rewards=True,
        )
    finally:
        venv.close()
    return np.asarray(returns, float).tolist()


def package_versions() -> dict[str, str]:
    """Versions of Python and of what trains and records runs."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def _environments(environment: str, number: int, seed: int) -> VecEnv:
    venv = DummyVecEnv([lambda: make(environment)] * number)
    venv.seed(seed)
    return venv


def _relabelled(
    recording: Recording, chunk: ChunkRange, policy: ReferencePolicy, observation: SlotLayout, action: SlotLayout
) -> Transitions:
    rows = slice(chunk.start, chunk.stop)
    batch = recording.observation_batch(chunk.stream, chunk.start, chunk.stop)
    slots, images = observation.flatten(batch, batched=True)
    return Transitions(
        slots,
        images,
        action.flatten(np.asarray(recording.actions[rows, chunk.stream]), batched=True)[0],
        recording.rewards[rows, chunk.stream],
        recording.terminated[rows, chunk.stream],
        recording.truncated[rows, chunk.stream],
        action.flatten(policy.act(batch), batched=True)[0],
    )
