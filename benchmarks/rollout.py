"""Steps a second of a rollout, beside reading the whole context again at every step, and beside a cache that grows.

python benchmarks/rollout.py --preset 308m --context 1024 --threads 2 --json figures.json
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from harness import print_table, ratio, take_turns, write_json
from transformers import DynamicCache

from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy, LDMProcessor


class Control:
    """The spaces of a 17-dimensional control task with 6 actions."""

    observation_space = spaces.Box(-10, 10, (17,), np.float32)
    action_space = spaces.Box(-1, 1, (6,), np.float32)


class Recomputing(LDMPolicy):
    """A policy without a cache."""

    def _forward(self, position: int) -> torch.Tensor:
        self._cache.reset()
        return super()._forward(position)


class Growing(LDMPolicy):
    """A policy whose cache is copied at every step, as in transformers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._cache = DynamicCache(config=self.model.config)


def rollout(model: LDMModel, kind: type[LDMPolicy], batch: int, context: int, short: bool) -> Callable[[float], float]:
    """A function that measures environment steps a second, on average over a context's life.

    A policy's context is between half full and full. A long measurement goes through all of that with the rebuild; a short
    one, for what is slow, takes a few steps in the middle.
    """
    processor = LDMProcessor.for_config(model.config)
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((batch, 17)).astype(np.float32)

    def measure(_: float) -> float:
        policy = kind(model, processor, [Control()] * batch, context_length=context)
        policy.act(observations)
        for tensor in policy._history.values():  # a context that is three quarters full, or full, read at once
            tensor[:, 1:] = tensor[:, :1]
        policy._length = context * 3 // 4 if short else context
        policy._cache.reset()
        outcome = (np.zeros(batch), np.zeros(batch, bool), np.zeros(batch, bool))
        if short:
            policy.act(observations, *outcome)
        steps = 3 if short else context // 2
        start = time.perf_counter()
        for _ in range(steps):
            policy.act(observations, *outcome)
        return batch * steps / (time.perf_counter() - start)

    return measure


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="308m", choices=LDMConfig.presets())
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    overrides = {"max_position_embeddings": arguments.context}
    model = LDMModel(LDMConfig.preset(arguments.preset, **overrides)).eval()
    contenders = {
        "batch_1": rollout(model, LDMPolicy, 1, arguments.context, short=False),
        "batch_32": rollout(model, LDMPolicy, 32, arguments.context, short=False),
        "batch_1_growing_cache": rollout(model, Growing, 1, arguments.context, short=False),
        "batch_1_recomputed": rollout(model, Recomputing, 1, arguments.context, short=True),
    }
    rates = take_turns(contenders, arguments.rounds, 1.0)
    figures = {f"{name}_steps_per_second": float(np.median(found)) for name, found in rates.items()}
    for name, other in [
        ("batch_1", "batch_1_recomputed"),
        ("batch_32", "batch_1"),
        ("batch_1", "batch_1_growing_cache"),
    ]:
        figures[f"{name}_over_{other}"] = ratio(rates, name, other)[1]
    title = f"{arguments.preset}, context {arguments.context}, {arguments.threads} threads"
    print_table(title, ["figure", "value"], [[name, f"{value:,.2f}"] for name, value in figures.items()])
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
