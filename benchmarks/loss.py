"""Action head and loss, forward and backward: as one function, beside ways that keep or repeat the logits.

    python benchmarks/loss.py --preset 308m --context 2048 --batch 2 --threads 2

The ways: ``fused`` is the model's (`modeling/loss_ldm.py`); ``recomputed`` makes the logits of all slots of a row, forgets
them and makes them again for the backward pass; ``kept`` holds all logits, as a loss over a model's ``logits`` does. All
smooth their targets, and give the same loss. Memory is the most that a process of its own takes for one step above what it
had before; ``products`` is the three matrix products alone, which no way can do without.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from harness import keep_memory, ratio, take_turns
from torch.utils.checkpoint import checkpoint

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig
from ldm_hf.modeling.loss_ldm import _Targets, action_loss
from ldm_hf.modeling.packing_ldm import SlotRows, group_rows
from ldm_hf.modeling.spaces_ldm import CONTINUOUS

WAYS = ("fused", "recomputed", "kept")


class Step:
    """One forward and backward pass of head and loss on random hidden states of a control task."""

    def __init__(self, options: argparse.Namespace):
        torch.manual_seed(0)
        rows, slots = options.batch, options.slots
        self.config = LDMConfig.preset(options.preset)
        shape = (slots, self.config.num_bins, self.config.hidden_size)
        self.head = (torch.randn(shape) / 100).requires_grad_()
        self.hidden = torch.randn(rows, options.context, self.config.hidden_size, requires_grad=True)
        self.labels = torch.rand(rows, options.context, slots) * 2 - 1
        self.kinds = torch.full((rows, slots), CONTINUOUS)
        self.bounds = torch.tensor([-1.0, 1.0]).expand(rows, slots, 2).contiguous()
        self.groups = group_rows(self.kinds, self.kinds)

    def loss(self, way: str) -> torch.Tensor:
        """The loss by one of ``WAYS``."""
        if way == "fused":
            arguments = (self.labels, self.kinds, self.bounds, self.groups, self.config)
            return action_loss(self.head, self.hidden, *arguments)
        repeat = (
            partial(checkpoint, use_reentrant=False)
            if way == "recomputed"
            else lambda function, *given: function(*given)
        )
        return torch.stack([repeat(self._row_loss, row) for row in range(len(self.labels))]).sum()

    def run(self, way: str) -> float:
        """A whole step; returns the loss."""
        self.hidden.grad = self.head.grad = None
        loss = self.loss(way)
        loss.backward()
        return loss.detach().item()

    def products(self) -> None:
        """The matrix products of a step."""
        hidden, head = self.hidden.detach().flatten(0, 1), self.head.detach()
        for weights_KH in head:
            logits = hidden @ weights_KH.T
            _ = logits @ weights_KH, logits.T @ hidden

    def _row_loss(self, row: int) -> torch.Tensor:
        some, (_, _, slots) = slice(row, row + 1), self.groups.split()
        weights = torch.full((1,), 1 / len(self.head))
        targets = _Targets(self.labels[some], self.kinds[some], self.bounds[some], weights, slots, self.config)
        logits_RTAK = torch.einsum("rth,akh->rtak", self.hidden[some], self.head)
        pieces = [SlotRows(slot, CONTINUOUS, torch.zeros(1, dtype=torch.int64)) for slot in range(len(self.head))]
        return torch.stack([targets.loss(logits_RTAK[:, :, piece.slot], piece)[0] for piece in pieces]).sum()


def rate(work: Callable[[], object], seconds: float) -> float:
    """How often a second something is done."""
    work()
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - start)


def peak(way: str, options: argparse.Namespace) -> float:
    """MiB that one step takes in a process of its own."""
    given = [f"--{name}={getattr(options, name)}" for name in ("preset", "context", "batch", "slots", "threads")]
    command = [sys.executable, __file__, *given, "--memory-of", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="32m", choices=LDMConfig.presets())
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--slots", type=int, default=6, help="Action slots of the task.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    step = Step(options)
    if options.memory_of:
        before = psutil.Process().memory_info().rss
        step.run(options.memory_of)
        most = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
        print((most - before) / 2**20)
        return
    keep_memory()
    losses = [step.run(way) for way in WAYS]
    assert np.allclose(losses, losses[0], rtol=1e-5), losses
    contenders = {way: partial(rate, partial(step.run, way)) for way in WAYS}
    contenders["products"] = partial(rate, step.products)
    rates = take_turns(contenders, options.rounds, options.seconds)
    figures = {f"{way}_transitions_per_second": np.median(rates[way]) * options.batch * options.context for way in WAYS}
    for other in ("recomputed", "kept", "products"):
        figures[f"fused_over_{other}"] = ratio(rates, "fused", other)[1]
    figures |= {f"{way}_mib": peak(way, options) for way in WAYS}
    print_table(
        "Action head and loss", ["figure", "value"], [[name, f"{value:,.2f}"] for name, value in figures.items()]
    )
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
