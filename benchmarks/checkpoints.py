"""What a checkpoint costs training: whole tensors from the main process beside ways of ``torch.distributed.checkpoint``.

    python benchmarks/checkpoints.py --preset 70m --processes 2 --rounds 3

A model is sharded by FSDP2 over processes of this machine, with AdamW's moments, and saved in turns:

- `gathered`: what training does: whole tensors are gathered on the main process and written as safetensors files;
- `sharded`: each process writes its shards (`FileSystemWriter`, whose metadata is a pickle);
- `sharded, asynchronous`: the same by `async_save`: shards are copied, a thread writes them beside training;
- `safetensors shards`: `HuggingFaceStorageWriter`, each process its shards, without pickle;
- `safetensors shards, asynchronous`: the same by `async_save`;
- `safetensors, consolidated`: shards that are then put together to whole tensors.

`blocks` is the time for which training waits, `done` until the files are there; both are ratios to `gathered` of the same
round. `peak` is how much the memory of all processes grew while saving, in multiples of weights and moments.
"""

import argparse
import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import multiprocessing
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.checkpoint import save_checkpoint
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.parallel import distribute

Save = Callable[[Path], Future | None]


def contenders(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Save]:
    """Ways to save into a folder; what they give is done when the files are there."""

    def state() -> dict[str, Any]:
        moments = get_optimizer_state_dict(model, optimizer)["state"]
        tensors = {f"{name}.{key}": value for name, part in moments.items() for key, value in part.items()}
        return {**get_model_state_dict(model), **tensors}

    def gathered(folder: Path) -> None:
        save_checkpoint(accelerator, model, optimizer, LDMProcessor(), folder, 1, 1, {})

    def sharded(folder: Path) -> None:
        dcp.save(state(), checkpoint_id=folder)

    def asynchronous(folder: Path) -> Future:
        return dcp.async_save(state(), checkpoint_id=folder)

    def safetensors(folder: Path, whole: bool = False, later: bool = False) -> Future | None:
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=whole)
        if later:
            return dcp.async_save(state(), storage_writer=writer)
        dcp.save(state(), storage_writer=writer)
        return None

    return {
        "gathered": gathered,
        "sharded": sharded,
        "sharded, asynchronous": asynchronous,
        "safetensors shards": safetensors,
        "safetensors shards, asynchronous": lambda folder: safetensors(folder, later=True),
        "safetensors, consolidated": lambda folder: safetensors(folder, whole=True),
    }


class Peak:
    """The most memory that processes have while a block runs, in bytes."""

    def __init__(self, processes: list[psutil.Process]):
        self._processes, self._ended, self.bytes = processes, threading.Event(), 0

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, self._now())

    def _now(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)

    def __enter__(self) -> "Peak":
        self._before = self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.bytes = max(0, self.bytes - self._before)


def measure(rank: int, port: int, options: argparse.Namespace) -> None:
    """One process: shard the model, save in turns; the first prints."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.processes, "MASTER_PORT": port}
    os.environ |= {**{name: str(value) for name, value in variables.items()}, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": str(options.processes)}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    config = TrainingConfig(data="unused", output_dir=str(options.folder), sharding="fsdp2")
    model = distribute(accelerator, LDMModel(LDMConfig.preset(options.preset)), config)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = 12 * sum(parameter.numel() for parameter in model.parameters())
    everyone: list[Any] = [None] * options.processes
    dist.all_gather_object(everyone, os.getpid())
    processes = [psutil.Process(pid) for pid in everyone]
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds + 1):
        for name, save in contenders(accelerator, model, optimizer).items():
            folder = options.folder / f"{name}-{number}"
            dist.barrier()
            start = time.perf_counter()
            with Peak(processes if rank == 0 else []) as peak:
                writing = save(folder)
                blocked = time.perf_counter() - start
                if writing is not None:
                    writing.result()
                dist.barrier()
                done = time.perf_counter() - start
            figures = {"blocks": blocked, "done": done, "peak": peak.bytes / held}
            if number:
                for key, value in figures.items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
            dist.barrier()
            if rank == 0:
                shutil.rmtree(folder)
    if rank == 0:
        show(found, held, options)
    dist.destroy_process_group()


def show(found: dict[str, dict[str, list[float]]], held: int, options: argparse.Namespace) -> None:
    """Print medians of ratios within a round."""
    rows, figures = [], {}
    for name, values in found.items():
        ratios = {
            key: statistics.median(a / b for a, b in zip(values[key], found["gathered"][key], strict=True))
            for key in ("blocks", "done")
        }
        ratios["peak"] = statistics.median(values["peak"])
        figures |= {f"{name}: {key}": value for key, value in ratios.items()}
        seconds = statistics.median(values["done"])
        rows.append([name, *[f"{value:.2f}" for value in ratios.values()], f"{seconds:.1f}"])
    title = f"{options.preset}, {held / 1e9:.1f} GB of weights and moments, {options.processes} processes"
    print_table(title, ["way", "blocks", "done", "peak", "seconds, done"], rows)
    write_json(options.json, figures)


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="70m", choices=LDMConfig.presets())
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options.folder = Path(folder)
        multiprocessing.spawn(measure, (port, options), nprocs=options.processes)


if __name__ == "__main__":
    main()
