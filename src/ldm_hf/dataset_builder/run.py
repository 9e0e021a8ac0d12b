"""One run: train a reference policy, record, relabel, score, and write the dataset of its environment."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from ldm_hf.dataset_builder.candidates import Candidate
from ldm_hf.dataset_builder.recorder import RecorderVecEnv, Recording, first_and_last10
from ldm_hf.dataset_builder.reference import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.schema import RunInfo, dataset_folder
from ldm_hf.dataset_builder.writer import ChunkRange, plan_chunks, write_dataset
from ldm_hf.env_registry.registry import library_version, make_vec, spec
from ldm_hf.env_registry.sb3 import Sb3VecEnv
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import ConfigError, EnvironmentFailure, LDMError
from ldm_hf.files import replacing, scratch_folder
from ldm_hf.modeling.processing_ldm import Transitions
from ldm_hf.modeling.spaces_ldm import InvalidValueError, SlotLayout

Progress = Callable[[str, int, int], None]
"""Called with the stage (``training``, ``scoring``, ``writing``), how much of it is done, and how much there is."""

DETERMINISTIC_EPISODES = 20
_SCORING_SEED = 500_000_000  # far from training seeds, and from those of model evaluation
_BATCH_BYTES = 2**26
"""Observations that the final policy labels at once: more than 4096 but for large pictures, whose networks need room."""

_PACKAGES = ("ldm_hf", "gymnasium", "numpy", "sb3_contrib", "stable_baselines3", "torch")


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
        UnknownEnvironmentError, EnvironmentFailure: the environment does not exist, cannot be made, or broke; the
            algorithm cannot handle it; or too few episodes ended.
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
    observation = SlotLayout.of(described.observation_space)
    action = SlotLayout.of(described.action_space, role="action")
    torch.set_num_threads(1)  # One run, one core: runs are what is done in parallel.
    with scratch_folder(dataset_folder(root, environment)) as scratch:
        with (
            _failures_of(f"{candidate.algorithm} on {environment}"),
            contextlib.closing(_environments(environment, candidate.num_envs, seed)) as venv,
        ):
            recording = Recording(scratch / "recording", -(-timesteps // candidate.num_envs), venv)
            policy = train_policy(
                RecorderVecEnv(venv, recording),
                candidate,
                timesteps=timesteps,
                seed=seed,
                progress=lambda done: progress("training", min(done, timesteps), timesteps),
            )
        with replacing(dataset_folder(root, environment)) as folder:
            policy.save(folder / "policy")
            reloaded = ReferencePolicy.load(folder / "policy")
            progress("scoring", 0, 1)
            with _failures_of(f"the policy that {candidate.algorithm} trained on {environment}"):
                returns = deterministic_returns(reloaded, environment, seed)
            info = _run_info(described, candidate, seed, recording, returns)
            write_dataset(
                folder,
                info,
                plan_chunks([recording.length] * recording.num_streams, seed),
                lambda chunk: _relabelled(recording, chunk, reloaded, observation, action),
                lambda rows: progress("writing", rows, info.num_transitions),
            )
    return info


def _run_info(
    described: EnvironmentSpec, candidate: Candidate, seed: int, recording: Recording, deterministic: list[float]
) -> RunInfo:
    returns = recording.episode_returns()
    first10, last10 = first_and_last10(returns)
    return RunInfo(
        environment=described.id,
        observation_space=described.observation_space,
        action_space=described.action_space,
        first10=first10,
        last10=last10,
        deterministic_return=float(np.mean(deterministic)),
        deterministic_returns=deterministic,
        num_episodes=len(returns),
        num_transitions=recording.length * recording.num_streams,
        num_streams=recording.num_streams,
        algorithm=candidate.algorithm,
        hyperparameters={
            **candidate.hyperparameters,
            "num_envs": candidate.num_envs,
            "normalize": candidate.normalize,
        },
        seed=seed,
        library_version=library_version(described.id),
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


def package_versions() -> dict[str, str]:
    """Versions of Python and of what trains and records runs."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def _environments(environment: str, number: int, seed: int) -> VecEnv:
    venv = Sb3VecEnv(make_vec(environment, number))
    venv.seed(seed)
    return venv


def _relabelled(
    recording: Recording, chunk: ChunkRange, policy: ReferencePolicy, observation: SlotLayout, action: SlotLayout
) -> Transitions:
    rows = slice(chunk.start, chunk.stop)
    size = max(1, _BATCH_BYTES // recording.observation_bytes)
    slots, images, references = [], [], []
    for start in range(chunk.start, chunk.stop, size):
        batch = recording.observation_batch(chunk.stream, start, min(start + size, chunk.stop))
        flat, picture = observation.flatten(batch, batched=True)
        slots.append(flat)
        images += [] if picture is None else [picture]
        references.append(action.flatten(policy.act(batch), batched=True)[0])
    return Transitions(
        np.concatenate(slots),
        np.concatenate(images) if images else None,
        action.flatten(np.asarray(recording.actions[rows, chunk.stream]), batched=True)[0],
        recording.rewards[rows, chunk.stream],
        recording.terminated[rows, chunk.stream],
        recording.truncated[rows, chunk.stream],
        np.concatenate(references),
    )


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
