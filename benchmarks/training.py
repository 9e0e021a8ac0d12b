"""Transitions a second in training: this model beside Gato's and JAT's layouts on the same backbone, and fed from disk.

    python benchmarks/training.py --preset 32m --context 256 --batch 2 --threads 2
    python benchmarks/training.py --preset 308m --context 2048 --batch 16 --device cuda --bf16 --compile --peak-tflops 989

All contenders train the same Llama backbone on the same control task (17 observations, 6 actions) with AdamW. The FLOPs of a
transition are counted as 6 for each weight that is multiplied (backbone, the slots that are there, the action head of these
slots), plus 6 x layers x hidden size x context for causal attention; what is computed a second time does not count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import _dataset
from harness import print_table, ratio, take_turns, write_json
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaModel

from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.mixture import Mixture, SequenceNumbers

OBSERVATIONS, ACTIONS = 17, 6


class Gato(nn.Module):
    """One token a dimension and a separator (Gato, arXiv 2205.06175): 24 tokens a transition, bins by a shared head."""

    tokens = OBSERVATIONS + 1 + ACTIONS

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.table = nn.Embedding(2 * config.num_bins, config.hidden_size)
        self.backbone = _backbone(config, self.tokens)
        self.head = nn.Linear(config.hidden_size, config.num_bins, bias=False)

    def forward(self, bins: torch.Tensor) -> torch.Tensor:
        """Loss of predicting the action tokens, given bins of shape (B, T, 24)."""
        hidden = self.backbone(inputs_embeds=self.table(bins.flatten(1)), use_cache=False).last_hidden_state
        hidden = hidden.unflatten(1, bins.shape[1:])[:, :, OBSERVATIONS:-1]
        labels = bins[:, :, OBSERVATIONS + 1 :]
        return F.cross_entropy(self.head(hidden).float().flatten(0, 2), labels.flatten())


class Jat(nn.Module):
    """Two tokens a timestep, observation and action, continuous (JAT, arXiv 2402.09844)."""

    tokens = 2

    def __init__(self, config: LDMConfig):
        super().__init__()
        self.observe, self.act = nn.Linear(OBSERVATIONS + 1, config.hidden_size), nn.Linear(ACTIONS, config.hidden_size)
        self.backbone = _backbone(config, self.tokens)
        self.head = nn.Linear(config.hidden_size, ACTIONS)

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Squared error of the actions, given (B, T, 18) and (B, T, 6)."""
        tokens = torch.stack([self.observe(observations), self.act(actions)], 2).flatten(1, 2)
        hidden = self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return F.mse_loss(self.head(hidden[:, ::2]).float(), actions.float())


def _backbone(config: LDMConfig, tokens: int) -> LlamaModel:
    longer = LDMConfig(**{**config.to_dict(), "max_position_embeddings": config.max_position_embeddings * tokens})
    backbone = LlamaModel(longer)
    del backbone.embed_tokens
    return backbone


class Trainer:
    """Optimizer steps of a module on batches from an iterator."""

    def __init__(self, module: nn.Module, batches: Iterator[dict[str, torch.Tensor]], options: argparse.Namespace):
        self._module = module.to(options.device).train()
        self._forward = torch.compile(self._module) if options.compile else self._module
        fused = options.device.startswith("cuda")
        self._optimizer = torch.optim.AdamW(self._module.parameters(), lr=1e-4, fused=fused)
        self._batches, self._options = batches, options

    def measure(self, seconds: float) -> float:
        """Transitions a second; the step before is not counted."""
        self._step()
        steps, start = 0, time.perf_counter()
        while not steps or time.perf_counter() - start < seconds:
            self._step()
            steps += 1
        return steps * self._options.batch * self._options.context / (time.perf_counter() - start)

    def _step(self) -> None:
        device = self._options.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(self._batches).items()}
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self._options.bf16):
            output = self._forward(**batch)
        loss = output if isinstance(output, torch.Tensor) else output.loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if device.startswith("cuda"):
            torch.cuda.synchronize()


def synthetic(make: Callable[[], dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """The same batch for ever."""
    batch = make()
    while True:
        yield batch


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
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="Processes that load the dataset.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--peak-tflops", type=float, help="Of the device, to state the utilisation.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LDMConfig.preset(options.preset, max_position_embeddings=options.context)
    processor = LDMProcessor.for_config(config)
    shape = (options.batch, options.context)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _dataset(Path(folder) / "vector", 100_000, False)
        mixture = Mixture([dataset], processor, context_length=options.context, cache_bytes=2**20)
        whole = dict(processor.collate([mixture[index] for index in range(options.batch)]))
        numbers = torch.randn(*shape, OBSERVATIONS + 1)
        actions = torch.rand(*shape, ACTIONS) * 2 - 1
        bins = torch.randint(0, config.num_bins, (*shape, Gato.tokens))
        model = LDMModel(config)
        trainers = {
            "ldm": Trainer(model, synthetic(lambda: whole), options),
            "ldm_from_disk": Trainer(model, from_disk(mixture, processor, options), options),
            "gato": Trainer(Gato(config), synthetic(lambda: {"bins": bins}), options),
            "jat": Trainer(Jat(config), synthetic(lambda: {"observations": numbers, "actions": actions}), options),
        }
        contenders = {name: trainer.measure for name, trainer in trainers.items()}
        rates = take_turns(contenders, options.rounds, options.seconds)
    figures = {f"{name}_transitions_per_second": float(np.median(found)) for name, found in rates.items()}
    for name, other in [("ldm", "gato"), ("ldm", "jat"), ("ldm_from_disk", "ldm")]:
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
