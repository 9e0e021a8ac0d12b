"""Policies from zips of Stable-Baselines3 and SB3-Contrib. Nothing in them is unpickled.

A zip holds ``data``, JSON in which whatever JSON cannot hold is a pickle beside a description in words, and ``policy.pth``,
tensors that PyTorch reads without unpickling. Which network it is follows from the names and shapes of the tensors; the
words say what these do not: activation, classes, spaces.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from ldm_hf.dataset_builder.bank.pickled import Made, array, read_pickle
from ldm_hf.dataset_builder.bank.policies import NetworkPolicy, require_same_space
from ldm_hf.dataset_builder.reference.flat_observations import flat_space_json
from ldm_hf.dataset_builder.reference.policy import CLASSES, PLAIN, ReferencePolicy, _policy_name, acts
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import CheckpointError, ConfigError, one_line
from ldm_hf.modeling.spaces_ldm import space_from_json, space_to_json

_MOST_BYTES = 2**31  # of a part of a zip, unpacked

Weights = dict[str, torch.Tensor]

_HARMLESS = {
    "features_extractor_kwargs",
    "full_std",
    "log_std_init",
    "lr_schedule",
    "n_critics",
    "n_quantiles",
    "net_arch",
}
_HARMLESS |= {"optimizer_class", "optimizer_kwargs", "ortho_init", "share_features_extractor", "use_expln", "use_sde"}
"""Arguments of policies that say nothing of how they act, or nothing that their weights do not say."""

_PASSED = ("squash_output", "clip_mean", "normalize_images")
"""Arguments of policies that are passed on."""


def read_zip(path: Path, described: EnvironmentSpec, normalizer: Path | None) -> NetworkPolicy:
    """Read the policy of a zip.

    Args:
        path: of the zip.
        described: the environment that it shall act in.
        normalizer: the file of the ``VecNormalize`` that it was trained behind, if it was.

    Raises:
        CheckpointError: the file is damaged or no such zip, or holds a policy that cannot be rebuilt without unpickling.
        ConfigError: it is a policy of other spaces, or its statistics are missing.
    """
    data, weights = _parts(path)
    try:
        _check_classes(path, data)
        for key, wanted in (("observation", flat_space_json(described.observation_space)),
                            ("action", described.action_space)):  # fmt: skip
            found = _space_in_words(data[f"{key}_space"], wanted)
            if found is not None:
                require_same_space(described.id, key, wanted, found)
        if normalizer is None and data.get("_last_original_obs") is not None:
            raise ConfigError(
                f"{path} was trained behind VecNormalize: name the file that VecNormalize.save made by --normalizer"
            )
        statistics, clip, epsilon = ({}, 10.0, 1e-8) if normalizer is None else read_normalizer(normalizer)
        description = _description(data, weights, described)
        acting = {name: value for name, value in weights.items() if acts(name)}
        reference = ReferencePolicy.of_weights(description, acting, statistics, clip, epsilon)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, CheckpointError | ConfigError):
            raise
        raise CheckpointError(
            f"{path} holds no policy that can be rebuilt without unpickling: {' '.join(str(error).split())[:300]}"
        ) from error
    source = f"the zip {path.name} of Stable-Baselines3, trained on {data.get('num_timesteps')} transitions elsewhere"
    made_by = {"algorithm": description["algorithm"], "hyperparameters": {}, "source": source}
    return NetworkPolicy(reference, described, made_by)


def _parts(path: Path) -> tuple[dict[str, Any], Weights]:
    """What JSON and safe tensors the zip holds."""
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols, of what is refused
            for name in ("data", "policy.pth"):
                if archive.getinfo(name).file_size > _MOST_BYTES:
                    raise ValueError(f"{name} has more than {_MOST_BYTES} bytes")
            data = json.loads(archive.read("data"))
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
        if not isinstance(data, dict) or not isinstance(weights, Mapping):
            raise ValueError("its parts are of other kinds")
        if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
            raise ValueError("policy.pth holds something else than tensors")
    except Exception as error:  # zipfile, json, torch and pickle's reader raise what they like
        reason = one_line(error, 200)
        raise CheckpointError(
            f"{path} is not a zip that Stable-Baselines3 saved: {type(error).__name__}: {reason}"
        ) from error
    return data, dict(weights)


def _check_classes(path: Path, data: dict[str, Any]) -> None:
    """Refuse what acts in another way than the weights say."""
    words = data["policy_class"]
    module = str(words.get("__module__")) if isinstance(words, dict) else ""
    if not module.startswith(("stable_baselines3.", "sb3_contrib.")):
        raise CheckpointError(
            f"{path} holds a policy of a class of its own ({module or words}), which cannot be rebuilt"
        )
    for kind in ("recurrent", "maskable"):
        if kind in module:
            raise CheckpointError(
                f"{path} holds a {kind} policy: only policies that read nothing but observations can act"
            )
    arguments = data.get("policy_kwargs") or {}
    unknown = [key for key in arguments if key[0] != ":" and key not in _HARMLESS and key not in _PASSED]
    unknown = [key for key in unknown if key not in ("activation_fn", "features_extractor_class")]
    if unknown:
        raise CheckpointError(
            f"{path} holds a policy with {unknown[0]}={arguments[unknown[0]]!r}, which is not known here"
        )


def _space_in_words(words: dict[str, Any], like: dict[str, Any]) -> dict[str, Any] | None:
    """A space as its description in words says, as far as it must be compared; None of what words do not say."""
    kind = re.search(r"(\w+)'>", str(words[":type:"]))
    found: dict[str, Any] = {"type": kind[1] if kind else "?"}
    if found["type"] == "Box":
        found["shape"] = _numbers(words["_shape"], int)
        for key in ("low", "high"):
            values = _numbers(words[key], float)
            known = "..." not in str(words[key]) and len(values) == np.prod(found["shape"], dtype=int)
            # Words round, and do not say all of large arrays.
            close = known and "shape" in like and like["shape"] == found["shape"] and _close(values, like, key)
            found[key] = like[key] if close or (not known and key in like) else (values or [0.0])
    elif found["type"] == "Discrete":
        found |= {"n": _numbers(words["n"], int)[0], "start": _numbers(words.get("start", 0), int)[0]}
    elif found["type"] == "MultiDiscrete":
        found |= {"nvec": _numbers(words["nvec"], int)}
        found |= {key: like[key] for key in ("start",) if key in like}
    else:
        return None if found["type"] == like["type"] else found
    return found


def _close(values: list[float], like: dict[str, Any], key: str) -> bool:
    wanted = np.broadcast_to(np.array(like[key], np.float64).ravel(), len(values))
    return bool(np.allclose(values, wanted, rtol=1e-5))


def _numbers(words: Any, kind: type) -> list[Any]:
    return [kind(float(one)) for one in re.findall(r"-?inf|[-+]?\d+\.?\d*(?:e[-+]?\d+)?|[-+]?\.\d+", str(words))]


def _description(data: dict[str, Any], weights: Weights, described: EnvironmentSpec) -> dict[str, Any]:
    """What rebuilds the policy: its algorithm, as far as it matters for acting, and the arguments of its class."""
    words = data.get("policy_kwargs") or {}
    algorithm, prefix, arguments = _network(weights, described.action_space)
    space = _channels_first(space_from_json(flat_space_json(described.observation_space)))
    if algorithm != "ARS" or "activation_fn" in words:
        arguments["activation_fn"] = _activation(words.get("activation_fn"), "Tanh" if algorithm == "PPO" else "ReLU")
    for key in _PASSED:
        if key in words:
            arguments[key] = json.loads(str(words[key]).lower())
    if data.get("use_sde") and algorithm in ("PPO", "SAC"):
        arguments["use_sde"] = True
    arguments |= _features(weights, f"{prefix}features_extractor.", words)
    linear = algorithm == "ARS" and not arguments["net_arch"]
    if linear:
        del arguments["net_arch"]
        arguments["with_bias"] = "action_net.0.bias" in weights
    return {
        "algorithm": algorithm,
        "policy": "LinearPolicy" if linear else _policy_name(space),
        "policy_arguments": arguments,
        "observation_space": space_to_json(space),
        "action_space": described.action_space,
    }


def _network(weights: Weights, action_space: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """An algorithm whose policies act like this one, the prefix of what acts, and the sizes of its layers."""
    names = list(weights)

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in names)

    if has("q_net."):
        return "DQN", "q_net.", {"net_arch": _sizes(weights, "q_net.q_net.")[:-1]}
    if has("quantile_net."):
        *sizes, last = _sizes(weights, "quantile_net.quantile_net.")
        return "QRDQN", "quantile_net.", {"net_arch": sizes, "n_quantiles": last // action_space["n"]}
    if has("actor.log_std"):  # also TQC
        return "SAC", "actor.", {"net_arch": {"pi": _sizes(weights, "actor.latent_pi."), "qf": []}}
    if has("actor.mu."):  # also DDPG
        return "TD3", "actor.", {"net_arch": {"pi": _sizes(weights, "actor.mu.")[:-1], "qf": []}}
    if has("action_net.") and has("value_net."):  # also A2C and TRPO
        return "PPO", "", {"net_arch": {"pi": _sizes(weights, "mlp_extractor.policy_net."), "vf": []}}
    if has("action_net."):
        return "ARS", "", {"net_arch": _sizes(weights, "action_net.")[:-1]}
    raise ValueError(f"its weights are of no known kind: {', '.join(names[:4])}")


def _sizes(weights: Weights, prefix: str) -> list[int]:
    """Outputs of the linear layers under a prefix, in order."""
    found = {}
    for name, value in weights.items():
        match = re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", name)
        if match and value.ndim == 2:
            found[int(match[1])] = int(value.shape[0])
    return [found[place] for place in sorted(found)]


def _activation(words: Any, default: str) -> str:
    if words is None:
        return default
    match = re.search(r"(\w+)'>", str(words))
    if match is None or match[1] not in CLASSES["activation_fn"]:
        raise ValueError(f"its activation is {words}; known are {', '.join(CLASSES['activation_fn'])}")
    return match[1]


def _features(weights: Weights, prefix: str, words: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the features extractor that has these weights."""
    names = [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]
    given = re.search(r"(\w+)'>", str(words.get("features_extractor_class", "")))
    kind = given[1] if given else ""
    if kind not in ("", "FlattenExtractor", "NatureCNN", "CombinedExtractor", *CLASSES["features_extractor_class"]):
        raise ValueError(f"its features extractor is {words['features_extractor_class']}, a class of its own")
    if kind in CLASSES["features_extractor_class"]:
        return {"features_extractor_class": kind}
    linear = [name for name in names if name.endswith("linear.0.weight")]
    if not linear:
        if names:
            raise ValueError(f"its features extractor has layers of its own: {names[0]}")
        return {}
    size = int(weights[prefix + linear[0]].shape[0])
    key = "cnn_output_dim" if linear[0].startswith("extractors.") else "features_dim"
    return {"features_extractor_kwargs": {key: size}}


