"""LDMModel: slots to one token per transition, a Llama backbone, and one linear layer to action bins.

Shapes: B rows, R some of them, T transitions, S observation slots, A action slots (those of the batch's widest
environment), D the width of a slot's embedding, H the hidden size, K the number of bins.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from .configuration_ldm import LDMConfig
from .experts_ldm import LDMBackbone, recorded_routing, routing_loss
from .loss_ldm import action_loss, mask_bins
from .packing_ldm import Packing, RowGroups, RowsByWidth, group_rows
from .policy_ldm import LDMPolicy
from .processing_ldm import START, LDMProcessor
from .quantization_ldm import ActionCode, mu_law_encode
from .spaces_ldm import ABSENT, CONTINUOUS
from .steps_ldm import CACHE


@dataclass
class LDMOutput(CausalLMOutputWithPast):
    """What ``LDMModel`` returns.

    Attributes:
        loss: cross-entropy in nats, averaged over the slots of a transition and then over transitions; given labels.
        logits: float of shape (B, T, A, K), bins that the action space does not allow at the lowest value; absent when
            labels are given, because at full size they would not fit in memory.
        cache: keys and values, with ``use_cache``; called ``past_key_values`` by transformers before 5.24.
        hidden_states: the tokens, then what each layer makes of them, float of shape (B, T, H) each; on request.
        attentions: of each layer, float of shape (B, heads, T, tokens so far); on request.
        last_hidden_state: float of shape (B, T, H).
    """

    last_hidden_state: torch.Tensor | None = None


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
        self._standardize = config.standardize_images

    def forward(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        pixels = images.float()
        pixels = _standardized(pixels) if self._standardize else pixels / 255
        return self.projection(self.convolutions((pixels - 0.5).to(dtype)).flatten(1))


def _standardized(pixels: torch.Tensor) -> torch.Tensor:
    """Images with values to 255 brought to a standard deviation of 1, each around its own brightness from 0 to 1.

    Symbols that are drawn as 0 to 10 of 255 are then as far apart as the colours of a photograph.
    """
    flat = pixels.flatten(1)
    means = flat.mean(1)
    # By the mean of squares: torch.std_mean takes as long as the convolutions. An image of one colour has none.
    factors = (flat.square().mean(1) - means.square()).clamp(min=1).rsqrt()
    shifts = means * (1 / 255 - factors)
    return pixels * factors[:, None, None, None] + shifts[:, None, None, None]


class LDMTransitionEmbedding(nn.Module):
    """Embeds the slots of a transition and projects them, stacked, to one token (paper section 4.3).

    The linear layer over the stack is kept as one block of weights per slot, so that slots that an environment does not have
    are neither embedded nor multiplied.
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
        row_groups: RowGroups | None,
    ) -> torch.Tensor:
        has_previous = (previous_dones != START).unsqueeze(-1)
        observed, acted = (None, None) if row_groups is None else row_groups.split()[:2]
        actions = self._slots(previous_actions, action_kinds, self.action_projection, acted)
        if self.training and self.config.previous_action_dropout:
            # Hidden, as where there is none: the others do not grow, as they would by dropout of features.
            shown = torch.rand(has_previous.shape, device=actions.device) >= self.config.previous_action_dropout
            actions = actions * shown
        reward = self.slot_embedding(self._bins(previous_rewards)) @ self.scalar_projection[1]
        done = self.done_embedding(previous_dones.clamp(max=START - 1)) @ self.scalar_projection[2]
        tokens = self._slots(observations, observation_kinds, self.observation_projection, observed) + self.bias
        tokens = tokens + (actions + reward + done) * has_previous
        return self._add_images(tokens, images, image_rows)

    def _bins(self, values: torch.Tensor) -> torch.Tensor:
        return mu_law_encode(values, self.config.mu, self.config.max_value, self.config.num_bins)

    def _slots(
        self, values_BTS: torch.Tensor, kinds_BS: torch.Tensor, blocks_SDH: torch.Tensor, groups: RowsByWidth | None
    ) -> torch.Tensor:
        """Embed and project slots, (B, T, H), rows of the same number of slots together, or all as wide as the widest."""
        if groups is None:
            present_B1S1 = (kinds_BS != ABSENT)[:, None, :, None]
            embedded = self._embed(values_BTS, kinds_BS.unsqueeze(1)) * present_B1S1
            return embedded.flatten(2) @ blocks_SDH[: values_BTS.shape[2]].flatten(0, 1)
        parts = []
        for width, rows in groups:
            some = slice(None) if len(groups) == 1 else rows
            embedded = self._embed(values_BTS[some, :, :width], kinds_BS[some, None, :width])
            parts.append(embedded.flatten(2) @ blocks_SDH[:width].flatten(0, 1))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[torch.cat([rows for _, rows in groups]).argsort()]

    def _embed(self, values_RTS: torch.Tensor, kinds_R1S: torch.Tensor) -> torch.Tensor:
        symbols = values_RTS.long() + self.config.num_bins
        return self.slot_embedding(torch.where(kinds_R1S == CONTINUOUS, self._bins(values_RTS), symbols))

    def _add_images(
        self, tokens: torch.Tensor, images: torch.Tensor | None, image_rows: torch.Tensor | None
    ) -> torch.Tensor:
        if images is None or image_rows is None:
            if self.training:
                # Data-parallel training wants a gradient for every parameter, also in a batch without images.
                unused = sum(parameter.sum() for parameter in self.image_encoder.parameters())
                return tokens + 0 * (unused + self.scalar_projection[0].sum())
            return tokens
        features = self.image_encoder(images.flatten(0, 1), self.bias.dtype).unflatten(0, images.shape[:2])
        return tokens.index_add(0, image_rows, (features @ self.scalar_projection[0]).to(tokens.dtype))


