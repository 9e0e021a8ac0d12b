"""Reference policies: a trained policy that acts deterministically on batches, kept as safetensors and JSON."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY, Candidate, algorithm_class
from ldm_hf.dataset_builder.reference.features import SmallImageExtractor, needs_small_images
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.errors import CheckpointError
from ldm_hf.modeling.spaces_ldm import space_from_json, space_to_json

FORMAT = 1
_MEAN, _VARIANCE = ".mean", ".variance"
PLAIN = "observation"
"""Key of the statistics of observations that are one array."""

CLASSES: dict[str, dict[str, Any]] = {
    "activation_fn": {
        name: getattr(torch.nn, name)
        for name in ("Tanh", "ReLU", "ELU", "LeakyReLU", "GELU", "SiLU", "Sigmoid", "Softplus")
    },
    "optimizer_class": {"RMSpropTFLike": RMSpropTFLike},
    # The second name is what policies of earlier versions call it.
    "features_extractor_class": dict.fromkeys(("SmallImageExtractor", "SmallPictureExtractor"), SmallImageExtractor),
}
"""Classes that policy arguments may name."""

_LINEAR = "linear_"

_NOT_ACTING = (
    *("critic.", "critic_target.", "actor_target.", "q_net_target.", "quantile_net_target.", "value_net."),
    *("mlp_extractor.value_net.", "vf_features_extractor.", "pi_features_extractor.", "log_std", "actor.log_std"),
)
"""Beginnings of the names of weights that the deterministic policy does not read: of critics, targets and exploration, and
second names of the features extractor."""


class ReferencePolicy:
    """A policy of Stable-Baselines3 with the observation statistics that it was trained with.

    Args:
        policy: the network.
        description: what rebuilds it: algorithm, policy name and arguments, as JSON data.
        statistics: mean and variance by key of a ``Dict`` space, or under one name; empty without normalisation.
        clip, epsilon: of the normalisation.
    """

    def __init__(
        self,
        policy: BasePolicy,
        description: dict[str, Any],
        statistics: dict[str, tuple[np.ndarray, np.ndarray]],
        clip: float = 10.0,
        epsilon: float = 1e-8,
    ):
        self._policy = policy
        self._policy.set_training_mode(False)
        self._description = description
        self._statistics = statistics
        self._clip = clip
        self._epsilon = epsilon

    @property
    def algorithm(self) -> str:
        """Class name of what trained it."""
        return self._description["algorithm"]

    @property
    def network(self) -> BasePolicy:
        """The network that acts, on normalised observations."""
        return self._policy

    @property
    def normalization(self) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, float]:
        """Mean and variance by key, empty without normalisation; where the result is clipped; what a variance gains."""
        return self._statistics, self._clip, self._epsilon

    @property
    def spaces(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the observations that it reads, flat, and of its actions, as JSON."""
        return self._description["observation_space"], self._description["action_space"]

    def act(self, observations: Any) -> np.ndarray:
        """Deterministic actions of shape (N, ...) for N observations (arrays with a leading axis, or a dict of them).

        Box actions are clipped to their bounds, as Stable-Baselines3 does before it steps an environment.
        """
        actions, _ = self._policy.predict(self._normalize(observations), deterministic=True)
        return actions

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        """``act`` as Stable-Baselines3's ``evaluate_policy`` calls it."""
        return self.act(observation), state

    def acting_weights(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """The weights that its actions depend on, real numbers in a dtype."""
        return {
            name: value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
            for name, value in self._policy.state_dict().items()
            if acts(name)
        }

    def with_weights(self, weights: dict[str, torch.Tensor]) -> "ReferencePolicy":
        """The same policy with other values of the weights that act."""
        return self.of_weights(self._description, weights, self._statistics, self._clip, self._epsilon)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write ``policy.json``, ``policy.safetensors`` and, if there are statistics, ``normalizer.safetensors``.

        Args:
            folder: where to.
            weights: by default all; those of ``acting_weights`` act alike.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if weights is None:
            # Clones, because some algorithms' parameters are views of one vector, or shared between networks.
            weights = {name: value.detach().clone() for name, value in self._policy.state_dict().items()}
        save_file(weights, folder / "policy.safetensors")
        if self._statistics:
            save_file(_flat(self._statistics), folder / "normalizer.safetensors")
        record = {"format": FORMAT, **self._description, "clip": self._clip, "epsilon": self._epsilon}
        (folder / "policy.json").write_text(json.dumps(record, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "ReferencePolicy":
        """Rebuild a policy from its folder; nothing is unpickled.

        Raises:
            CheckpointError: the files are missing, damaged or of another format.
        """
        try:
            record = json.loads((folder / "policy.json").read_text())
            if record.pop("format", None) != FORMAT:
                raise CheckpointError(f"{folder} has another policy format than {FORMAT}")
            clip, epsilon = record.pop("clip"), record.pop("epsilon")
            weights = load_file(folder / "policy.safetensors")
            normalizer = folder / "normalizer.safetensors"
            tensors = load_file(normalizer) if normalizer.exists() else {}
            keys = [name.removesuffix(_MEAN) for name in tensors if name.endswith(_MEAN)]
            statistics = {key: (tensors[key + _MEAN].numpy(), tensors[key + _VARIANCE].numpy()) for key in keys}
            return cls.of_weights(record, weights, statistics, clip, epsilon)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} holds no readable policy: {' '.join(str(error).split())}") from error

    @classmethod
    def of_weights(
        cls,
        description: dict[str, Any],
        weights: dict[str, torch.Tensor],
        statistics: dict[str, tuple[np.ndarray, np.ndarray]],
        clip: float = 10.0,
        epsilon: float = 1e-8,
    ) -> "ReferencePolicy":
        """A policy of its description and weights, of which those that do not act may be missing.

        Raises:
            ValueError: they are not those of such a policy, or not finite.
            KeyError, TypeError, AttributeError, RuntimeError: the description is none, or shapes differ.
        """
        policy = _build_policy(description)
        missing, unexpected = policy.load_state_dict(weights, strict=False)
        missing = [name for name in missing if acts(name)]
        if missing or unexpected:
            raise ValueError(f"weights that are missing: {missing[:3]}, that do not belong to it: {unexpected[:3]}")
        wrong = [name for name, value in weights.items() if not torch.isfinite(value).all()]
        if wrong:
            raise ValueError(f"its weights are not finite: {wrong[0]}")
        return cls(policy, description, statistics, clip, epsilon)

    @classmethod
    def of(cls, model: BaseAlgorithm, candidate: Candidate, normalizer: VecNormalize | None) -> "ReferencePolicy":
        """The current policy of a trained algorithm."""
        description = {
            "algorithm": candidate.algorithm,
            "policy": candidate.policy or _policy_name(model.observation_space),
            "policy_arguments": _policy_arguments(model, candidate),
            "observation_space": space_to_json(model.policy.observation_space),
            "action_space": space_to_json(model.policy.action_space),
        }
        if normalizer is None or not normalizer.norm_obs:
            return cls(model.policy, description, {})
        running = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {PLAIN: normalizer.obs_rms}
        statistics = {key: (values.mean.copy(), values.var.copy()) for key, values in running.items()}
        return cls(model.policy, description, statistics, normalizer.clip_obs, normalizer.epsilon)

    def _normalize(self, observations: Any) -> Any:
        if not self._statistics:
            return observations
        if not isinstance(observations, dict):
            return self._normalized(observations, PLAIN)
        return {key: self._normalized(part, key) for key, part in observations.items()}

    def _normalized(self, values: np.ndarray, key: str) -> np.ndarray:
        if key not in self._statistics:
            return values
        mean, variance = self._statistics[key]
        scaled = (values - mean) / np.sqrt(variance + self._epsilon)
        return np.clip(scaled, -self._clip, self._clip).astype(np.float32)


def acts(name: str) -> bool:
    """Whether the deterministic policy reads the weights of a name."""
    return not name.startswith(_NOT_ACTING)


def _flat(statistics: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    means = {key + _MEAN: torch.from_numpy(np.array(mean)) for key, (mean, _) in statistics.items()}
    variances = {key + _VARIANCE: torch.from_numpy(np.array(variance)) for key, (_, variance) in statistics.items()}
    return {**means, **variances}


def train_policy(
    venv: VecEnv,
    candidate: Candidate,
    *,
    timesteps: int,
    seed: int,
    progress: Callable[[int], None],
    device: str = "cpu",
    recorder: Recorder | None = None,
) -> ReferencePolicy:
    """Train a candidate on environments and return its final policy.

    Episodes that a recorder still waits for are played to their ends after the last update: by the final policy, which acts
    as it did in training, exploration included, and learns nothing from them.

    Args:
        venv: the environments; their number is the candidate's.
        candidate: what to train.
        timesteps: budget in transitions; algorithms finish the rollout that they are in.
        seed: of everything random; the same seed gives the same policy on one thread.
        progress: called at every step with the number of transitions so far.
        device: that trains it; the policy is returned on the CPU.
        recorder: what records the environments.
    """
    model, normalizer = make_model(venv, candidate, timesteps=timesteps, seed=seed, device=device)
    model.learn(timesteps, callback=ReportProgress(progress))
    if recorder is not None:
        finish_episodes(model, normalizer, recorder)
    model.policy.to("cpu")
    return ReferencePolicy.of(model, candidate, normalizer)


def make_model(
    venv: VecEnv, candidate: Candidate, *, timesteps: int, seed: int, device: str = "cpu"
) -> tuple[BaseAlgorithm, VecNormalize | None]:
    """A candidate's untrained algorithm on environments, and what normalises them; arguments as of ``train_policy``."""
    normalizer = _normalizer(venv, candidate) if candidate.normalize else None
    env = normalizer or venv
    model = algorithm_class(candidate.algorithm)(
        candidate.policy or _policy_name(env.observation_space),
        env,
        seed=seed,
        device=device,
        **_arguments(candidate, venv, timesteps),
    )
    model.set_logger(Logger(folder=None, output_formats=[]))  # the default one leaves an empty temporary folder behind
    return model, normalizer


def finish_episodes(model: BaseAlgorithm, normalizer: VecNormalize | None, recorder: Recorder) -> None:
    """End training: collect experience as the algorithm does, and throw it away, until all episodes have ended."""
    recorder.end_training()
    if normalizer is not None:
        normalizer.training = False
    callback = _WhileRecording(recorder)
    callback.init_callback(model)
    env = model.env
    assert env is not None
    while recorder.is_recording:
        if isinstance(model, OnPolicyAlgorithm):
            model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        elif isinstance(model, OffPolicyAlgorithm):
            assert isinstance(model.train_freq, TrainFreq) and model.replay_buffer is not None
            explored = model.action_noise, model.learning_starts
            model.collect_rollouts(env, callback, model.train_freq, model.replay_buffer, *explored)
        else:  # ARS plays whole episodes between two updates; those that its last reset left behind have no more to show
            recorder.break_off()


def _normalizer(venv: VecEnv, candidate: Candidate) -> VecNormalize:
    """Running statistics of boxes that are not images; ARS compares returns, so that its rewards stay as they are."""
    space = venv.observation_space
    parts = space.spaces if isinstance(space, Dict) else {PLAIN: space}
    keys = [key for key, part in parts.items() if isinstance(part, Box) and not is_image_space(part)]
    return VecNormalize(
        venv,
        gamma=candidate.hyperparameters.get("gamma", 0.99),
        norm_obs=bool(keys),
        norm_reward=candidate.algorithm != "ARS",
        norm_obs_keys=keys if isinstance(space, Dict) and keys else None,
    )


def _arguments(candidate: Candidate, venv: VecEnv, timesteps: int) -> dict[str, Any]:
    """The arguments of the algorithm's class, with what JSON cannot hold put in place of its description."""
    arguments = {name: _schedule(value) for name, value in candidate.hyperparameters.items()}
    if "action_noise" in arguments:
        shape = venv.action_space.shape or ()
        arguments["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, arguments["action_noise"]))
    if isinstance(arguments.get("train_freq"), list):  # a number and its unit
        arguments["train_freq"] = tuple(arguments["train_freq"])
    if candidate.algorithm in OFF_POLICY:
        arguments["buffer_size"], _ = candidate.replay(space_to_json(venv.observation_space), timesteps)
    given = dict(arguments.pop("policy_kwargs", {}))
    if needs_small_images(venv.observation_space):
        given["features_extractor_class"] = SmallImageExtractor.__name__
    return {**arguments, "policy_kwargs": _resolve(given)} if given else arguments


def _schedule(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_LINEAR):
        return LinearSchedule(float(value.removeprefix(_LINEAR)), 0.0, 1.0)
    return value


class ReportProgress(BaseCallback):
    """Reports the number of transitions so far at every step."""

    def __init__(self, report: Callable[[int], None]):
        super().__init__()
        self._report = report

    def _on_step(self) -> bool:
        self._report(self.num_timesteps)
        return True


class _WhileRecording(BaseCallback):
    def __init__(self, recorder: Recorder):
        super().__init__()
        self._recorder = recorder

    def _on_step(self) -> bool:
        return self._recorder.is_recording


def _policy_name(space: Any) -> str:
    """The name of the policy for a kind of observations."""
    if type(space).__name__ == "Dict":
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def _policy_arguments(model: BaseAlgorithm, candidate: Candidate) -> dict[str, Any]:
    # Two that algorithms set themselves; DDPG is TD3 with a single critic.
    own = {"n_critics": model.policy_kwargs.get("n_critics"), "use_sde": getattr(model, "use_sde", None)}
    given = dict(candidate.hyperparameters.get("policy_kwargs", {}))
    if model.env is not None and needs_small_images(model.env.observation_space):
        given["features_extractor_class"] = SmallImageExtractor.__name__
    return {**given, **{name: value for name, value in own.items() if value}}


def _resolve(arguments: dict[str, Any]) -> dict[str, Any]:
    """Policy arguments with the names of classes replaced by the classes."""
    return {name: CLASSES[name][value] if name in CLASSES else value for name, value in arguments.items()}


def _build_policy(record: dict[str, Any]) -> BasePolicy:
    policy_class = algorithm_class(record["algorithm"]).policy_aliases[record["policy"]]
    arguments = _resolve(record["policy_arguments"])
    if "lr_schedule" in inspect.signature(policy_class).parameters:
        arguments["lr_schedule"] = lambda _: 0.0
    spaces = (space_from_json(record[name]) for name in ("observation_space", "action_space"))
    return policy_class(*spaces, **arguments)
