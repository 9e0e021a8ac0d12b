"""One step of a policy as ONNX: what a browser, or any other runtime without torch, needs to act.

Shapes: T transitions that are read, P that were read before, S observation slots, A action slots, H the hidden size, L
layers, K the number of bins.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ldm_hf.export.int8 import store_as_integers, with_int8_weights
from ldm_hf.modeling.processing_ldm import START
from ldm_hf.modeling.steps_ldm import CACHE
from ldm_hf.utils.files import replacing

if TYPE_CHECKING:
    from ldm_hf.modeling import LDMConfig, LDMModel

STEP, IMAGE, POLICY = "step.onnx", "image.onnx", "policy.json"
"""The files of an exported model: a step, the network in front of it that reads images, and the settings of both."""


class Graph(nn.Module):
    """A module that knows what the inputs and outputs of its graph are called."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class PolicyStep(Graph):
    """Reads transitions of one environment and gives the logits of the newest one's action.

    What a policy remembers is an input and an output. A transition's keys and values lie side by side, so whoever keeps them
    appends an output to an array and gives its beginning as the next input.

    Args:
        model: an ``LDMModel``; its parameters are shared.
    """

    inputs = ("observations", "previous_actions", "previous_rewards", "previous_dones", "images", "memory")
    outputs = ("logits", "attention", "new_memory")

    def __init__(self, model: "LDMModel") -> None:
        super().__init__()
        self.embedding, self.backbone, self.action_head = model.embedding, model.backbone, model.action_head
        self._num_bins = model.config.num_bins

    def forward(
        self,
        observations: torch.Tensor,
        previous_actions: torch.Tensor,
        previous_rewards: torch.Tensor,
        previous_dones: torch.Tensor,
        images: torch.Tensor,
        memory: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read T transitions after P others.

        Args:
            observations: rows of the slot table, int32 of shape (T, S): the bin of a continuous slot, K and the symbol of a
                discrete one.
            previous_actions: the same of the action before, int32 of shape (T, A).
            previous_rewards: bin of the reward before, int32 of shape (T,).
            previous_dones: done signal before, int32 of shape (T,); nothing is read of what was before ``START``.
            images: what ``ImageToken`` makes of the images, zeros without, float of shape (T, H).
            memory: keys and values, float of shape (P, L, 2, heads, size).

        Returns:
            Logits (A, K) of the last transition's action, of all bins; how much of its attention each transition has, a mean
            of heads and layers, of shape (P + T,); keys and values (T, L, 2, heads, size) of what was read.
        """
        tokens_TH = self._tokens(observations, previous_actions, previous_rewards, previous_dones) + images
        before, now = memory.shape[0], observations.shape[0]
        positions_T = torch.arange(now) + before
        visible = torch.arange(before + now)[None, :] <= positions_T[:, None]
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        layers = [_RecordingLayer(*memory[:, layer].permute(1, 2, 0, 3)) for layer in range(memory.shape[1])]
        outputs = self.backbone(
            inputs_embeds=tokens_TH[None],
            attention_mask=mask[None, None],
            position_ids=positions_T[None],
            use_cache=True,
            output_attentions=True,
            return_dict=True,
            **{CACHE: Cache(layers=list(layers))},
        )
        attention = torch.stack([weights[0, :, -1] for weights in outputs.attentions]).mean((0, 1))
        heads_AKH = self.action_head.weight.unflatten(0, (-1, self._num_bins))[: previous_actions.shape[1]]
        logits_AK = heads_AKH @ outputs.last_hidden_state[0, -1]
        return logits_AK, attention, torch.stack([layer.recorded() for layer in layers], 1)

    def _tokens(
        self, observations: torch.Tensor, actions: torch.Tensor, rewards: torch.Tensor, dones: torch.Tensor
    ) -> torch.Tensor:
        """Tokens (T, H), as ``LDMTransitionEmbedding`` makes them of raw values."""
        own = self.embedding
        table = own.slot_embedding
        before_TH = table(actions).flatten(1) @ own.action_projection[: actions.shape[1]].flatten(0, 1)
        before_TH = before_TH + table(rewards) @ own.scalar_projection[1]
        before_TH = before_TH + own.done_embedding(dones.clamp(max=START - 1)) @ own.scalar_projection[2]
        observed_TH = table(observations).flatten(1) @ own.observation_projection[: observations.shape[1]].flatten(0, 1)
        return observed_TH + own.bias + before_TH * (dones != START)[:, None]


class ImageToken(Graph):
    """What an image adds to its transition's token: uint8 images (T, 3, size, size) to floats (T, H)."""

    inputs, outputs = ("pixels",), ("images",)

    def __init__(self, model: "LDMModel") -> None:
        super().__init__()
        self.embedding = model.embedding

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.embedding.image_encoder(pixels) @ self.embedding.scalar_projection[0]


class _RecordingLayer(DynamicLayer):
    """Keys and values (heads, P, size) of one layer; knows which were added."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys[None], values[None]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens of shape (1, heads, T, size); returns all keys and values so far."""
        assert self.keys is not None and self.values is not None
        self._added = torch.stack([key_states[0], value_states[0]])
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)

    def recorded(self) -> torch.Tensor:
        """What was added, of shape (T, 2, heads, size)."""
        return self._added.permute(2, 0, 1, 3)