class LDMActionHead(nn.Linear):
    """Hidden states (..., H) to the logits of all action slots' bins, (..., max_action_slots x K)."""

    def __init__(self, config: LDMConfig):
        super().__init__(config.hidden_size, config.max_action_slots * config.num_bins, bias=False)
        self.num_bins = config.num_bins

    def forward(self, input: torch.Tensor, num_slots: int | None = None) -> torch.Tensor:
        """The logits of the first ``num_slots`` slots, which cost only what these have; by default of all."""
        if num_slots is None:
            return super().forward(input)
        return F.linear(input, self.weight[: num_slots * self.num_bins])


class LDMPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and what transformers needs to know of the model."""

    config: LDMConfig
    config_class = LDMConfig
    base_model_prefix = "backbone"
    main_input_name = "observations"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "LDMTransitionEmbedding"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

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
            table = torch.randn(2 * self.config.num_bins, width)
            if self.config.wave_embedding:
                table[: self.config.num_bins] = _waves(self.config)
            init.copy_(module.slot_embedding.weight, table)


class LDMModel(LDMPreTrainedModel):
    """A Large Decision Model: reads transitions, predicts the reference action for every observation.

    The model is stateless: what a rollout remembers is in ``LDMPolicy``. Its inputs are made by ``LDMProcessor``.
    """

    def __init__(self, config: LDMConfig):
        super().__init__(config)
        self.embedding = LDMTransitionEmbedding(config)
        self.backbone = LDMBackbone(config)
        self.action_head = LDMActionHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of slot symbols: the nearest thing to the token embedding that other models have."""
        return self.embedding.slot_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of slot symbols."""
        self.embedding.slot_embedding = value  # type: ignore[assignment]

    def policy(self, processor: LDMProcessor, environments: Sequence[Any], **kwargs: Any) -> LDMPolicy:
        """Start a rollout of these weights: see ``LDMPolicy``."""
        return LDMPolicy(self, processor, environments, **kwargs)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(  # type: ignore[misc] # TransformersKwargs names two of these arguments again
        self,
        observations: torch.Tensor,
        observation_kinds: torch.Tensor,
        previous_actions: torch.Tensor,
        action_kinds: torch.Tensor,
        previous_rewards: torch.Tensor,
        previous_dones: torch.Tensor,
        action_bounds: torch.Tensor,
        images: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        expert_labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        num_items_in_batch: float | None = None,
        row_groups: RowGroups | None = None,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LDMOutput:
        """Predict actions, or the loss against reference actions.

        Args:
            observations: raw slot values, float of shape (B, T, S).
            observation_kinds: ``ABSENT``, ``CONTINUOUS`` or ``DISCRETE``, int64 of shape (B, S).
            previous_actions: raw slot values of the action of t-1, float of shape (B, T, A).
            action_kinds: int64 of shape (B, A).
            previous_rewards: reward of t-1, float of shape (B, T).
            previous_dones: done signal of t-1, int64 of shape (B, T); ``START`` where there is no t-1.
            action_bounds: lowest and highest value of each action slot, 0 and n - 1 of a discrete one, float of shape
                (B, A, 2).
            images: uint8 of shape (R, T, 3, image_size, image_size), of the R rows that have images.
            image_rows: which rows these are, int64 of shape (R,).
            labels: raw slot values of the reference action, float of shape (B, T, A), NaN where there is none.
            expert_labels: the expert that each row is meant for, int64 of shape (B,), -100 where there is none: routers are
                told by ``config.router_aux_loss_coef`` times the cross-entropy, which is part of the loss.
            attention_mask: 1 where a transition may be attended to and 0 where it may not, of shape (B, tokens so far), or
                any mask of the backbone's. By default all are: padding comes last, where causal attention hides it.
            position_ids: positions in the context, int64 of shape (B, T); by default those after the cache.
            cache: of the transitions before these.
            use_cache: whether to return a cache; a rollout asks for one, so ``config.use_cache`` does not.
            logits_to_keep: number of transitions, the last ones, of which logits are computed; 0 is all.
            num_items_in_batch: divide the loss by this instead of by the number of labelled transitions, so that pieces of
                a larger batch have the gradients of the whole one.
            row_groups: ``group_rows`` of both kinds, if it is known: to find it out, a device has to be waited for. A
                compiled or exported graph without it embeds all rows as wide as the widest, and computes the loss of every
                slot of every row.
            packing: ``pack_rows`` of the batch, where it is worth it: backbone and loss then leave out padding, whose
                ``last_hidden_state`` is zero. It takes the place of ``attention_mask`` and ``position_ids``; what each
                layer makes of the tokens is returned as packed.
            **kwargs: of the backbone, such as ``output_hidden_states`` and ``output_attentions``.
        """
        if row_groups is None and not torch.compiler.is_compiling():  # a graph cannot depend on which rows are how wide
            row_groups = group_rows(observation_kinds, action_kinds)
        tokens = self.embedding(
            observations,
            observation_kinds,
            previous_actions,
            action_kinds,
            previous_rewards,
            previous_dones,
            images,
            image_rows,
            row_groups,
        )
        if packing is not None:
            shape, tokens = tokens.shape[:2], packing.pack(tokens)
            attention_mask, position_ids = None, packing.position_ids
        recording: AbstractContextManager[list[torch.Tensor]] = nullcontext([])
        if expert_labels is not None:
            recording = recorded_routing(self.backbone)
        with recording as routing:
            outputs = self.backbone(
                inputs_embeds=tokens,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                return_dict=True,
                **{CACHE: cache},
                **kwargs,
            )
        hidden_BTH = outputs.last_hidden_state
        if packing is not None:
            hidden_BTH = packing.unpack(hidden_BTH, shape)
        loss = logits_BTAK = None
        if labels is not None:
            batch = hidden_BTH, labels, action_kinds, action_bounds
            if packing is not None:
                batch, row_groups = packing.single_transitions(*batch), packing.slots
            total = action_loss(self._head_weights(action_kinds.shape[1]), *batch, row_groups, self.config)
            labelled_BT = (~labels.isnan()).any(-1)
            if expert_labels is not None:
                routed = routing if packing is None else [packing.unpack(logits, shape) for logits in routing]
                total = total + self.config.router_aux_loss_coef * routing_loss(routed, expert_labels, labelled_BT)
            labelled = labelled_BT.sum().clamp(min=1)
            loss = total / (labelled if num_items_in_batch is None else num_items_in_batch)
        else:
            logits_BTAK = self.slot_logits(hidden_BTH[:, -logits_to_keep:], action_kinds.shape[1])
            allowed_BA2 = ActionCode.of(self.config).allowed(action_kinds, action_bounds)
            logits_BTAK = mask_bins(logits_BTAK, allowed_BA2.unsqueeze(1))
        return LDMOutput(
            loss=loss,
            logits=logits_BTAK,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            last_hidden_state=hidden_BTH,
            **{CACHE: outputs[CACHE] if use_cache else None},
        )

    def _head_weights(self, num_slots: int) -> Any:
        """The action head as ``action_loss`` takes it."""
        if isinstance(self.action_head, LDMActionHead):
            used = self.action_head.weight[: num_slots * self.config.num_bins]
            return used.unflatten(0, (num_slots, self.config.num_bins))
        return partial(self.slot_logits, num_slots=num_slots)

    def slot_logits(self, hidden: torch.Tensor, num_slots: int) -> torch.Tensor:
        """Logits of the first action slots, float of shape (..., num_slots, K), of hidden states (..., H)."""
        if isinstance(self.action_head, LDMActionHead):
            logits = self.action_head(hidden, num_slots)
        else:  # an adapter or a quantised layer in its place knows nothing of slots
            logits = self.action_head(hidden)[..., : num_slots * self.config.num_bins]
        return logits.unflatten(-1, (num_slots, self.config.num_bins))


def _waves(config: LDMConfig) -> torch.Tensor:
    """Embeddings of continuous bins, (K, D), of unit variance: sines and cosines of the position, of rising frequency."""
    half = config.slot_embedding_size // 2
    position = torch.linspace(-1, 1, config.num_bins).unsqueeze(1)
    frequency = torch.logspace(0, math.log10(config.num_bins / 4), half, base=10).unsqueeze(0)
    phase = position * frequency * math.pi
    waves = torch.zeros(config.num_bins, config.slot_embedding_size)
    waves[:, : 2 * half] = torch.cat([phase.sin(), phase.cos()], 1) * math.sqrt(2)
    return waves
