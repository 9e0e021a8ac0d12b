"""The state of a run that is trained in several slices: everything that learning resumes from, but for random numbers.

Each slice begins with random numbers of its own seed, so none are kept. What is kept are tensors and numbers in a file that
torch loads with ``weights_only``: nothing is unpickled that could be code.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from ldm_hf.errors import CheckpointError

_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls")
_COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save_state(path: Path, model: BaseAlgorithm, normalizer: VecNormalize | None) -> None:
    """Write the state of a model that has been trained."""
    state: dict[str, Any] = {
        "parameters": model.get_parameters(),
        "tensors": {name: getattr(model, name).detach().clone() for name in _tensors(model)},
        "counters": {name: int(getattr(model, name)) for name in _COUNTERS if hasattr(model, name)},
        "normalizer": {} if normalizer is None else _statistics(normalizer),
    }
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, ReplayBuffer):
        order = _in_order(replay)
        state["replay"] = {
            name: {key: torch.from_numpy(array[order]) for key, array in _arrays(getattr(replay, name)).items()}
            for name in _COLUMNS
        }
    torch.save(state, path)


def load_state(path: Path, model: BaseAlgorithm, normalizer: VecNormalize | None) -> None:
    """Give a model that was made with the same arguments the state that ``save_state`` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    try:
        state = torch.load(path, map_location=model.device, weights_only=True)
        model.set_parameters(state["parameters"], device=model.device)
        with torch.no_grad():
            for name, values in state["tensors"].items():
                getattr(model, name).copy_(values)
        for name, value in state["counters"].items():
            setattr(model, name, value)
        if hasattr(model, "weights"):  # ARS moves a vector of its own, and copies it into its policy
            parameters = torch.nn.utils.parameters_to_vector(model.policy.parameters())
            model.weights = parameters.detach().clone()
        if normalizer is not None:
            _restore(normalizer, state["normalizer"])
        replay = getattr(model, "replay_buffer", None)
        if isinstance(replay, ReplayBuffer):
            _refill(replay, state["replay"])
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError, TypeError, EOFError) as error:
        raise CheckpointError(f"{path} holds no state of this run: {' '.join(str(error).split())[:300]}") from error


def _tensors(model: BaseAlgorithm) -> list[str]:
    """Names of what a model learns outside its modules, such as the weight of SAC's entropy."""
    return model._get_torch_save_params()[1]


def _statistics(normalizer: VecNormalize) -> dict[str, dict[str, Any]]:
    running = {} if normalizer.norm_obs is False else normalizer.obs_rms
    parts = running if isinstance(running, dict) else {"": running}
    every = {**{f"observation {key}": part for key, part in parts.items()}, "returns": normalizer.ret_rms}
    return {
        key: {
            "mean": torch.from_numpy(np.array(part.mean)),
            "var": torch.from_numpy(np.array(part.var)),
            "count": float(part.count),
        }
        for key, part in every.items()
    }


def _restore(normalizer: VecNormalize, saved: dict[str, dict[str, Any]]) -> None:
    for key, values in saved.items():
        kind, _, name = key.partition(" ")
        running: Any = normalizer.ret_rms
        if kind == "observation":
            running = normalizer.obs_rms[name] if isinstance(normalizer.obs_rms, dict) else normalizer.obs_rms
        running.mean, running.var = values["mean"].cpu().numpy(), values["var"].cpu().numpy()
        running.count = values["count"]


def _arrays(column: Any) -> dict[str, np.ndarray]:
    return column if isinstance(column, dict) else {"": column}


def _in_order(replay: ReplayBuffer) -> np.ndarray:
    """Rows of the transitions in a replay buffer, the oldest first."""
    rows = np.arange(replay.pos)
    return np.concatenate([np.arange(replay.pos, replay.buffer_size), rows]) if replay.full else rows


def _refill(replay: ReplayBuffer, saved: dict[str, dict[str, torch.Tensor]]) -> None:
    """Fill a replay buffer, which may have another size, with the latest transitions that fit."""
    count = min(len(saved["rewards"][""]), replay.buffer_size)
    for name in _COLUMNS:
        for key, array in _arrays(getattr(replay, name)).items():
            array[:count] = saved[name][key][len(saved[name][key]) - count :].cpu().numpy()
    replay.pos, replay.full = count % replay.buffer_size, count == replay.buffer_size
