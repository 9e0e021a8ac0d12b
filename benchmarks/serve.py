"""A thousand environments that act by one server, beside the same environments in one process.

A server (``ldm serve``, a process of its own) and client processes share this machine. Environments are of three kinds, and
replay random observations of their spaces, so that what is measured is the acting.

- ``in process``: ``LDMPolicy``, one for the environments of each client, in this process and without a server.
- ``batched``: a client's environments are one session.
- ``single``: every environment is a session of its own; threads of the clients act in theirs, one after another.
- ``a client killed``: as ``batched``; half-way a client dies by SIGKILL. No other request fails, and the environments of the
  server are free again after the session timeout, or this does not end.

python benchmarks/serve.py --environments 1000 --clients 8 --json figures.json
"""

import argparse
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from harness import ratio

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.serving.client import Client

MODEL = Path(__file__).parents[1] / "pretrained/ldm-mini"
TIMEOUT = 60  # seconds after which the server drops sessions without requests, where a client is killed


class Environment:
    """Random observations of a space, made once."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        observation_space.seed(0)
        self.seen = [observation_space.sample() for _ in range(16)]


KINDS = [
    (spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)),
    (spaces.Box(-1, 1, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32)),
    (spaces.Discrete(48), spaces.Discrete(4)),
]
"""Sizes of CartPole, HalfCheetah and CliffWalking."""


def environments(number: int) -> list[Environment]:
    """That many, of all kinds in turn."""
    made = [Environment(*kind) for kind in KINDS]
    return [made[index % len(made)] for index in range(number)]


def play(policy: Any, envs: Sequence[Environment], until: float, latencies: list[float]) -> int:
    """Act until a point in time; returns the number of actions."""
    number, outcome = 0, ()
    while time.time() < until:
        seen = [env.seen[number % len(env.seen)] for env in envs]
        started = time.perf_counter()
        policy.act(seen, *outcome)
        latencies.append(time.perf_counter() - started)
        outcome = np.zeros(len(envs)), np.zeros(len(envs), bool), np.zeros(len(envs), bool)
        number += 1
    return number * len(envs)


def client(address: str, number: int, threads: int, start: Any, seconds: float, results: Any) -> None:
    """A client process: sessions for ``number`` environments, one in each thread, or one of all of them without threads."""
    parts = [environments(number)] if not threads else [[env] for env in environments(number)]
    # A connection per session would be a thousand: a thread has one, and its sessions act in turn.
    connections = [Client(address, timeout=600) for _ in range(max(threads, 1))]
    policies = [connections[index % len(connections)].policy(part) for index, part in enumerate(parts)]
    start.wait()
    until, latencies, counts = time.time() + seconds, [], []

    def act(which: int) -> None:
        mine = list(zip(policies, parts, strict=True))[which :: len(connections)]
        if len(mine) == 1:
            counts.append(play(*mine[0], until, latencies))
        else:
            counts.append(play_in_turn(mine, until, latencies))

    workers = [threading.Thread(target=act, args=(which,)) for which in range(len(connections))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    results.put((sum(counts), latencies))


def play_in_turn(mine: list[tuple[Any, list[Environment]]], until: float, latencies: list[float]) -> int:
    """Act in several sessions one after another."""
    count, first = 0, True
    while time.time() < until:
        for policy, (env,) in mine:
            started = time.perf_counter()
            policy.act([env.seen[count % len(env.seen)]], *(() if first else ([0.0], [False], [False])))
            latencies.append(time.perf_counter() - started)
            count += 1
            if time.time() >= until and not first:
                break
        first = False
    return count


class Server:
    """``ldm serve`` in a process of its own."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "ldm_hf", "serve", str(MODEL), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.search(r"http://\S+:\d+", said)
        assert found, said
        self.address = found[0]

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(total: int, clients: int, threads: int, seconds: float, victim: bool = False) -> dict[str, float]:
    """Throughput, latency and batches of a server under all clients at once; with ``victim`` one is killed half-way."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(clients + 1), context.Queue()
    with Server("--session-timeout", str(TIMEOUT if victim else 3600), "--max-environments", str(total)) as server:
        sizes = [total // clients + (index < total % clients) for index in range(clients)]
        processes = [
            context.Process(target=client, args=(server.address, size, threads, start, seconds, results))
            for size in sizes
        ]
        for process in processes:
            process.start()
        start.wait()
        with Client(server.address, timeout=600) as watcher:
            if victim:
                time.sleep(seconds / 2)
                os.kill(processes[0].pid, signal.SIGKILL)
            found = [results.get() for _ in range(clients - victim)]
            metrics = watcher.metrics()
            for process in processes:
                process.join()
            figures = _figures(found, seconds, metrics)
            if victim:
                while watcher.metrics()["sessions"]["environments"]:
                    time.sleep(0.5)  # those of the clients that ended are dropped by the same timeout
                figures["failed_answers"] = sum(
                    count for status, count in watcher.metrics()["answers"].items() if status >= "400"
                )
            return figures


def _figures(found: list[tuple[int, list[float]]], seconds: float, metrics: dict[str, Any]) -> dict[str, float]:
    latencies = np.concatenate([latencies for _, latencies in found]) * 1000
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "actions_per_second": sum(count for count, _ in found) / seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "mean_batch": metrics["batch_size"]["mean"],
        "largest_batch": metrics["batch_size"]["largest"],
    }


def in_process(total: int, seconds: float, rows: int) -> dict[str, float]:
    """The same environments and the same model in this process, as policies of ``rows`` environments."""
    from ldm_hf.hub.pretrained import load_pretrained
    from ldm_hf.modeling.steps_ldm import packed

    model, processor = load_pretrained(MODEL)
    acting, envs = packed(model.eval()), environments(total)
    parts = [envs[first : first + rows] for first in range(0, total, rows)]
    policies = [acting.policy(processor, part) for part in parts]
    outcomes: list[tuple] = [()] * len(parts)
    count, latencies, started, number = 0, [], time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for index, (policy, part) in enumerate(zip(policies, parts, strict=True)):
            begun = time.perf_counter()
            policy.act([env.seen[number % 16] for env in part], *outcomes[index])
            latencies.append(time.perf_counter() - begun)
            outcomes[index] = np.zeros(len(part)), np.zeros(len(part), bool), np.zeros(len(part), bool)
            count += len(part)
        number += 1
    took = time.perf_counter() - started
    p50, p99 = np.percentile(np.array(latencies) * 1000, (50, 99))
    return {"actions_per_second": count / took, "p50_ms": float(p50), "p99_ms": float(p99)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8, help="processes")
    parser.add_argument("--threads", type=int, default=16, help="of a client process, for sessions of one environment")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    total, clients, seconds = arguments.environments, arguments.clients, arguments.seconds
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "in process": lambda: in_process(total, seconds, total // clients),
        "batched": lambda: load(total, clients, 0, seconds),
        "single": lambda: load(total, clients, arguments.threads, seconds),
        "a client killed": lambda: load(total, clients, 0, seconds, victim=True),
    }
    rounds = [{name: measure() for name, measure in contenders.items()} for _ in range(arguments.rounds)]
    names = ["actions_per_second", "p50_ms", "p99_ms", "mean_batch", "largest_batch", "failed_answers"]
    figures, rows = {}, []
    for contender in contenders:
        found = {name: [one[contender][name] for one in rounds] for name in names if name in rounds[0][contender]}
        rows.append([contender, *(f"{np.median(found[name]):,.1f}" if name in found else "" for name in names)])
        figures |= {f"{contender}: {name}": float(np.median(values)) for name, values in found.items()}
    print_table(f"{total} environments, {clients} clients, medians of {len(rounds)} rounds", ["", *names], rows)
    rates = {name: [one[name]["actions_per_second"] for one in rounds] for name in contenders}
    for name in ("batched", "single"):
        lowest, figures[f"{name}_over_in_process"], highest = ratio(rates, name, "in process")
        print(f"{name} / in process: {figures[f'{name}_over_in_process']:.2f} ({lowest:.2f}-{highest:.2f})")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
