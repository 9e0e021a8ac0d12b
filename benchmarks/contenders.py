"""Contenders of ``remote_env.py``: batches of one environment, stepped in different ways.

Each has ``rate(seconds)``, ``observations(steps)`` (an array of shape (steps, num_envs, ...), after a reset with seed 0)
and ``close()``.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.env_registry.library.manifest import home

HERE = Path(__file__).parent
BATCHES = 64  # of actions, drawn beforehand and taken over and over
SAME_STEP = gymnasium.vector.AutoresetMode.SAME_STEP


def make_one(name: str) -> gymnasium.Env:
    """Make one environment; it is registered in the process that makes it."""
    import ldm_benchmark  # noqa: F401 - registers the image environment

    return gymnasium.make(name, disable_env_checker=True)


class Vector:
    """A Gymnasium vector environment of this process, whatever is behind it."""

    def __init__(self, envs: gymnasium.vector.VectorEnv, first: int = 0, total: int | None = None) -> None:
        """Draw the actions of all ``total`` environments; ``envs`` are those from ``first`` on."""
        self.envs, self.first = envs, first
        space, chosen = envs.single_action_space, slice(first, first + envs.num_envs)
        space.seed(0)
        batches = [[space.sample() for _ in range(total or envs.num_envs)] for _ in range(BATCHES)]
        self.actions = [np.array(batch[chosen]) for batch in batches]
        envs.reset(seed=first)

    def rate(self, seconds: float) -> float:
        """Transitions a second."""
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self.envs.step(self.actions[count % BATCHES])
            count += 1
        return count * self.envs.num_envs / (time.perf_counter() - start)

    def observations(self, steps: int) -> np.ndarray:
        """Observations of the first steps after a reset with seed 0."""
        self.envs.reset(seed=self.first)
        return np.stack([self.envs.step(self.actions[step % BATCHES])[0].copy() for step in range(steps)])

    def close(self) -> None:
        """End it."""
        self.envs.close()


class Sent(Vector):
    """An isolated vector environment by ``send`` and ``recv``: the environments of a worker never wait for another's."""

    def rate(self, seconds: float) -> float:
        """Transitions a second."""
        rounds, count = np.zeros(self.envs.num_envs, int), 0
        start = time.perf_counter()
        self.envs.send(self.actions[0])
        while time.perf_counter() - start < seconds:
            ids = self.envs.recv()[-1]["env_id"]
            rounds[ids] += 1
            count += len(ids)
            self.envs.send(self.actions[rounds[ids[0]] % BATCHES][ids - self.first], ids)
        rate = count / (time.perf_counter() - start)
        self.envs.recv(self.envs.num_envs)  # all are stepping
        return rate


class Adapted(Vector):
    """A vector environment through the adapter for Stable-Baselines3."""

    def __init__(self, envs: gymnasium.vector.VectorEnv) -> None:
        """Put the adapter around it."""
        super().__init__(envs)
        self.adapter = Sb3VecEnv(envs)

    def rate(self, seconds: float) -> float:
        """Transitions a second."""
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self.adapter.step(self.actions[count % BATCHES])
            count += 1
        return count * self.envs.num_envs / (time.perf_counter() - start)

    def observations(self, steps: int) -> np.ndarray:
        """Observations of the first steps after a reset with seed 0."""
        self.adapter.seed(0)
        self.adapter.reset()
        return np.stack([self.adapter.step(self.actions[step % BATCHES])[0].copy() for step in range(steps)])


def sync(name: str, num_envs: int, first: int = 0, total: int | None = None) -> Vector:
    """Environments of this process, one after the other."""
    makers = [lambda: make_one(name)] * num_envs
    return Vector(gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=SAME_STEP), first, total)


def asynchronous(name: str, num_envs: int) -> Vector:
    """A process per environment."""
    makers = [lambda: make_one(name)] * num_envs
    return Vector(gymnasium.vector.AsyncVectorEnv(makers, autoreset_mode=SAME_STEP))


