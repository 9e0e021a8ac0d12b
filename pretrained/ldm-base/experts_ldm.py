"""A mixture of experts beside the feed-forward layer of each block (M3DT, arXiv 2505.24378, section 4).

Shapes: B rows, T transitions, H the hidden size, I the width of a feed-forward layer, N experts.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP

from .configuration_ldm import LDMConfig

EXPERT_WEIGHTS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
"""Names of what ``LDMExperts`` has of each expert, as opposed to its router."""


class LDMRouter(nn.Module):
    """Logits of how much each expert counts for a token: a network of one hidden layer, or of several."""

    def __init__(self, config: LDMConfig):
        super().__init__()
        width = config.router_hidden_size or config.hidden_size
        self.hidden = nn.Linear(config.hidden_size, width)
        self.deeper = nn.ModuleList(nn.Linear(width, width) for _ in range(config.router_hidden_layers - 1))
        self.output = nn.Linear(width, config.num_experts)
        if self.deeper:
            for layer in (self.hidden, *self.deeper, self.output):
                layer.keeps_scale = True
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, N)."""
        hidden = self.act_fn(self.hidden(inputs_BTH))
        for layer in self.deeper:
            hidden = self.act_fn(layer(hidden))
        return self.output(hidden)


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
        weights_BTN = self.router(inputs_BTH).float().softmax(-1).to(inputs_BTH.dtype)
        inner_BTNI = inner.unflatten(-1, (self.num_experts, -1)) * weights_BTN.unsqueeze(-1)
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
        if isinstance(module, nn.Linear) and hasattr(module, "keeps_scale"):
            # As torch starts linear layers: through several as small as a transformer's, hardly anything would pass.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)


@contextlib.contextmanager
def recorded_routing(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within it, the logits of each router that works are put into a list, from the first layer to the last."""
    found: list[torch.Tensor] = []
    routers = [module for module in model.modules() if isinstance(module, LDMRouter)]
    hooks = [router.register_forward_hook(lambda _module, _inputs, logits: found.append(logits)) for router in routers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def routing_loss(
    logits_of_layers: Sequence[torch.Tensor], expert_labels_B: torch.Tensor, labelled_BT: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy between routers' weights (B, T, N) and each row's expert, -100 where it has none.

    Averaged over layers and added up over the transitions that have an action label.
    """
    wanted_BT = expert_labels_B.unsqueeze(1).masked_fill(~labelled_BT, -100)
    losses = [
        F.cross_entropy(logits.flatten(0, 1).float(), wanted_BT.flatten(), ignore_index=-100, reduction="sum")
        for logits in logits_of_layers
    ]
    return torch.stack(losses).mean()
