"""Environments behind isolation, beside others that step many at once: transitions per second, in turns, as ratios.

    python benchmarks/remote_env.py --json figures.json

Contenders: Gymnasium's SyncVectorEnv in this process (``sync``) and AsyncVectorEnv (``async``); this package's ``venv`` and
``docker`` providers, with one worker and, from 16 environments on, with several (``venv_x4``), also by ``send`` and
``recv``, so that no worker waits for another (``sent_x4``); the ``venv`` provider through
the adapter for Stable-Baselines3 (``sb3``); OpenEnv serving the same environment on loopback (``openenv``); ``apart_x4``,
as many processes that exchange nothing: the most that the processors can give; EnvPool's own C++ of the environment in one
process (``envpool``), with as many threads as there are workers. Every one takes the same actions and resets in the step
that ends an episode, and what it observes is compared with ``sync`` before it is timed; EnvPool draws its own numbers.
benchmarks/README.md explains the figures.
"""

import argparse
import contextlib
import os
import statistics
import sys
from pathlib import Path

import gymnasium
import numpy as np
from contenders import (
    SAME_STEP,
    Adapted,
    Apart,
    Contender,
    EnvPool,
    Maker,
    OpenEnv,
    Sent,
    Vector,
    asynchronous,
    quiet,
    sync,
)
from harness import ratio, take_turns

from ldm_hf.env_registry.library.manifest import Manifest
from ldm_hf.env_registry.providers.base import IsolatedProvider
from ldm_hf.env_registry.providers.docker import DockerProvider, engine_problem
from ldm_hf.env_registry.providers.venv import VenvProvider
from ldm_hf.env_registry.remote.vector_env import RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from ldm_hf.experiments.figures import print_table, write_json

HERE = Path(__file__).parent
ENVIRONMENTS = {"cartpole": "CartPole-v1", "halfcheetah": "HalfCheetah-v5", "image": "LdmBenchmark/MovingSquare-v0"}
CONTENDERS = ("sync", "async", "venv", "sent", "docker", "sb3", "openenv", "envpool", "apart")
COMPARED_WITH = ("sync", "async", "openenv", "envpool")
COMPARED_STEPS = 40
SEVERAL_FROM = 16  # environments: fewer are not divided over workers
LIBRARY = Manifest(
    slug="benchmark",
    requirements=(str(HERE / "image_env"), f"gymnasium=={gymnasium.__version__}"),
    python=f"{sys.version_info.major}.{sys.version_info.minor}",
    modules=("ldm_benchmark",),
    packages=("ldm_benchmark", "gymnasium"),
    licence="Apache-2.0",
    homepage="",
)


def makers(name: str, num_envs: int, workers: int, providers: dict[str, IsolatedProvider]) -> dict[str, Maker]:
    """The contenders of one comparison, by name, as functions that make them."""

    def remote(provider: IsolatedProvider, num_workers: int, kind: type[Vector] = Vector) -> Vector:
        settings = RemoteSettings(provider, name)
        return kind(RemoteVectorEnv(settings, num_envs, num_workers=num_workers, autoreset_mode=SAME_STEP))

    several = num_envs >= SEVERAL_FROM and workers > 1
    made: dict[str, Maker] = {"sync": lambda: sync(name, num_envs), "async": lambda: asynchronous(name, num_envs)}
    for label, provider in providers.items():
        made[label] = lambda provider=provider: remote(provider, 1)
        if several:
            made[f"{label}_x{workers}"] = lambda provider=provider: remote(provider, workers)
    if "venv" in providers and several:
        made[f"sent_x{workers}"] = lambda: remote(providers["venv"], workers, Sent)
    if "venv" in providers:
        made["sb3"] = lambda: remote(providers["venv"], 1, Adapted)
    if several:
        made[f"apart_x{workers}"] = lambda: Apart(name, num_envs, workers)
    if not name.startswith("LdmBenchmark"):
        made["envpool"] = lambda: EnvPool(name, num_envs, 1)
        if several:
            made[f"envpool_x{workers}"] = lambda: EnvPool(name, num_envs, workers)
    made["openenv"] = lambda: OpenEnv(name, num_envs, LIBRARY.requirements)
    return made


