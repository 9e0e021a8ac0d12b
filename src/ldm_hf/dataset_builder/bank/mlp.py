"""A multilayer perceptron as a policy: a safetensors file of its layers, with a small JSON file beside it."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm_hf.dataset_builder.bank.policies import NetworkPolicy
from ldm_hf.dataset_builder.reference.flat_observations import flat_space_json
from ldm_hf.dataset_builder.reference.policy import CLASSES, PLAIN, ReferencePolicy
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.env_registry.worker.space_tree import array_format
from ldm_hf.errors import CheckpointError, ConfigError, one_line

_KEYS = {"activation", "output", "clip"}
_OUTPUTS = {"linear", "tanh"}


def read_mlp(path: Path, described: EnvironmentSpec) -> NetworkPolicy:
    """Read an MLP.

    The file holds ``<name>.weight`` and ``<name>.bias`` of linear layers, such as the state of a ``torch.nn.Sequential``;
    their order is that of the numbers in their names. ``observation.mean`` and ``observation.variance`` normalise what it
    reads, if they are there. The JSON file of the same name holds ``activation`` (between the layers: a class of
    ``torch.nn``) and may hold ``output``: ``linear`` (logits of discrete actions or values of continuous ones, the default)
    or ``tanh`` (continuous actions, scaled from -1 to 1 to their bounds); and ``clip``, of normalised observations, by
    default 10.

    Raises:
        CheckpointError: the files cannot be read, or hold something else.
        ConfigError: the MLP is not one of this environment.
    """
    try:
        settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path)
        if not isinstance(settings, dict) or settings.keys() - _KEYS or "activation" not in settings:
            raise ValueError(f"the JSON file must hold activation, and may hold output and clip, got {settings!r:.80}")
        statistics = _statistics(tensors)
        layers = _layers(tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not an MLP that can be read: {' '.join(str(error).split())}") from error
    activation, output = settings["activation"], settings.get("output", "linear")
    if activation not in CLASSES["activation_fn"] or output not in _OUTPUTS:
        raise ConfigError(
            f"{path.with_suffix('.json')}: activation is one of {', '.join(CLASSES['activation_fn'])}, output linear or "
            f"tanh, got {activation!r} and {output!r}"
        )
    description = _description(described, [int(weight.shape[0]) for weight, _ in layers[:-1]], activation, output)
    prefix, last = ("actor.mu.", "") if output == "tanh" else ("mlp_extractor.policy_net.", "action_net.")
    weights: dict[str, torch.Tensor] = {}
    for index, (weight, bias) in enumerate(layers):
        name = last if last and index == len(layers) - 1 else f"{prefix}{2 * index}."
        weights |= {f"{name}weight": weight, f"{name}bias": bias}
    try:
        reference = ReferencePolicy.of_weights(description, weights, statistics, float(settings.get("clip", 10.0)))
        reference.act(_zeros(description["observation_space"]))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = one_line(error, 300)
        raise ConfigError(f"{path} is not a policy of {described.id}: {reason}") from error
    source = f"the MLP {path.name}, trained elsewhere"
    return NetworkPolicy(reference, described, {"algorithm": "MLP", "hyperparameters": {}, "source": source})


def _statistics(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    found = [tensors.pop(f"observation.{name}", None) for name in ("mean", "variance")]
    if found == [None, None]:
        return {}
    if any(one is None or not torch.isfinite(one).all() for one in found):
        raise ValueError("observation.mean and observation.variance must both be there, and finite")
    return {PLAIN: tuple(one.double().numpy() for one in found if one is not None)}


def _layers(tensors: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each layer, in order."""
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_numbers)
    wrong = [name for name in tensors if name.rpartition(".")[2] not in ("weight", "bias")]
    if wrong or not names:
        raise ValueError(f"it holds {wrong[0]}, which is not a layer's" if wrong else "it holds no layers")
    return [(tensors[f"{name}.weight"].float(), _bias(tensors, name)) for name in names]


def _bias(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    weight = tensors[f"{name}.weight"]
    return tensors.get(f"{name}.bias", torch.zeros(weight.shape[0])).float()


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _description(described: EnvironmentSpec, sizes: list[int], activation: str, output: str) -> dict[str, Any]:
    observation, action = flat_space_json(described.observation_space), described.action_space
    if observation["type"] == "Dict":
        raise ConfigError(f"{described.id} shows several parts at once: an MLP reads one")
    if output == "tanh" and action["type"] != "Box":
        raise ConfigError(f"{described.id} takes {action['type']} actions: the output of its MLP is linear")
    values = "qf" if output == "tanh" else "vf"
    return {
        "algorithm": "TD3" if output == "tanh" else "PPO",
        "policy": "MlpPolicy",
        "policy_arguments": {"net_arch": {"pi": sizes, values: []}, "activation_fn": activation},
        "observation_space": observation,
        "action_space": action,
    }


def _zeros(space: dict[str, Any]) -> Any:
    found = array_format(space)
    assert found is not None  # flat spaces have arrays
    shape, dtype = found
    return torch.zeros((1, *shape)).numpy().astype(dtype)
