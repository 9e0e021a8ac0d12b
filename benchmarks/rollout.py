"""Steps a second of a rollout, beside rollouts without a cache, with one that grows, and as one compiled graph.

Every contender acts in a 17-dimensional control task with 6 actions, at the same context length N:

- ``batch_1``, ``batch_32``: ``LDMPolicy``. Steps from half a context to a full one, with what it costs to forget the older
  half, so that is in the mean; the context is 3/4 N long on average. ``slowest`` is the longest step beside the median one.
- ``batch_1_recomputed``: what somebody without a cache does: the model reads the newest N transitions at every step.
- ``batch_1_growing``: ``LDMPolicy`` with transformers' ``DynamicCache``, which copies all keys and values at every step.
- ``batch_1_compiled``: ``LDMPolicy(..., compile=True)``.

``--device cuda --bf16 --peak-bandwidth 4800`` (GB/s) also says how long the step of one environment takes, as a multiple
of the time to read the weights that it uses once.

python benchmarks/rollout.py --preset 308m --threads 4 --json figures.json
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from harness import ratio, take_turns
from transformers import DynamicCache

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy, LDMProcessor
from ldm_hf.modeling.steps_ldm import decode

OBSERVATIONS, ACTIONS = 17, 6


class Control:
    """The spaces of the task."""

    observation_space = spaces.Box(-10, 10, (OBSERVATIONS,), np.float32)
    action_space = spaces.Box(-1, 1, (ACTIONS,), np.float32)


class Growing(LDMPolicy):
    """A policy whose cache is copied at every step."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._cache = DynamicCache(config=self.model.config)

    num_reads = 0

    @torch.inference_mode()
    def _forget(self) -> None:
        self._context.forget_older_half()
        self._cache = DynamicCache(config=self.model.config)
        decode(self.model, self._context.inputs(0, self._context.length), self._every_row, self._cache)


def rollout(policy: LDMPolicy, slowest: list[float]) -> Callable[[float], float]:
    """A function that measures environment steps per second, from one full context to the next.

    It appends to ``slowest`` the time of the longest step, in those of the median one.
    """
    batch, steps = len(policy), policy.context_length // 2
    observations = np.random.default_rng(0).standard_normal((batch, OBSERVATIONS)).astype(np.float32)
    outcome = (np.zeros(batch), np.zeros(batch, bool), np.zeros(batch, bool))
    policy.act(observations)
    policy._context.length = policy.context_length  # of any transitions; as every round leaves it

    def measure(_: float) -> float:
        ends = [time.perf_counter()]
        for _ in range(steps):
            policy.act(observations, *outcome)
            ends.append(time.perf_counter())
        times = np.diff(ends)
        slowest.append(float(times.max() / np.median(times)))
        return batch * steps / times.sum()

    return measure


def recomputing(model: LDMModel, context: int) -> Callable[[float], float]:
    """The same of a model that reads a whole context at every step."""
    processor = LDMProcessor.for_config(model.config)
    generator = np.random.default_rng(0)
    batch = processor(
        generator.standard_normal((context, OBSERVATIONS)),
        generator.uniform(-1, 1, (context, ACTIONS)),
        np.zeros(context),
        np.zeros(context, bool),
        np.zeros(context, bool),
        Control.observation_space,
        Control.action_space,
    ).to(model.device)
    layout = processor.action_layout(Control.action_space)

    @torch.inference_mode()
    def measure(_: float) -> float:
        start = time.perf_counter()
        for _ in range(3):
            bins = model(**batch, logits_to_keep=1).logits[0, 0].argmax(-1)
            processor.decode_action(layout, bins.cpu().numpy())
        return 3 / (time.perf_counter() - start)

    return measure


def bytes_of_a_step(model: LDMModel) -> int:
    """Of the weights that a step reads: the backbone, and of embedding and head what belongs to the task's slots."""
    width, hidden = model.config.slot_embedding_size, model.config.hidden_size
    used = sum(parameter.numel() for parameter in model.backbone.parameters())
    used += (OBSERVATIONS + ACTIONS + 2) * width * hidden + ACTIONS * model.config.num_bins * hidden
    return used * model.dtype.itemsize


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="308m", choices=LDMConfig.presets())
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="weights and cache in bfloat16")
    parser.add_argument("--peak-bandwidth", type=float, help="of the device's memory, GB/s")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = LDMConfig.preset(arguments.preset, max_position_embeddings=arguments.context)
    model = LDMModel(config).eval().to(arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32)
    processor = LDMProcessor.for_config(config)
    policies = {
        "batch_1": LDMPolicy(model, processor, [Control()]),
        "batch_32": LDMPolicy(model, processor, [Control()] * 32),
        "batch_1_growing": Growing(model, processor, [Control()]),
        "batch_1_compiled": LDMPolicy(model, processor, [Control()], compile=True),
    }
    slowest: dict[str, list[float]] = {name: [] for name in policies}
    contenders = {name: rollout(policy, slowest[name]) for name, policy in policies.items()}
    contenders["batch_1_recomputed"] = recomputing(model, arguments.context)
    rates = take_turns(contenders, arguments.rounds, 1.0)
    figures = {f"{name}_steps_per_second": float(np.median(found)) for name, found in rates.items()}
    figures |= {f"{name}_slowest": float(np.median(found[1:])) for name, found in slowest.items()}
    for name, other in [
        ("batch_1", "batch_1_recomputed"),
        ("batch_32", "batch_1"),
        ("batch_1", "batch_1_growing"),
        ("batch_1_compiled", "batch_1"),
    ]:
        figures[f"{name}_over_{other}"] = ratio(rates, name, other)[1]
    if arguments.peak_bandwidth:
        once = bytes_of_a_step(model) / (arguments.peak_bandwidth * 1e9)
        for name in ("batch_1", "batch_1_compiled"):
            figures[f"{name}_step_over_reading_weights_once"] = 1 / (figures[f"{name}_steps_per_second"] * once)
    where = f"{arguments.threads} threads" if arguments.device == "cpu" else arguments.device
    title = f"{arguments.preset}, {str(model.dtype).removeprefix('torch.')}, context {arguments.context}, {where}"
    print_table(title, ["figure", "value"], [[name, f"{value:,.2f}"] for name, value in figures.items()])
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
