"""Transitions a second in training: this model beside Gato's and JAT's layouts of as many parameters, and fed from disk.

    python benchmarks/training.py --preset 308m --context 256 --batch 2 --threads 4
    python benchmarks/training.py --preset 308m --context 2048 --batch 16 --device cuda --bf16 --compile --peak-tflops 989

All contenders learn the same control task (17 observations, 6 actions) on a Llama backbone of the same depth and width, with
feed-forward layers so wide that all have the same number of parameters; JAT's layout also on GPT-Neo, its authors' choice. A
step is a forward and a backward pass. The optimizer's, one for a global batch of 1024 sequences, is left out: it is the same
for all, and beside the few sequences of a step here it would be most of the time.

The FLOPs of a transition are counted as 6 for each weight that is multiplied (backbone, the slots that are there, the action
head of these slots), plus 6 x layers x hidden size x context for causal attention; what is computed a second time does not
count.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import dataset_of_noise
from harness import keep_memory, ratio, take_turns
from layouts import ACTIONS, OBSERVATIONS, Gato, Jat, gpt_neo, llama, with_parameters
from torch import nn
from torch.utils.data import DataLoader

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.mixture import Mixture, SequenceNumbers

OTHERS: dict[str, Any] = {
    "gato": Gato,
    "jat": partial(Jat, backbone=llama),
    "jat_gpt_neo": partial(Jat, backbone=gpt_neo),
}


class Trainer:
    """Forward and backward passes of a module, which is made again for each measurement: one is in memory at a time."""

    def __init__(
        self, build: Callable[[], nn.Module], batches: Iterator[dict[str, torch.Tensor]], options: argparse.Namespace
    ):
        self._build, self._batches, self._options = build, batches, options

    def measure(self, seconds: float) -> float:
        """Transitions a second; the first step is not counted."""
        module = self._build().to(self._options.device).train()
        if self._options.compile:
            backbone = module.backbone
            for layer in backbone.layers if hasattr(backbone, "layers") else backbone.h:
                layer.compile()
        self._step(module)
        transitions, start = 0, time.perf_counter()
        while not transitions or time.perf_counter() - start < seconds:
            transitions += self._step(module)
        return transitions / (time.perf_counter() - start)

    def _step(self, module: nn.Module) -> int:
        device = self._options.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(self._batches).items()}
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self._options.bf16):
            output = module(**batch)
        loss = output if isinstance(output, torch.Tensor) else output.loss
        loss.backward()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return len(next(iter(batch.values()))) * self._options.context


def from_disk(mixture: Mixture, processor: LDMProcessor, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Batches of a dataset, as training reads them."""
    numbers = SequenceNumbers(range(10**9), options.batch, 1, 0, 1)
    return iter(
        DataLoader(
            mixture,
            batch_sampler=numbers,
            collate_fn=lambda sequences: dict(processor.collate(sequences)),
            num_workers=options.workers,
            pin_memory=options.device.startswith("cuda"),
        )
    )


def flops(config: LDMConfig) -> float:
    """Floating-point operations of a transition, forward and backward, as the module's text counts them."""
    layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    slots = (OBSERVATIONS + ACTIONS + 2) * config.slot_embedding_size * config.hidden_size
    head = ACTIONS * config.num_bins * config.hidden_size
    attention = config.num_hidden_layers * config.hidden_size * config.max_position_embeddings
    return float(6 * (config.num_hidden_layers * layer + slots + head + attention))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="32m", choices=LDMConfig.presets())
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument(
        "--batch", type=int, default=24, help="Sequences of a pass; 24: as many tokens in all contenders."
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="Processes that load the dataset.")
    parser.add_argument(
        "--others", nargs="*", choices=OTHERS, default=list(OTHERS), help="To compare with; default: all."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--peak-tflops", type=float, help="Of the device, to state the utilisation.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LDMConfig.preset(options.preset, max_position_embeddings=options.context)
    processor = LDMProcessor.for_config(config)
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of_noise(Path(folder) / "vector", 100_000, False)
        mixture = Mixture([dataset], processor, context_length=options.context)
        whole = dict(processor.collate([mixture[index] for index in range(options.batch)]))
        model = partial(LDMModel, config)
        parameters = LDMModel(config).num_parameters()
        trainers = {
            "ldm": Trainer(model, itertools.repeat(whole), options),
            "ldm_from_disk": Trainer(model, from_disk(mixture, processor, options), options),
        }
        for name in options.others:
            build = partial(OTHERS[name], config)
            other = partial(with_parameters, build, parameters)
            # About as many tokens a pass as ours: more would not fit.
            sequences = max(1, options.batch // build.func.tokens)
            batch = build.func.batch(sequences, options.context)
            trainers[name] = Trainer(other, itertools.repeat(batch), options)
        contenders = {name: trainer.measure for name, trainer in trainers.items()}
        rates = take_turns(contenders, options.rounds, options.seconds)
    figures = {f"{name}_transitions_per_second": float(np.median(found)) for name, found in rates.items()}
    for name, other in [*(("ldm", other) for other in options.others), ("ldm_from_disk", "ldm")]:
        figures[f"{name}_over_{other}"] = ratio(rates, name, other)[1]
    figures["flops_per_transition"] = flops(config)
    if options.peak_tflops:
        speed = figures["ldm_transitions_per_second"] * figures["flops_per_transition"]
        figures["model_flops_utilisation"] = speed / options.peak_tflops / 1e12
    title = f"{options.preset}, context {options.context}, batch {options.batch}, {options.device}"
    print_table(title, ["figure", "value"], [[name, f"{value:,.3g}"] for name, value in figures.items()])
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
