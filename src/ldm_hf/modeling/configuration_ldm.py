"""Configuration of a Large Decision Model: a Llama backbone, and what surrounds it."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .quantization_ldm import MU_LAW, UNIFORM
from .spaces_ldm import IMAGE_SIZE, MAX_ACTION_SLOTS, MAX_OBSERVATION_SLOTS, NUM_BINS

# Layers, heads, width and context of 308m are the paper's (section 4.4), which leaves the other numbers open.
_SHAPE_FIELDS = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "slot_embedding_size",
    "max_position_embeddings",
)
_PRESETS = {
    "nano": (3, 4, 128, 384, 64, 128),
    "tiny": (4, 6, 192, 768, 64, 256),
    "32m": (10, 8, 256, 2048, 128, 2048),
    "70m": (12, 6, 384, 2880, 192, 2048),
    "308m": (12, 12, 768, 8192, 256, 2048),
    "736m": (20, 16, 1024, 9472, 256, 2048),
}

_LEAST = {
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 1,
    "max_observation_slots": 1,
    "max_action_slots": 1,
    "num_bins": 2,
    "slot_embedding_size": 1,
    "image_size": 36,  # the convolutions leave one position of it
    "num_experts": 0,
    "router_hidden_layers": 1,
    "router_hidden_size": 1,
    "router_aux_loss_coef": 0,
}


@strict
class LDMConfig(LlamaConfig):
    r"""Configuration of ``LDMModel``. Everything that shapes the backbone is a field of ``LlamaConfig``.

    Args:
        max_observation_slots, max_action_slots: widest spaces that fit (paper section 4.3: 128 and 28).
        num_bins: bins of a continuous value and symbols of a discrete one (paper section 4.3: 1024).
        mu, max_value: mu and M of the mu-law (paper section 4.3: 100 and 256).
        slot_embedding_size: width of a slot's embedding before the projection to ``hidden_size``.
        image_size: side of images in pixels (paper section 4.3: 64).
        max_position_embeddings: context length in transitions (paper section 4.4: 2048).
        action_quantization: how continuous actions are cut into bins: ``mu_law`` (the paper's), or ``uniform``: evenly
            between the bounds of their space.
        action_smoothing: standard deviation, in bins, of a normal distribution around a continuous reference action, whose
            mass in each bin is the target of the loss (the Gaussian histogram loss, arXiv 2403.03950); 0 is the bin only,
            as in the paper. What this and the two settings below are worth is in docs/learning.md.
        mask_training_logits: whether bins that the action space does not allow are left out of the loss as well, as they
            always are in rollout.
        wave_embedding: whether the embeddings of continuous bins start as waves of their position, so that neighbours
            start alike, instead of at random.
        previous_action_dropout: probability that a transition of training does not show the action before it. Predicted from
            those, which in recordings are the reference's own, actions repeat where they should not: what this is worth is
            in docs/worth.md.
        standardize_images: whether each image is brought to a standard deviation of 1 before the convolutions, its mean
            kept, so that faint differences are seen as well as strong ones.
        num_experts: feed-forward networks that each block has beside its own, weighted by a router (docs/experts.md); 0 is
            the paper's model.
        router_hidden_layers, router_hidden_size: of each router; no size is ``hidden_size``.
        router_aux_loss_coef: weight in the loss of the cross-entropy between routers' weights and the expert that a row is
            meant for, where training says which.
        environments: ids of the environments that the weights were trained on, sorted; training writes them.
        expert_environments: of each expert, the ids of those that it alone was trained on; training writes them.

    Examples:
        >>> LDMConfig.preset("308m").num_hidden_layers
        12
    """

    model_type = "ldm"
    # As Llama's, without the token embedding.
    base_model_pp_plan = {
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_fsdp_plan = {"layers.*": "free_full_weight", "norm": "keep_full_weight"}

    vocab_size: int = 1  # The backbone reads embeddings: it has no tokens of its own.
    hidden_size: int = 768
    intermediate_size: int = 8192
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    max_observation_slots: int = MAX_OBSERVATION_SLOTS
    max_action_slots: int = MAX_ACTION_SLOTS
    num_bins: int = NUM_BINS
    mu: float | int = 100.0
    max_value: float | int = 256.0
    slot_embedding_size: int = 256
    image_size: int = IMAGE_SIZE
    action_quantization: str = MU_LAW
    action_smoothing: float | int = 6.0
    mask_training_logits: bool = True
    wave_embedding: bool = True
    previous_action_dropout: float | int = 0.0
    standardize_images: bool = True
    num_experts: int = 0
    router_hidden_layers: int = 1
    router_hidden_size: int | None = None
    router_aux_loss_coef: float | int = 0.0
    environments: list[str] | None = None
    expert_environments: list[list[str]] | None = None

    def validate_sizes(self) -> None:
        """Called by ``strict`` when a configuration is made."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("mu", "max_value"):
            value = getattr(self, name)
            if not 0 < value < math.inf:  # also false for NaN
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if self.num_experts and self.mlp_bias:
            raise ValueError("num_experts and mlp_bias exclude each other: experts have no biases")

    def validate_action_settings(self) -> None:
        """Called by ``strict`` when a configuration is made."""
        if self.action_quantization not in (MU_LAW, UNIFORM):
            raise ValueError(f"action_quantization must be {MU_LAW} or {UNIFORM}, got {self.action_quantization!r}")
        if not 0 <= self.previous_action_dropout <= 1:
            raise ValueError(f"previous_action_dropout must be from 0 to 1, got {self.previous_action_dropout}")
        if not 0 <= self.action_smoothing < math.inf:
            raise ValueError(
                f"action_smoothing must be a finite number of bins, at least 0, got {self.action_smoothing}"
            )

    @staticmethod
    def presets() -> list[str]:
        """The names that ``preset`` knows."""
        return list(_PRESETS)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "LDMConfig":
        """The configuration of a named size, any field overridden.

        Args:
            name: ``nano`` and ``tiny`` for CPUs; ``32m``, ``70m``, ``308m`` and ``736m``, the sizes of the paper.
            **overrides: fields of the configuration.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in _PRESETS:
            raise ValueError(f"no preset is called {name!r}; there are {', '.join(_PRESETS)}")
        fields: dict[str, Any] = dict(zip(_SHAPE_FIELDS, _PRESETS[name], strict=True))
        return cls(**{**fields, **overrides})
