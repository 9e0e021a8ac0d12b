"""Contenders of ``training.py``: other layouts of the same control task, with as many parameters as ours.

Every module's ``forward`` takes a batch and returns a loss; ``tokens`` is what a transition takes of the context.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPTNeoConfig, GPTNeoModel, LlamaModel

from ldm_hf.modeling import LDMConfig

OBSERVATIONS, ACTIONS = 17, 6


def with_parameters(build: Callable[[int], nn.Module], parameters: int) -> nn.Module:
    """The module whose feed-forward width, the argument of ``build``, gives it the wanted number of parameters."""
    with torch.device("meta"):
        narrow, wide = (sum(part.numel() for part in build(width).parameters()) for width in (64, 128))
    return build(64 + 64 * round((parameters - narrow) / (wide - narrow)))


class Gato(nn.Module):
    """One token per dimension and a separator (Gato, arXiv 2205.06175): 24 tokens per transition, bins by a shared head."""

    tokens = OBSERVATIONS + 1 + ACTIONS

    @classmethod
    def batch(cls, sequences: int, context: int) -> dict[str, torch.Tensor]:
        """Random inputs."""
        return {"bins": torch.randint(0, 1024, (sequences, context, cls.tokens))}

    def __init__(self, config: LDMConfig, width: int):
        super().__init__()
        self.table = nn.Embedding(2 * config.num_bins, config.hidden_size)
        self.backbone = llama(config, self.tokens, width)
        self.head = nn.Linear(config.hidden_size, config.num_bins, bias=False)

    def forward(self, bins: torch.Tensor) -> torch.Tensor:
        """Loss of predicting the action tokens, given bins of shape (B, T, 24)."""
        hidden = self.backbone(inputs_embeds=self.table(bins.flatten(1)), use_cache=False).last_hidden_state
        hidden = hidden.unflatten(1, bins.shape[1:])[:, :, OBSERVATIONS:-1]
        labels = bins[:, :, OBSERVATIONS + 1 :]
        return F.cross_entropy(self.head(hidden).float().flatten(0, 2), labels.flatten())


class Jat(nn.Module):
    """Two tokens a timestep, observation and action, continuous (JAT, arXiv 2402.09844), on a given kind of backbone."""

    tokens = 2

    @classmethod
    def batch(cls, sequences: int, context: int) -> dict[str, torch.Tensor]:
        """Random inputs."""
        observations, actions = (torch.randn(sequences, context, width) for width in (OBSERVATIONS + 1, ACTIONS))
        return {"observations": observations, "actions": actions}

    def __init__(self, config: LDMConfig, width: int, backbone: Callable[[LDMConfig, int, int], nn.Module]):
        super().__init__()
        self.observe, self.act = nn.Linear(OBSERVATIONS + 1, config.hidden_size), nn.Linear(ACTIONS, config.hidden_size)
        self.backbone = backbone(config, self.tokens, width)
        self.head = nn.Linear(config.hidden_size, ACTIONS)

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Squared error of the actions, given (B, T, 18) and (B, T, 6)."""
        tokens = torch.stack([self.observe(observations), self.act(actions)], 2).flatten(1, 2)
        hidden = self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return F.mse_loss(self.head(hidden[:, ::2]).float(), actions.float())


def llama(config: LDMConfig, tokens: int, width: int) -> LlamaModel:
    """Our backbone, with another feed-forward width and room for ``tokens`` tokens per transition."""
    shape = {**config.to_dict(), "intermediate_size": width}
    shape["max_position_embeddings"] = config.max_position_embeddings * tokens
    backbone = LlamaModel(LDMConfig(**shape))
    del backbone.embed_tokens
    return backbone


def gpt_neo(config: LDMConfig, tokens: int, width: int) -> GPTNeoModel:
    """The backbone that JAT's published model has: every second layer local, attention written out."""
    kinds = [["global" if layer % 2 == 0 else "local"] for layer in range(config.num_hidden_layers)]
    backbone = GPTNeoModel(
        GPTNeoConfig(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            intermediate_size=width,
            max_position_embeddings=config.max_position_embeddings * tokens,
            attention_types=[[kind, 1] for kind in kinds],
        )
    )
    del backbone.wte
    return backbone
