"""Vector environments for Stable-Baselines3."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations
from ldm_hf.env_registry.remote.vector_env import RemoteVectorEnv
from ldm_hf.errors import ConfigError


class Sb3VecEnv(VecEnv):
    """A Gymnasium vector environment, remote or not, as Stable-Baselines3's own ``VecEnv``.

    Observations that are ``Tuple``s, nested or hold texts become one flat ``Dict``; ``flat`` converts them.
    ``infos[i]`` of a finished episode holds its last observation as ``terminal_observation``, and ``TimeLimit.truncated``
    says whether it was cut off, so that values are bootstrapped where Stable-Baselines3 does it.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv) -> None:
        """Take over a vector environment.

        Raises:
            ConfigError: it does not reset in the step that ends an episode, which Stable-Baselines3 requires.
        """
        mode = envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ConfigError(f"Stable-Baselines3 needs environments made with autoreset_mode='SameStep', got {mode!r}")
        self.envs = envs
        self.flat = FlatObservations(envs.single_observation_space)
        super().__init__(envs.num_envs, self.flat.space, envs.single_action_space)
        self.metadata = {**envs.metadata, **self.metadata}

    def reset(self) -> VecEnvObs:
        """Reset all environments, with the seeds and options that were set before."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, self.reset_infos = self._reset(seeds, [dict(one) or None for one in self._options])
        self._reset_seeds()
        self._reset_options()
        return self.flat.flatten(observations)

    def step_async(self, actions: Any) -> None:
        """Have every environment take its action, without waiting where the environments are remote."""
        self._actions = self._batched(actions)
        if hasattr(self.envs, "step_async"):
            self.envs.step_async(self._actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step: observations, rewards as float32, ends of episodes, infos."""
        step = self.envs.step_wait() if hasattr(self.envs, "step_wait") else self.envs.step(self._actions)
        observations, rewards, terminated, truncated, info = step
        final_obs, final_info = info.pop("final_obs", None), info.pop("final_info", {})
        info.pop("_final_obs", None)
        info.pop("_final_info", None)
        rows = info_rows(info, self.num_envs)
        dones = terminated | truncated
        if dones.any():
            final_rows = info_rows(final_info, self.num_envs)
            for index in np.flatnonzero(dones):
                self.reset_infos[index] = rows[index]
                rows[index] = {**final_rows[index], "terminal_observation": self.flat.flatten(final_obs[index])}
        for row, cut_off in zip(rows, (truncated & ~terminated).tolist(), strict=True):
            row["TimeLimit.truncated"] = cut_off
        return self.flat.flatten(observations), rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether every environment has an attribute; of a remote one, methods as well, which ``get_attr`` would call."""
        if isinstance(self.envs, RemoteVectorEnv):
            return self.envs.has_attr(attr_name)
        return super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment, or of what its wrappers wrap."""
        if attr_name == "render_mode":
            return [self.envs.render_mode for _ in self._get_indices(indices)]
        if isinstance(self.envs, RemoteVectorEnv) and not self.envs.has_attr(attr_name):
            raise AttributeError(f"{self.envs.settings.id} has no attribute {attr_name!r}")
        return self.env_method(attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments of ``indices``."""
        rows = self._rows(indices)
        if isinstance(self.envs, RemoteVectorEnv):
            self.envs.set_attr(attr_name, [value] * len(rows), rows)
        elif isinstance(self.envs, SyncVectorEnv):
            for row in rows:
                self.envs.envs[row].set_wrapper_attr(attr_name, value)
        elif len(rows) == self.num_envs:
            self.envs.set_attr(attr_name, [value] * self.num_envs)  # type: ignore[attr-defined]
        else:
            raise ConfigError("an attribute can be set in all environments only")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list:
        """Call a method of the environments of ``indices``, or of what their wrappers wrap."""
        rows = self._rows(indices)
        if isinstance(self.envs, RemoteVectorEnv):
            return list(self.envs.call_rows(rows, method_name, *method_args, **method_kwargs))
        if isinstance(self.envs, SyncVectorEnv):
            found = [self.envs.envs[row].get_wrapper_attr(method_name) for row in rows]
            return [one(*method_args, **method_kwargs) if callable(one) else one for one in found]
        values = self.envs.call(method_name, *method_args, **method_kwargs)  # type: ignore[attr-defined]
        return [values[row] for row in rows]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Nothing that Stable-Baselines3 asks for is wrapped around single environments here."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A frame of each environment."""
        return list(self.envs.render() or [])  # type: ignore[arg-type]

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        """Indices of environments, those from the end counted from the start."""
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]

    def _batched(self, actions: Any) -> Any:
        """Actions as the environments take them; Stable-Baselines3's own environments take lists as well."""
        if isinstance(self.action_space, Dict | Tuple):
            if not isinstance(actions, list):
                return actions
            empty: Any = create_empty_array(self.action_space, self.num_envs)
            return concatenate(self.action_space, actions, empty)
        # Policies of Stable-Baselines3 answer in real numbers where actions are bits.
        return np.asarray(actions, None if isinstance(self.action_space, Box) else self.action_space.dtype)

    def _reset(
        self, seeds: Sequence[int | None] | None, options: list[dict[str, Any] | None]
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Reset all environments, each with its options; returns observations and infos."""
        same = all(one == options[0] for one in options)
        if same or isinstance(self.envs, RemoteVectorEnv):
            observations, info = self.envs.reset(seed=seeds, options=options[0] if same else options)  # type: ignore[arg-type]
            return observations, info_rows(info, self.num_envs)
        # Gymnasium's own take one for all: those that have options are reset again, one by one.
        observations, info = self.envs.reset(seed=seeds)  # type: ignore[arg-type]
        rows = info_rows(info, self.num_envs)
        for row, one in enumerate(options):
            if one:
                mask = np.arange(self.num_envs) == row
                observations, info = self.envs.reset(seed=seeds, options={**one, "reset_mask": mask})  # type: ignore[arg-type]
                rows[row] = info_rows(info, self.num_envs)[row]
        return observations, rows


def info_rows(info: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """A vector environment's info as one dictionary an environment."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in info.items():
        present = info.get(f"_{key}")
        if present is None:
            continue
        parts = info_rows(values, num_envs) if isinstance(values, dict) else values
        if isinstance(parts, np.ndarray) and parts.ndim == 1:
            parts = parts.tolist()
        if present.all():
            for row, value in zip(rows, parts, strict=True):
                row[key] = value
        else:
            for index in np.flatnonzero(present):
                rows[index][key] = parts[index]
    return rows
