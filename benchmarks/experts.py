"""Tokens a second through a block's feed-forward layers with N experts, forward and backward, beside other ways to add them.

    python benchmarks/experts.py --preset 70m --experts 8 --threads 4
    python benchmarks/experts.py --preset 308m --experts 8 --tokens 16384 --device cuda --bf16

- `wide`: what the model does: all experts as one layer N times as wide, weighted before the projection down;
- `loop`: one expert after another;
- `stacked`: weights stacked over experts, batched matrix products;
- `dense`: a plain feed-forward layer of as many multiplications (N + 1 times as wide), which has no router: what the FLOPs
  themselves cost.

All but `dense` hold the same weights, and it is checked that they say the same.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import keep_memory, ratio, take_turns
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig
from ldm_hf.modeling.experts_ldm import LDMFeedForward


class Loop(nn.Module):
    """Each expert a layer of its own."""

    def __init__(self, config: LDMConfig, wide: LDMFeedForward):
        super().__init__()
        self.base = LlamaMLP(config)
        self.router = wide.experts.router
        self.experts = nn.ModuleList(LlamaMLP(config) for _ in range(config.num_experts))
        own, number = wide.experts, config.num_experts
        with torch.no_grad():
            for name in ("gate_proj", "up_proj", "down_proj"):
                getattr(self.base, name).weight.copy_(getattr(wide, name).weight)
                parts = getattr(own, name).weight.chunk(number, dim=int(name == "down_proj"))
                for expert, part in zip(self.experts, parts, strict=True):
                    getattr(expert, name).weight.copy_(part)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weights = self.router(inputs)
        result = self.base(inputs)
        for index, expert in enumerate(self.experts):
            result = result + weights[..., index, None] * expert(inputs)
        return result


class Stacked(nn.Module):
    """The experts' weights in tensors of one more dimension."""

    def __init__(self, loop: Loop):
        super().__init__()
        self.base, self.router, self.act = loop.base, loop.router, loop.base.act_fn
        for name in ("gate_proj", "up_proj", "down_proj"):
            stack = torch.stack([getattr(expert, name).weight.detach().T for expert in loop.experts])
            setattr(self, name, nn.Parameter(stack))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        each = inputs.expand(len(self.gate_proj), *inputs.shape)
        inner = self.act(torch.bmm(each, self.gate_proj)) * torch.bmm(each, self.up_proj)
        outputs = torch.bmm(inner, self.down_proj)
        return self.base(inputs) + (outputs * self.router(inputs).T.unsqueeze(-1)).sum(0)


def speed(module: nn.Module, inputs: torch.Tensor, bf16: bool) -> Callable[[float], float]:
    """A measurement: tokens per second of forward and backward passes."""

    def step() -> None:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            result = module(inputs)
        result.float().square().mean().backward()
        if inputs.device.type == "cuda":
            torch.cuda.synchronize()

    def measure(seconds: float) -> float:
        step()
        steps, start = 0, time.perf_counter()
        while not steps or time.perf_counter() - start < seconds:
            step()
            steps += 1
        return steps * len(inputs) / (time.perf_counter() - start)

    return measure


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="70m", choices=LDMConfig.presets())
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LDMConfig.preset(options.preset, num_experts=options.experts)
    size = (1 + config.num_experts) * config.intermediate_size
    wide = LDMFeedForward(config)
    loop = Loop(config, wide)
    modules: dict[str, nn.Module] = {"wide": wide, "loop": loop, "stacked": Stacked(loop)}
    inputs = torch.randn(options.tokens, config.hidden_size)
    with torch.no_grad():
        for name, module in modules.items():
            torch.testing.assert_close(module(inputs[:64]), wide(inputs[:64]), atol=1e-4, rtol=1e-4, msg=name)
    modules["dense"] = LlamaMLP(LDMConfig.preset(options.preset, intermediate_size=size))
    on_device = inputs.to(options.device).requires_grad_()
    contenders = {name: speed(each.to(options.device), on_device, options.bf16) for name, each in modules.items()}
    rates = take_turns(contenders, options.rounds, options.seconds)
    figures = {f"{name}_tokens_per_second": float(np.median(found)) for name, found in rates.items()}
    for other in ("loop", "stacked", "dense"):
        figures[f"wide_over_{other}"] = ratio(rates, "wide", other)[1]
    title = f"{options.preset}, {options.experts} experts, {options.tokens} tokens, {options.device}"
    print_table(title, ["figure", "value"], [[name, f"{value:,.3g}"] for name, value in figures.items()])
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