def export_onnx(model: "LDMModel", folder: Path, *, int8: bool = False) -> None:
    """Write a model as ``step.onnx`` and ``image.onnx``, with ``policy.json``.

    Args:
        model: what to export, in float32 on the CPU.
        folder: where to; other files in it stay.
        int8: store large weights as 8-bit integers, a quarter of the size; runtimes make floats of them as they load.
    """
    exported = with_int8_weights(model) if int8 else copy.deepcopy(model).eval()
    for part in (exported, exported.backbone):
        part.config._attn_implementation = "eager"  # the others do not give their weights
    example = _example(exported.config)
    widths = ({1: "observed"}, {1: "acted"})
    # An axis that can only be 1 is of no other length.
    free = [axis if tensor.shape[1] > 1 else {} for axis, tensor in zip(widths, example, strict=False)]
    axes = (*({0: "now", **axis} for axis in free), *[{0: "now"}] * 3, {0: "before"})
    size = exported.config.image_size
    pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    write_graph(PolicyStep(exported), example, axes, folder / STEP, int8=int8)
    write_graph(ImageToken(exported), (pixels,), ({0: "transitions"},), folder / IMAGE, int8=int8)
    with replacing(folder / POLICY) as path:
        path.write_text(json.dumps(_settings(exported, int8), indent=1) + "\n")


def _example(config: "LDMConfig") -> tuple[torch.Tensor, ...]:
    """Inputs of a step, a tensor each: the exporter takes the lengths of one tensor for one length."""
    observed, acted = min(4, config.max_observation_slots), min(2, config.max_action_slots)
    whole = [torch.ones(shape, dtype=torch.int32) for shape in ((3, observed), (3, acted), (3,), (3,))]
    return *whole, torch.zeros(3, config.hidden_size), torch.zeros([5, *_memory_shape(config)])


def _memory_shape(config: "LDMConfig") -> list[int]:
    """Of a transition's keys and values: (L, 2, heads, size)."""
    heads = config.num_key_value_heads or config.num_attention_heads
    return [config.num_hidden_layers, 2, heads, config.head_dim or config.hidden_size // config.num_attention_heads]


def _settings(model: "LDMModel", int8: bool) -> dict[str, Any]:
    """What a runner must know of a model beside its graphs."""
    config = model.config
    shared = ("num_bins", "mu", "max_value", "action_quantization", "image_size", "hidden_size", "environments")
    limits = ("max_observation_slots", "max_action_slots")
    return {
        "format": 1,
        "context_length": config.max_position_embeddings,
        "memory_shape": _memory_shape(config),
        "parameters": model.num_parameters(),
        "weights": "int8" if int8 else "float32",
        **{name: getattr(config, name) for name in (*shared, *limits)},
    }


def write_graph(
    module: Graph,
    example: tuple[torch.Tensor, ...],
    axes: Sequence[Mapping[int, str]],
    path: Path,
    *,
    int8: bool = False,
) -> None:
    """Write a module as ONNX, with its parameters inside the file.

    Args:
        module: what to export.
        example: its inputs.
        axes: of each input, the axes that may be of any length, and what the lengths are called.
        path: where to.
        int8: whether large weights are stored as integers; they must be those of ``with_int8_weights``.
    """
    dimensions = {name: torch.export.Dim(name) for names in axes for name in names.values()}
    shapes = tuple({axis: dimensions[name] for axis, name in names.items()} for names in axes)
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
            input_names=list(module.inputs),
            output_names=list(module.outputs),
        )
    assert program is not None
    proto = program.model_proto
    if int8:
        store_as_integers(proto.graph)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter says of its own workings, and of packages that it looked for, from the user."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
