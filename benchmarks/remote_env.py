"""Environments behind isolation, beside others that step many at once: transitions a second, in turns, as ratios.

    python benchmarks/remote_env.py --json figures.json

Contenders: Gymnasium's SyncVectorEnv in this process and AsyncVectorEnv; this package's venv and docker providers; OpenEnv
serving the same environment on loopback. Every one takes the same actions and resets in the step that ends an episode, and
what it observes is compared with the others before it is timed.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import gymnasium
import numpy as np
from harness import print_table, ratio, take_turns, write_json

from ldm_hf.env_registry.client import RemoteVectorEnv
from ldm_hf.env_registry.container import DockerProvider, engine_problem
from ldm_hf.env_registry.manifest import Manifest, home
from ldm_hf.env_registry.remote import RemoteSettings
from ldm_hf.env_registry.venv import VenvProvider

HERE = Path(__file__).parent
ENVIRONMENTS = {"cartpole": "CartPole-v1", "halfcheetah": "HalfCheetah-v5", "image": "LdmBenchmark/MovingSquare-v0"}
LIBRARY = Manifest(
    slug="benchmark",
    requirements=(str(HERE / "image_env"), f"gymnasium=={gymnasium.__version__}"),
    python=f"{sys.version_info.major}.{sys.version_info.minor}",
    modules=("ldm_benchmark",),
    packages=("ldm_benchmark", "gymnasium"),
    licence="Apache-2.0",
    homepage="",
)
COMPARED_STEPS = 50


class Vector:
    """A Gymnasium vector environment as a contender."""

    def __init__(self, envs):
        self.envs = envs
        envs.single_action_space.seed(0)
        self.actions = [np.array([envs.single_action_space.sample() for _ in range(envs.num_envs)]) for _ in range(64)]
        envs.reset(seed=0)

    def rate(self, seconds):
        """Transitions a second."""
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self.envs.step(self.actions[count % len(self.actions)])
            count += 1
        return count * self.envs.num_envs / (time.perf_counter() - start)

    def sums(self, steps):
        """Sum of the observations of each of the first steps."""
        self.envs.reset(seed=0)
        return [float(self.envs.step(self.actions[step])[0].astype(np.float64).sum()) for step in range(steps)]

    def close(self):
        """End it."""
        self.envs.close()


class OpenEnv:
    """OpenEnv's server and client, each in a process of an environment of its own."""

    def __init__(self, name, num_envs):
        python = self.installed()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [python, HERE / "peers" / "openenv_peer.py"]
        arguments = [name, str(port), str(num_envs)]
        self.server = subprocess.Popen([*command, "serve", *arguments], stderr=subprocess.DEVNULL)
        self.wait_for(port)
        self.client = subprocess.Popen(
            [*command, "drive", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if not self.client.stdout.readline():
            raise RuntimeError("OpenEnv's client did not start")

    @staticmethod
    def installed():
        """The interpreter of OpenEnv's environment, which is made if it is not there."""
        folder = home() / "benchmarks" / "openenv"
        python = folder / "bin" / "python"
        if not (folder / "done").exists():
            venv.create(folder, clear=True, with_pip=True)
            requirements = ["-r", HERE / "peers" / "requirements-openenv.txt", *LIBRARY.requirements]
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
            (folder / "done").touch()
        return python

    def wait_for(self, port):
        """Until the server listens."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError("OpenEnv's server did not start")

    def ask(self, **request):
        """Have the client do something."""
        self.client.stdin.write(json.dumps(request) + "\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())

    def rate(self, seconds):
        """Transitions a second."""
        return self.ask(seconds=seconds)["rate"]

    def sums(self, steps):
        """Sum of the observations of each of the first steps."""
        return self.ask(observations=steps)["sums"]

    def close(self):
        """End both processes."""
        for process in (self.client, self.server):
            process.kill()
            process.wait()


def contenders(name, num_envs, workers, providers):
    """The contenders of one comparison, by name, as functions that make them."""
    same_step = gymnasium.vector.AutoresetMode.SAME_STEP

    def make_one():
        import ldm_benchmark  # noqa: F401 - registers it, in the processes of AsyncVectorEnv too

        return gymnasium.make(name, disable_env_checker=True)

    def remote(provider, num_workers):
        return Vector(RemoteVectorEnv(RemoteSettings(provider, name), num_envs, num_workers=num_workers))

    made = {
        "sync": lambda: Vector(gymnasium.vector.SyncVectorEnv([make_one] * num_envs, autoreset_mode=same_step)),
        "async": lambda: Vector(gymnasium.vector.AsyncVectorEnv([make_one] * num_envs, autoreset_mode=same_step)),
        "openenv": lambda: OpenEnv(name, num_envs),
    }
    for label, provider in providers.items():
        made[label] = lambda provider=provider: remote(provider, 1)
        if num_envs >= 16 and workers > 1:
            made[f"{label}_x{workers}"] = lambda provider=provider: remote(provider, workers)
    return made


def compare(label, num_envs, options, providers):
    """Measure one environment with one number of copies; returns the figures and prints the table."""
    name = ENVIRONMENTS[label]
    with contextlib.ExitStack() as stack:
        running = {}
        for contender, make in contenders(name, num_envs, options.workers, providers).items():
            if contender.partition("_")[0] in options.contenders:
                running[contender] = make()
                stack.callback(running[contender].close)
        sums = {contender: one.sums(COMPARED_STEPS) for contender, one in running.items()}
        for contender, seen in sums.items():
            if not np.allclose(seen, sums["sync"], rtol=1e-5):
                raise SystemExit(
                    f"{contender} observes something else than sync on {name}: {seen[:3]} {sums['sync'][:3]}"
                )
        rates = take_turns({key: one.rate for key, one in running.items()}, options.rounds, options.seconds)
    figures, rows = {}, []
    for contender, measured in rates.items():
        key = f"{label}_{num_envs}_{contender}"
        figures[f"{key}_steps_per_s"] = round(float(np.median(measured)), 1)
        row = [contender, f"{np.median(measured):,.0f}"]
        for other in ("sync", "async", "openenv"):
            if other in rates and other != contender:
                low, middle, high = ratio(rates, contender, other)
                figures[f"{key}_over_{other}"] = round(middle, 3)
                row.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
            else:
                row.append("")
        rows.append(row)
    for contender in rates:
        if contender.startswith("docker"):
            venv_contender = contender.replace("docker", "venv")
            figures[f"{label}_{num_envs}_{contender}_over_venv"] = round(ratio(rates, contender, venv_contender)[1], 3)
    title = f"{name}, {num_envs} environments: transitions/s, and ratios within a round: median (smallest-largest)"
    print_table(title, ["", "transitions/s", "/ sync", "/ async", "/ OpenEnv"], rows)
    return figures


def main():
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1, 8, 64])
    every = ["sync", "async", "venv", "docker", "openenv"]
    parser.add_argument("--contenders", nargs="+", choices=every, default=every)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the variant with several")
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object")
    options = parser.parse_args()
    options.contenders = {"sync", *options.contenders}  # what the others are compared with
    sys.path.insert(0, str(HERE / "image_env"))

    providers = {}
    if "venv" in options.contenders:
        providers["venv"] = VenvProvider(LIBRARY)
    if "docker" in options.contenders:
        problem = engine_problem()
        if problem is None:
            providers["docker"] = DockerProvider(LIBRARY)
        else:
            print(f"docker is left out: {problem}")
    for provider in providers.values():
        provider.build()
    figures = {"cores": len(os.sched_getaffinity(0)), "workers": options.workers, "rounds": options.rounds}
    for label in options.environments:
        for num_envs in options.num_envs:
            figures.update(compare(label, num_envs, options, providers))
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
