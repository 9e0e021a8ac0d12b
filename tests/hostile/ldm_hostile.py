"""Environments that do what no environment should: fixtures of the isolation tests.

Each behaves for two steps and does its harm in the third; with ``armed=False`` it behaves forever.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

import gymnasium
import numpy as np

HARMLESS_STEPS = 2


class Hostile(gymnasium.Env):
    """Counts its steps; ``harm`` names what happens in the step after ``HARMLESS_STEPS``."""

    observation_space = gymnasium.spaces.Box(0, 1e6, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, harm, armed=True, only=None, harmless=HARMLESS_STEPS):
        self.harm, self.armed, self.only, self.harmless = harm, armed, only, harmless
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.seed = seed
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = np.full(3, self.steps, np.float32)
        # `only` picks the one environment of a batch, by its seed, that does harm.
        if self.armed and self.steps > self.harmless and self.only in (None, self.seed):
            observation = getattr(self, self.harm)(observation)
        return observation, 1.0, False, False, {}

    def segfault(self, observation):
        ctypes.string_at(0)

    def exit(self, observation):
        sys.stdout.write("leaving early")
        sys.stdout.flush()
        os._exit(7)

    def system_exit(self, observation):
        sys.exit(3)

    def raise_error(self, observation):
        raise ValueError("no such luck")

    def hang(self, observation):
        while True:
            time.sleep(3600)

    def hang_in_c(self, observation):
        return 3 ** (10**10)  # One long call that never gives the interpreter's lock back.

    def ignore_signals(self, observation):
        for number in range(1, signal.NSIG):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        self.hang(observation)

    def garbage(self, observation):
        for descriptor in range(3, 64):
            try:
                socket.socket(fileno=os.dup(descriptor)).sendall(b"\xff" * 4096)
            except OSError:
                pass
        self.hang(observation)

    def false_message(self, observation):
        for descriptor in range(3, 64):
            try:
                socket.socket(fileno=os.dup(descriptor)).sendall(b"\x05\x00\x00\x00\x93\x01\x02\x03\xc0")
            except OSError:
                pass
        return observation

    def wrong_shape(self, observation):
        return np.zeros((7, 2), np.float32)

    def wrong_type(self, observation):
        return {"not": "an array"}

    def flood(self, observation):
        text = "x" * 10_000 + "\n"
        for _ in range(20_000):
            sys.stdout.write(text)
            sys.stderr.write(text)
        os._exit(5)

    def fork_bomb(self, observation):
        while True:
            try:
                os.fork()
            except OSError:
                pass

    def eat_memory(self, observation):
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1 << 20)) * 16)

    def leave_a_process(self, observation):
        subprocess.Popen(["sleep", "3600"], start_new_session=True)
        os._exit(0)

    def kill_supervisor(self, observation):
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getppid(), signal.SIGKILL)
        self.hang(observation)

    def use_network(self, observation):
        socket.create_connection(("192.0.2.1", 80), timeout=5)
        return observation

    def write_root(self, observation):
        with open("/opt/written", "w") as file:
            file.write("x")
        return observation

    def fill_tmp(self, observation):
        with open("/tmp/large", "wb") as file:
            for _ in range(64):
                file.write(bytes(64 << 20))
        return observation

    def privileges(self, observation):
        """Root, capabilities, or host paths would be in this observation."""
        with open("/proc/self/status") as file:
            status = dict(line.split(":", 1) for line in file if ":" in line)
        capabilities = sum(int(status[key], 16) for key in ("CapEff", "CapPrm", "CapBnd"))
        return np.array([os.getuid() == 0, capabilities, status["NoNewPrivs"].strip() != "1"], np.float32)


for _harm in [name for name in vars(Hostile) if not name.startswith("_") and name not in ("reset", "step")]:
    if callable(getattr(Hostile, _harm)):
        gymnasium.register(f"Hostile/{_harm}-v0", entry_point=Hostile, kwargs={"harm": _harm}, max_episode_steps=50)