def _channels_first(space: Any) -> Any:
    """The space that Stable-Baselines3's networks read, whose images have their channels in front."""
    if isinstance(space, Dict):
        return Dict({key: _channels_first(part) for key, part in space.spaces.items()})
    last = is_image_space(space) and not is_image_space_channels_first(space)
    return VecTransposeImage.transpose_space(space) if last else space


def read_normalizer(path: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, float]:
    """Mean and variance by key, clip and epsilon, from the pickle that ``VecNormalize.save`` made; it is not unpickled.

    Raises:
        CheckpointError: the file is no such pickle.
    """
    try:
        saved = read_pickle(path.read_bytes())
        if not isinstance(saved, Made) or not isinstance(saved.state, dict) or "obs_rms" not in saved.state:
            raise ValueError("it is not a VecNormalize")
        state = saved.state
        clip, epsilon = float(array(state["clip_obs"])), float(array(state["epsilon"]))
        if not state.get("norm_obs", True):
            return {}, clip, epsilon
        running = state["obs_rms"] if isinstance(state["obs_rms"], dict) else {PLAIN: state["obs_rms"]}
        found = {str(key): (array(one.state["mean"]), array(one.state["var"])) for key, one in running.items()}
        if not all(np.isfinite(part).all() for pair in found.values() for part in pair):
            raise ValueError("its statistics are not finite")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a readable file of VecNormalize: {' '.join(str(error).split())[:200]}"
        ) from error
    return found, clip, epsilon
