"""One forward pass for several rollouts, of any environments and of contexts of any lengths.

Embedding, layers and head read the newest transition of all rollouts as one batch. Attention alone is computed for one
rollout after another, whose keys and values stay where they are: nothing is copied, padded or masked, and a rollout gets
what it would get alone, up to the order of sums in matrix products.

Shapes: B rows of all rollouts together; S observation slots, A action slots of the widest; K the number of bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .memory_ldm import RolloutCache
from .packing_ldm import group_rows
from .policy_ldm import LDMPolicy
from .quantization_ldm import ActionCode
from .steps_ldm import decode, sharing

ATTENTION = "ldm_joint"
"""Name of the attention, as transformers knows it."""


class JointStep:
    """Acts for several ``LDMPolicy`` of one model at once.

    Args:
        model: what the policies were made with; ``packed`` gives one that acts fastest.

    Examples:
        >>> step = JointStep(model)
        >>> for policy, observation in zip(policies, observations):
        ...     policy.observe([observation])
        >>> actions = step(policies)  # a list of actions for each policy
    """

    def __init__(self, model: Any) -> None:
        self._model = sharing(model)
        self._model.set_attn_implementation(ATTENTION)

    @torch.inference_mode()
    def __call__(self, policies: Sequence[LDMPolicy]) -> list[list[Any]]:
        """Choose actions after each policy's ``observe``: for each what its ``act`` would return."""
        if len(policies) == 1:  # which has what it needs at hand
            (policy,) = policies
            return [policy._take(policy._slots(policy._choose(*policy._forward())))]
        sizes = [len(policy) for policy in policies]
        rows = _joined_rows(policies)
        inputs = _joined_inputs(policies, rows)
        logits_BAK, bins_BA = decode(self._model, inputs, rows, JointCache([policy._cache for policy in policies]))
        widths = [policy._low.shape[1] for policy in policies]
        parts = [
            policy._choose(logits[:, :width], bins[:, :width])
            for policy, width, logits, bins in zip(
                policies, widths, logits_BAK.split(sizes), bins_BA.split(sizes), strict=True
            )
        ]
        # Decoded together: a few operations on all rows instead of on each rollout's.
        code = ActionCode.of(policies[0].processor)
        described = rows["action_kinds"].cpu(), rows["action_bounds"].cpu()
        slots = code.decode(_padded(parts, bins_BA.shape[1]).cpu(), *described).numpy()
        each = zip(policies, widths, np.split(slots, np.cumsum(sizes)[:-1]), strict=True)
        return [policy._take(some[:, :width]) for policy, width, some in each]


class JointCache(Cache):
    """The caches of several rollouts: new keys and values are shared out, and each rollout's are returned."""

    def __init__(self, caches: Sequence[RolloutCache]) -> None:
        super().__init__(layers=[])
        self._caches = caches
        self._sizes = [len(cache.memory[0][0]) for cache in caches]

    def update(  # type: ignore[override] # it is read by attend_each alone
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Add a token to each row, (B, heads, 1, size); returns keys and values of each rollout."""
        parts = zip(self._caches, key_states.split(self._sizes), value_states.split(self._sizes), strict=True)
        updated = [cache.rollout_layers[layer_idx].update(keys, values) for cache, keys, values in parts]
        return [keys for keys, _ in updated], [values for _, values in updated]


def attend_each(
    module: torch.nn.Module,
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    attention_mask: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the newest tokens, (B, heads, 1, size), each rollout's rows to its own keys and values."""
    parts = zip(query.split([len(each) for each in keys]), keys, values, strict=True)
    return torch.cat([sdpa_attention_forward(module, *part, None, **kwargs)[0] for part in parts]), None


AttentionInterface.register(ATTENTION, attend_each)


def _joined_rows(policies: Sequence[LDMPolicy]) -> dict[str, Any]:
    """What the model must know of all rows."""
    described = [policy._rows for policy in policies]
    rows: dict[str, Any] = {
        name: _padded([each[name] for each in described], max(each[name].shape[1] for each in described))
        for name in ("observation_kinds", "action_kinds", "action_bounds")
    }
    rows["row_groups"] = group_rows(rows["observation_kinds"], rows["action_kinds"])
    return rows


def _joined_inputs(policies: Sequence[LDMPolicy], rows: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The newest transitions of all rows, the images among them, and their positions."""
    found = [policy._context.newest() for policy in policies]
    widths = {"observations": "observation_kinds", "previous_actions": "action_kinds"}
    inputs = {name: _padded([each[name] for each in found], rows[kinds].shape[1], 2) for name, kinds in widths.items()}
    inputs |= {name: torch.cat([each[name] for each in found]) for name in ("previous_rewards", "previous_dones")}
    device = inputs["observations"].device
    positions = [[policy._context.length - 1] for policy in policies for _ in range(len(policy))]
    inputs["position_ids"] = torch.tensor(positions, device=device)
    images, image_rows, first = [], [], 0
    for policy, each in zip(policies, found, strict=True):
        if "images" in each:
            images.append(each["images"])
            image_rows += [first + row for row in policy._context.image_rows]
        first += len(policy)
    if images:
        inputs |= {"images": torch.cat(images), "image_rows": torch.tensor(image_rows, device=device)}
    return inputs


def _padded(parts: Sequence[torch.Tensor], width: int, axis: int = 1) -> torch.Tensor:
    """Rows of tensors, one below another, with zeros added to bring an axis to ``width``."""
    behind = [0] * (2 * (parts[0].dim() - 1 - axis))
    return torch.cat(
        [part if part.shape[axis] == width else F.pad(part, [*behind, 0, width - part.shape[axis]]) for part in parts]
    )
