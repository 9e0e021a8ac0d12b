"""A mixture of experts beside the feed-forward layer of each block (M3DT, arXiv 2505.24378, section 4).

Shapes: B rows, T transitions, H the hidden size, I the width of a feed-forward layer, N experts.
"""

import torch
from torch import nn
from transformers import LlamaModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP

from .configuration_ldm import LDMConfig

EXPERT_WEIGHTS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
"""Names of what ``LDMExperts`` has of each expert, as opposed to its router."""


class LDMRouter(nn.Module):
    """How much each expert counts for a token: a network of one hidden layer, and a softmax over all experts."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.num_experts)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        """Weights (B, T, N), positive, which add up to one."""
        logits_BTN = self.output(self.act_fn(self.hidden(inputs_BTH)))
        return logits_BTN.float().softmax(-1).to(inputs_BTH.dtype)


class LDMExperts(nn.Module):
    """N feed-forward networks, weighted and added up.

    All of them work on every token, so they are kept as one network that is N times as wide: three matrix products for any
    number of experts, which are all that it costs. Expert i has rows i x I to (i + 1) x I - 1 of ``gate_proj`` and
    ``up_proj``, and these columns of ``down_proj``. Weighting what goes into ``down_proj`` is weighting what comes out.

    A single expert has the weight 1: how it is trained alone and how it is used with others are the same function.
    """

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.num_experts = config.num_experts
        width = config.num_experts * config.intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        # The layer itself is marked: of remote code, transformers initialises only modules with parameters of their own.
        self.down_proj.starts_at_zero = True  # type: ignore[assignment]
        self.act_fn = ACT2FN[config.hidden_act]
        self.router = LDMRouter(config)

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(inputs_BTH)) * self.up_proj(inputs_BTH)
        inner_BTNI = inner.unflatten(-1, (self.num_experts, -1)) * self.router(inputs_BTH).unsqueeze(-1)
        return self.down_proj(inner_BTNI.flatten(-2))


class LDMFeedForward(LlamaMLP):
    """The feed-forward layer of a block, whose weights keep their names, and experts on the same input."""

    def __init__(self, config: LDMConfig):
        super().__init__(config)
        self.experts = LDMExperts(config)

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs_BTH) + self.experts(inputs_BTH)


class LDMBackbone(LlamaModel):
    """A Llama backbone that reads embeddings only, with experts if the configuration has some."""

    def __init__(self, config: LDMConfig):
        super().__init__(config)
        del self.embed_tokens
        # Planned while it was there.
        self._tp_plan = {name: style for name, style in (self._tp_plan or {}).items() if name != "embed_tokens"}
        if config.num_experts:
            for layer in self.layers:
                layer.mlp = LDMFeedForward(config)
            self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and hasattr(module, "starts_at_zero"):
            init.zeros_(module.weight)  # attached to a trained backbone, experts say nothing at first