class Apart:
    """Processes that each step their part and exchange nothing: what the machine's processors can give at best."""

    def __init__(self, name: str, num_envs: int, processes: int) -> None:
        """Start the processes."""
        self.pipes, self.processes = [], []
        bounds = [num_envs * index // processes for index in range(processes + 1)]
        for first, last in itertools.pairwise(bounds):
            ours, theirs = multiprocessing.Pipe()
            arguments = (theirs, name, last - first, first, num_envs)
            process = multiprocessing.Process(target=self._serve, args=arguments, daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    @staticmethod
    def _serve(pipe: Any, name: str, num_envs: int, first: int, total: int) -> None:
        vector = sync(name, num_envs, first, total)
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while True:
                method, argument = pipe.recv()
                pipe.send(getattr(vector, method)(argument))

    def _ask(self, method: str, argument: float) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((method, argument))
        return [pipe.recv() for pipe in self.pipes]

    def rate(self, seconds: float) -> float:
        """Transitions a second of all processes together."""
        return float(sum(self._ask("rate", seconds)))

    def observations(self, steps: int) -> np.ndarray:
        """Observations of the first steps after a reset with seed 0."""
        return np.concatenate(self._ask("observations", steps), axis=1)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()


def installed(peer: str, requirements: Sequence[str] = ()) -> Path:
    """The Python of a virtual environment with a peer, which is made if that was not done, and ``requirements``."""
    folder = home() / "benchmarks" / peer
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, clear=True, with_pip=True)
        pinned = HERE / "peers" / f"requirements-{peer}.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", pinned, *requirements], check=True)
        (folder / "done").touch()
    return python


class EnvPool:
    """EnvPool's own C++ of the same environment, in a process of its own; a step of it waits for all environments."""

    def __init__(self, name: str, num_envs: int, threads: int) -> None:
        """Install EnvPool if that is not done, and start the process."""
        command = [
            str(installed("envpool")),
            str(HERE / "peers" / "envpool_peer.py"),
            name,
            str(num_envs),
            str(threads),
        ]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        if not self.process.stdout.readline():
            self.errors.seek(0)
            told = self.errors.read()[-300:]
            self.close()
            raise RuntimeError(f"EnvPool did not start: {told}")

    def rate(self, seconds: float) -> float:
        """Transitions a second."""
        self.process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["rate"]

    def observations(self, steps: int) -> None:
        """Nothing to compare: its random numbers are its own."""

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


class OpenEnv:
    """OpenEnv's server and client, each a process in a virtual environment of OpenEnv's own."""

    def __init__(self, name: str, num_envs: int, requirements: Sequence[str]) -> None:
        """Install OpenEnv beside ``requirements`` if that is not done, and start server and client."""
        python = installed("openenv", requirements)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        peer, arguments = [str(python), str(HERE / "peers" / "openenv_peer.py")], [name, str(port), str(num_envs)]
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the processes
        self.server = subprocess.Popen([*peer, "serve", *arguments], stdout=self.output, stderr=self.output)
        self.client = None
        try:
            self._wait_for(port)
            self.client = subprocess.Popen(
                [*peer, "drive", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.output,
                text=True,
            )
            if not self.client.stdout.readline():
                raise RuntimeError(f"OpenEnv's client did not start: {self._told()}")
        except BaseException:
            self.close()
            raise

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError(f"OpenEnv's server did not start: {self._told()}")

    def _told(self) -> str:
        self.output.seek(0)
        return " ".join(self.output.read().decode(errors="replace").split())[-300:]

    def _ask(self, **request: Any) -> dict[str, Any]:
        self.client.stdin.write(json.dumps(request) + "\n")
        self.client.stdin.flush()
        answer = self.client.stdout.readline()
        if not answer:
            raise RuntimeError(f"OpenEnv's client ended: {self._told()}")
        return json.loads(answer)

    def rate(self, seconds: float) -> float:
        """Transitions a second."""
        return self._ask(seconds=seconds)["rate"]

    def observations(self, steps: int) -> np.ndarray:
        """Observations of the first steps after a reset with seed 0."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "observations.npy"
            self._ask(observations=steps, file=str(file))
            return np.load(file)

    def close(self) -> None:
        """End both processes."""
        for process in (self.client, self.server):
            if process is not None:
                process.kill()
                process.wait()
        self.output.close()


@contextlib.contextmanager
def quiet() -> Any:
    """Send what this process and those that it starts meanwhile print to nowhere: MuJoCo warns once a copy."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with Path(os.devnull).open("w") as nothing:
        for descriptor in (1, 2):
            os.dup2(nothing.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)


Contender = Vector | Apart | OpenEnv | EnvPool
Maker = Callable[[], Contender]
