"""A training step of a batch with short rows: packed, beside padded, beside as many transitions in full rows.

    python benchmarks/packing.py --preset 32m --lengths 512 350 250 150 150 100

``full`` is what packing could reach at best: the same transitions without anything left over and without block masks.
"""

import argparse
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from harness import keep_memory, ratio, take_turns
from loss import rate

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.modeling.processing_ldm import TokenSequence
from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.training.batches import Inputs, model_inputs


def sequence(processor: LDMProcessor, length: int) -> TokenSequence:
    """Random transitions of a control task, labelled."""
    observed = processor.observation_layout(gymnasium.spaces.Box(-1, 1, (17,)))
    acted = processor.action_layout(gymnasium.spaces.Box(-1, 1, (6,)))
    generator, never = np.random.default_rng(length), np.zeros(length, bool)
    values = generator.uniform(-1, 1, (length, 17)).astype(np.float32)
    actions = generator.uniform(-1, 1, (length, 6)).astype(np.float32)
    rewards = np.zeros(length, np.float32)
    return processor.align(Transitions(values, None, actions, rewards, never, never, actions), observed, acted)


def step(model: LDMModel, inputs: Inputs) -> float:
    """A forward and a backward pass; returns the loss."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="32m", choices=LDMConfig.presets())
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 350, 250, 150, 150, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    torch.manual_seed(0)
    model = LDMModel(LDMConfig.preset(options.preset))
    processor = LDMProcessor.for_config(model.config)
    packed = model_inputs(processor, [sequence(processor, length) for length in options.lengths])
    rows, rest = divmod(sum(options.lengths), max(options.lengths))
    full = model_inputs(
        processor, [sequence(processor, max(options.lengths))] * rows + [sequence(processor, rest)][: rest > 0]
    )
    batches = {"packed": packed, "padded": {**packed, "packing": None}, "full": full}
    losses = [step(model, batches[name]) for name in ("packed", "padded")]
    assert np.allclose(*losses, rtol=1e-5), losses
    contenders = {name: partial(rate, partial(step, model, inputs)) for name, inputs in batches.items()}
    rates = take_turns(contenders, options.rounds, options.seconds)
    transitions = sum(options.lengths)
    figures = {f"{name}_transitions_per_second": np.median(rates[name]) * transitions for name in batches}
    figures["packed_over_padded"] = ratio(rates, "packed", "padded")[1]
    figures["packed_over_full"] = ratio(rates, "packed", "full")[1]
    figures["share_of_padding"] = 1 - transitions / max(options.lengths) / len(options.lengths)
    print_table("Packing", ["figure", "value"], [[name, f"{value:,.3f}"] for name, value in figures.items()])
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