def same(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Whether observations agree; physics differs in the last bits between builds of its library."""
    return seen.shape == expected.shape and seen.dtype == expected.dtype and np.allclose(seen, expected, 1e-4, 1e-6)


def start(makers: dict[str, Maker], stack: contextlib.ExitStack) -> tuple[dict[str, Contender], dict[str, str]]:
    """Start the contenders and compare what they observe; returns those that run, and why others don't."""
    running: dict[str, Contender] = {}
    problems = {}
    expected = None
    for contender, make in makers.items():
        try:
            with quiet():
                made = make()
            stack.callback(made.close)
            seen = made.observations(COMPARED_STEPS)
        except Exception as error:  # Whatever keeps one from running, the others continue.
            problems[contender] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        expected = seen if expected is None else expected
        if seen is None or same(seen, expected):
            running[contender] = made
        else:
            problems[contender] = "it observes something else than sync"
    return running, problems


def compare(
    label: str, num_envs: int, options: argparse.Namespace, providers: dict[str, IsolatedProvider]
) -> dict[str, float | str]:
    """Measure one environment with one number of copies; returns the figures and prints the table."""
    name = ENVIRONMENTS[label]
    with contextlib.ExitStack() as stack:
        made = makers(name, num_envs, options.workers, providers)
        made = {contender: make for contender, make in made.items() if contender.split("_")[0] in options.contenders}
        running, problems = start(made, stack)
        if "sync" in problems:
            raise SystemExit(f"{name} does not run in this process: {problems['sync']}")
        rates = take_turns({key: one.rate for key, one in running.items()}, options.rounds, options.seconds)
    title = f"{name}, {num_envs} environments: transitions/s; ratios within a round, median (smallest-largest)"
    columns = ["", "transitions/s", *(f"/ {other}" for other in COMPARED_WITH)]
    print_table(title, columns, [row(rates, contender) for contender in rates])
    for contender, problem in problems.items():
        print(f"{contender} does not run here: {problem}")
    figures: dict[str, float | str] = {
        f"{label}_{num_envs}_{key}_problem": problem for key, problem in problems.items()
    }
    return {**figures, **{f"{label}_{num_envs}_{key}": value for key, value in summarise(rates).items()}}


def row(rates: dict[str, list[float]], contender: str) -> list[str]:
    """A contender's row of the table."""
    cells = [contender, f"{statistics.median(rates[contender]):,.0f}"]
    for other in COMPARED_WITH:
        if other in rates and other != contender:
            low, middle, high = ratio(rates, contender, other)
            cells.append(
                f"{middle:.3g} ({low:.2g}-{high:.2g})" if middle < 100 else f"{middle:.0f} ({low:.0f}-{high:.0f})"
            )
        else:
            cells.append("")
    return cells


def summarise(rates: dict[str, list[float]]) -> dict[str, float]:
    """The figures of one comparison: rates, and medians of ratios with their smallest and largest."""
    figures: dict[str, float] = {}
    pairs = [(contender, other) for contender in rates for other in COMPARED_WITH if other in rates]
    for contender, measured in rates.items():
        kind, _, workers = contender.partition("_")
        if kind in ("venv", "sent", "docker", "envpool") and f"apart_{workers}" in rates:
            pairs.append((contender, f"apart_{workers}"))
        beside = contender.replace(kind, "venv")
        if kind in ("docker", "sb3") and beside in rates:
            pairs.append((contender, beside))
        figures[f"{contender}_steps_per_s"] = round(statistics.median(measured), 1)
    for contender, other in pairs:
        if contender != other:
            low, middle, high = ratio(rates, contender, other)
            key = f"{contender}_over_{other.split('_')[0]}"
            figures.update({key: round(middle, 4), f"{key}_min": round(low, 4), f"{key}_max": round(high, 4)})
    return figures


def available(contenders: set[str]) -> dict[str, IsolatedProvider]:
    """The isolated providers that are asked for and that can be used here, installed."""
    providers: dict[str, IsolatedProvider] = {}
    if contenders & {"venv", "sent", "sb3"}:
        providers["venv"] = VenvProvider(LIBRARY)
    if "docker" in contenders:
        problem = engine_problem()
        if problem is None:
            providers["docker"] = DockerProvider(LIBRARY)
        else:
            print(f"docker does not run here: {problem}")
    for provider in providers.values():
        provider.build()
    return providers


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the variants with several"
    )
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object")
    options = parser.parse_args()
    options.contenders = {"sync", *options.contenders}  # what the others are compared with
    sys.path.insert(0, str(HERE / "image_env"))

    providers = available(options.contenders)
    settings = {"cores": len(os.sched_getaffinity(0)), "workers": options.workers, "rounds": options.rounds}
    figures: dict[str, object] = {**settings, "seconds": options.seconds, "load_before": os.getloadavg()[0]}
    for label in options.environments:
        for num_envs in options.num_envs:
            figures.update(compare(label, num_envs, options, providers))
    write_json(options.json, {**figures, "load_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
