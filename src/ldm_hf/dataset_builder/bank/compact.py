"""Policies that take little room: only the weights that act, rounded to 16 bits where the policy then acts the same."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm_hf.dataset_builder.bank.policies import NetworkPolicy, Policy
from ldm_hf.dataset_builder.bank.rollout_request import NOISE
from ldm_hf.dataset_builder.bank.rollouts import Noise
from ldm_hf.env_registry.experts import bounds
from ldm_hf.env_registry.registry import spec
from ldm_hf.env_registry.worker.space_tree import leaves, split

SAME = 1e-3
"""Share of its range by which a real number of an action may differ between policies that act the same: about the width of
one of the 1024 bins in which a model gives actions (paper section 4.3). Also the share of observations at which an action of
whole numbers may be another one, where two were about as good."""

_STEPS = 256
_SEED = 1_800_000_000  # far from the seeds of data, of scoring and of evaluations


def save_compact(policy: Policy, environment: str, seed: int, folder: Path) -> dict[str, Any]:
    """Write a policy's folder.

    Args:
        policy: of any kind.
        environment: id of its environment, in which it is compared with the rounded one.
        seed: of the run that made it.
        folder: where to.

    Returns:
        ``dtype``, ``difference`` and ``observations`` as of ``bank.Entry.weights``; nothing of a function.

    Raises:
        EnvironmentFailure: the environment broke.
    """
    if not isinstance(policy, NetworkPolicy):
        policy.save(folder)
        return {}
    full = policy.reference.acting_weights()
    half = policy.reference.acting_weights(torch.float16)
    found: dict[str, Any] = {"dtype": "float32"}
    if all(torch.isfinite(value).all() for value in half.values()):  # what 16 bits cannot hold became infinite
        difference, observations = _difference(policy, policy.rounded(half), environment, seed)
        found = {"dtype": "float16" if difference <= SAME else "float32", "difference": difference}
        found["observations"] = observations
    policy.reference.save(folder, half if found["dtype"] == "float16" else full)
    return found


def _difference(policy: NetworkPolicy, other: NetworkPolicy, environment: str, seed: int) -> tuple[float, int]:
    """How far the actions of two policies are apart at most, on observations that the first sees, with noise and without.

    Of real numbers, it is the largest difference, as a share of the range; of whole numbers, the share of other actions.
    """
    described = spec(environment)
    noise = Noise(NOISE, described.action_space, seed)
    parts = [leaf for _, leaf in leaves(described.action_space)]
    largest, others_taken, seen = 0.0, 0, 0
    with contextlib.closing(policy.environments(environment, len(NOISE))) as envs:
        observations, _ = envs.reset(seed=[_SEED + 1000 * seed + index for index in range(len(NOISE))])  # type: ignore[arg-type]
        for _ in range(_STEPS):
            actions, others = policy.act(envs, observations), other.act(envs, observations)
            pairs = zip(
                parts, split(described.action_space, actions), split(described.action_space, others), strict=True
            )
            apart = [_apart(*pair) for pair in pairs]
            largest = max([largest, *(value.max() for value in apart if value.dtype.kind == "f")])
            others_taken += int(np.any([value for value in apart if value.dtype.kind == "b"], axis=0).sum())
            seen += len(NOISE)
            observations, *_ = envs.step(noise.add(actions))
    return max(float(largest), others_taken / seen), seen


def _apart(leaf: dict[str, Any], values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each environment, whether whole numbers differ, or shares of the range by which real numbers do."""
    if leaf["type"] != "Box" or values.dtype.kind != "f":
        return (values != others).reshape(len(values), -1).any(1)
    low, high = bounds(leaf)
    reach = np.subtract(high, low, dtype=np.float64)
    return np.abs(values - others) / np.where(np.isfinite(reach), reach, 1.0)
