"""LDMModel: slots to one token a transition, a Llama backbone, and one linear layer to action bins.

Shapes: B rows, T transitions, S observation slots, A action slots (those of the batch's widest environment), D the width
of a slot's embedding, H the hidden size, K the number of bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, LlamaModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_ldm import LDMConfig
from .policy_ldm import LDMPolicy
from .processing_ldm import IGNORE_INDEX, START, LDMProcessor
from .quantization_ldm import mu_law_encode
from .spaces_ldm import ABSENT, CONTINUOUS

_LOSS_POSITIONS = 8192
"""Transitions whose logits, 1024 of one slot each, are in memory at a time: 32 MB in float32."""


@dataclass
class LDMOutput(ModelOutput):
    """What ``LDMModel`` returns.

    Attributes:
        loss: cross-entropy in nats, averaged over the slots of a transition and then over transitions; given labels.
        logits: float of shape (B, T, A, K), bins that the action space does not allow at the lowest value; absent when
            labels are given, because at full size they would not fit in memory.
        last_hidden_state: float of shape (B, T, H).
        past_key_values: the cache, if one is in use.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None


class LDMImageEncoder(nn.Module):
    """A small convolutional network (after Mnih et al. 2015): uint8 images (N, 3, size, size) to features (N, D)."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
        )
        side = ((config.image_size - 8) // 4 + 1 - 4) // 2 + 1 - 2
        self.projection = nn.Linear(64 * side * side, config.slot_embedding_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.to(self.projection.weight.dtype) / 255 - 0.5
        return self.projection(self.convolutions(pixels).flatten(1))


class LDMTransitionEmbedding(nn.Module):
    """Embeds the slots of a transition and projects them, stacked, to one token (paper section 4.3).

    The linear layer over the stack is kept as one block of weights a slot, so that slots that no environment of a batch
    has are neither embedded nor multiplied.
    """

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.config = config
        width = config.slot_embedding_size
        self.slot_embedding = nn.Embedding(2 * config.num_bins, width)  # continuous bins, then discrete symbols
        self.done_embedding = nn.Embedding(START, width)  # none, terminated, truncated
        self.image_encoder = LDMImageEncoder(config)
        self.observation_projection = nn.Parameter(torch.empty(config.max_observation_slots, width, config.hidden_size))
        self.action_projection = nn.Parameter(torch.empty(config.max_action_slots, width, config.hidden_size))
        self.scalar_projection = nn.Parameter(torch.empty(3, width, config.hidden_size))  # image, reward, done signal
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self,
        observations: torch.Tensor,
        observation_kinds: torch.Tensor,
        previous_actions: torch.Tensor,
        action_kinds: torch.Tensor,
        previous_rewards: torch.Tensor,
        previous_dones: torch.Tensor,
        images: torch.Tensor | None,
        image_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        has_previous = (previous_dones != START).unsqueeze(-1)
        tokens = _project(self._slots(observations, observation_kinds), self.observation_projection)
        actions = self._slots(previous_actions, action_kinds) * has_previous.unsqueeze(-1)
        tokens = tokens + _project(actions, self.action_projection) + self.bias
        reward = self.slot_embedding(self._bins(previous_rewards)) * has_previous
        done = self.done_embedding(previous_dones.clamp(max=START - 1)) * has_previous
        tokens = tokens + reward @ self.scalar_projection[1] + done @ self.scalar_projection[2]
        return self._add_images(tokens, images, image_rows)

    def _bins(self, values: torch.Tensor) -> torch.Tensor:
        return mu_law_encode(values, self.config.mu, self.config.max_value, self.config.num_bins)

    def _slots(self, values_BTS: torch.Tensor, kinds_BS: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (B, T, S, D); those of absent slots are zero."""
        kinds_B1S = kinds_BS.unsqueeze(1)
        symbols = values_BTS.long() + self.config.num_bins
        indices = torch.where(kinds_B1S == CONTINUOUS, self._bins(values_BTS), symbols)
        indices = indices.masked_fill(kinds_B1S == ABSENT, 0)
        return self.slot_embedding(indices) * (kinds_B1S != ABSENT).unsqueeze(-1)

    def _add_images(
        self, tokens: torch.Tensor, images: torch.Tensor | None, image_rows: torch.Tensor | None
    ) -> torch.Tensor:
        if images is None or image_rows is None:
            if self.training:
                # Data-parallel training wants a gradient for every parameter, also in a batch without images.
                unused = sum(parameter.sum() for parameter in self.image_encoder.parameters())
                return tokens + 0 * (unused + self.scalar_projection[0].sum())
            return tokens
        features = self.image_encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return tokens.index_add(0, image_rows, (features @ self.scalar_projection[0]).to(tokens.dtype))


class LDMPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and what transformers needs to know of the model."""

    config: LDMConfig
    config_class = LDMConfig
    base_model_prefix = "model"
    main_input_name = "observations"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LDMTransitionEmbedding):
            width = self.config.slot_embedding_size
            # A dozen slots make a token of unit variance, so that the backbone starts from inputs of its usual size.
            for weight in (module.observation_projection, module.action_projection, module.scalar_projection):
                init.normal_(weight, std=1 / math.sqrt(12 * width))
            init.zeros_(module.bias)
            init.normal_(module.done_embedding.weight)
            init.copy_(module.slot_embedding.weight, _initial_slot_embedding(self.config))


class LDMModel(LDMPreTrainedModel):
    """A Large Decision Model: reads transitions, predicts the reference action for every observation.

    The model is stateless: what a rollout remembers is in ``LDMPolicy``. Its inputs are made by ``LDMProcessor``.
    """

    def __init__(self, config: LDMConfig):
        super().__init__(config)
        self.embedding = LDMTransitionEmbedding(config)
        self.backbone = LlamaModel(config)
        del self.backbone.embed_tokens  # It reads embeddings only.
        self.action_head = nn.Linear(config.hidden_size, config.max_action_slots * config.num_bins, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of slot symbols: the nearest thing to the token embedding that other models have."""
        return self.embedding.slot_embedding

    def policy(self, processor: LDMProcessor, environments: Sequence[Any], **kwargs: Any) -> LDMPolicy:
        """Start a rollout of these weights: see ``LDMPolicy``."""
        return LDMPolicy(self, processor, environments, **kwargs)

    def forward(
        self,
        observations: torch.Tensor,
        observation_kinds: torch.Tensor,
        previous_actions: torch.Tensor,
        action_kinds: torch.Tensor,
        previous_rewards: torch.Tensor,
        previous_dones: torch.Tensor,
        action_bins: torch.Tensor,
        images: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        num_items_in_batch: float | None = None,
    ) -> LDMOutput:
        """Predict actions, or the loss against reference actions.

        Args:
            observations: raw slot values, float of shape (B, T, S).
            observation_kinds: ``ABSENT``, ``CONTINUOUS`` or ``DISCRETE``, int64 of shape (B, S).
            previous_actions: raw slot values of the action of t-1, float of shape (B, T, A).
            action_kinds: int64 of shape (B, A).
            previous_rewards: reward of t-1, float of shape (B, T).
            previous_dones: done signal of t-1, int64 of shape (B, T); ``START`` where there is no t-1.
            action_bins: lowest and highest allowed bin of each action slot, int64 of shape (B, A, 2).
            images: uint8 of shape (R, T, 3, image_size, image_size), of the R rows that have images.
            image_rows: which rows these are, int64 of shape (R,).
            labels: bins of the reference action, int64 of shape (B, T, A), ``IGNORE_INDEX`` where there is none.
            past_key_values: cache of the transitions before these.
            use_cache: whether to return a cache.
            logits_to_keep: compute logits of the last so many transitions only; 0 is all.
            num_items_in_batch: divide the loss by this instead of by the number of labelled transitions, so that pieces of
                a larger batch have the gradients of the whole one.
        """
        tokens = self.embedding(
            observations,
            observation_kinds,
            previous_actions,
            action_kinds,
            previous_rewards,
            previous_dones,
            images,
            image_rows,
        )
        outputs = self.backbone(inputs_embeds=tokens, past_key_values=past_key_values, use_cache=use_cache)
        hidden_BTH = outputs.last_hidden_state
        result = LDMOutput(last_hidden_state=hidden_BTH, past_key_values=outputs.past_key_values)
        if labels is not None:
            total = self._loss(hidden_BTH, labels, action_kinds, action_bins)
            labelled = (labels != IGNORE_INDEX).any(-1).sum().clamp(min=1)
            result.loss = total / (labelled if num_items_in_batch is None else num_items_in_batch)
        else:
            result.logits = self._logits(hidden_BTH[:, -logits_to_keep:], action_bins)
        return result

    def _logits(self, hidden_BTH: torch.Tensor, action_bins_BA2: torch.Tensor) -> torch.Tensor:
        num_actions = action_bins_BA2.shape[1]
        weight = self.action_head.weight[: num_actions * self.config.num_bins]
        logits_BTAK = F.linear(hidden_BTH, weight).unflatten(-1, (num_actions, self.config.num_bins))
        return _mask_bins(logits_BTAK, action_bins_BA2.unsqueeze(1))

    def _loss(
        self, hidden_BTH: torch.Tensor, labels_BTA: torch.Tensor, kinds_BA: torch.Tensor, action_bins_BA2: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy, averaged over the slots of a transition and summed over transitions, a few thousand at a time.

        All logits of a batch would take more memory than the model: A x 1024 for each transition. They are made in pieces,
        forgotten, and made again for the backward pass.
        """
        present_BA = kinds_BA != ABSENT
        share_B = 1 / present_BA.sum(1)
        rows_at_once = max(1, _LOSS_POSITIONS // hidden_BTH.shape[1])
        total = hidden_BTH.new_zeros((), dtype=torch.float32)
        for slot, weight in enumerate(self.action_head.weight.split(self.config.num_bins)[: kinds_BA.shape[1]]):
            for rows in present_BA[:, slot].nonzero().squeeze(1).split(rows_at_once):
                arguments = (
                    hidden_BTH,
                    weight,
                    rows,
                    labels_BTA[rows, :, slot],
                    action_bins_BA2[rows, slot],
                    share_B[rows],
                )
                if torch.is_grad_enabled():
                    total = total + checkpoint(_slot_loss, *arguments, use_reentrant=False)
                else:
                    total = total + _slot_loss(*arguments)
        return total


def _slot_loss(
    hidden_BTH: torch.Tensor,
    weight_KH: torch.Tensor,
    rows_R: torch.Tensor,
    labels_RT: torch.Tensor,
    allowed_R2: torch.Tensor,
    share_R: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of one action slot, summed over transitions, of some rows of the batch."""
    logits_RTK = _mask_bins(F.linear(hidden_BTH[rows_R], weight_KH), allowed_R2.unsqueeze(1))
    losses = F.cross_entropy(
        logits_RTK.float().flatten(0, 1), labels_RT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return (losses.view_as(labels_RT) * share_R.unsqueeze(1)).sum()


def _project(slots_BTSD: torch.Tensor, blocks_SDH: torch.Tensor) -> torch.Tensor:
    """The linear layer over the stacked slots, restricted to those that are there."""
    num_slots = slots_BTSD.shape[2]
    return slots_BTSD.flatten(2) @ blocks_SDH[:num_slots].flatten(0, 1)


def _mask_bins(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits (..., K) with bins outside ``allowed`` (..., 2), lowest and highest, at the lowest value."""
    bins = torch.arange(logits.shape[-1], device=logits.device)
    outside = (bins < allowed[..., :1]) | (bins > allowed[..., 1:])
    return logits.masked_fill(outside, torch.finfo(logits.dtype).min)


def _initial_slot_embedding(config: LDMConfig) -> torch.Tensor:
    """Continuous bins start as waves of their position, so that neighbours start alike; symbols start at random."""
    half = config.slot_embedding_size // 2
    position = torch.linspace(-1, 1, config.num_bins).unsqueeze(1)
    frequency = torch.logspace(0, math.log10(config.num_bins / 4), half, base=10).unsqueeze(0)
    phase = position * frequency * math.pi
    waves = torch.zeros(config.num_bins, config.slot_embedding_size)
    waves[:, : 2 * half] = torch.cat([phase.sin(), phase.cos()], 1) * math.sqrt(2)
    return torch.cat([waves, torch.randn(config.num_bins, config.slot_embedding_size)])
