"""Whatever bytes a worker answers, the client raises a typed error or takes them for what they say; it never breaks.

A provider that starts no process plays the worker: it answers with what a real worker answered, after mutations.
"""

import contextlib
import dataclasses
import random
import socket

import msgpack
import numpy as np
import pytest

from ldm_hf.env_registry.providers.base import Limits
from ldm_hf.env_registry.remote import worker_process
from ldm_hf.env_registry.remote.vector_env import RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings, WorkerBatch
from ldm_hf.env_registry.remote.worker_pool import State
from ldm_hf.env_registry.worker import protocol
from ldm_hf.errors import LDMError
from test_remote_env import ODD, SAME_STEP, Here

CALLS = {
    "reset": lambda envs: envs.reset(seed=0),
    "step": lambda envs: envs.step(ACTIONS[envs.settings.name]),
    "render": lambda envs: envs.render(),
    "call": lambda envs: envs.call("metadata"),
    "has": lambda envs: envs.has_attr("metadata"),
    "diagnostics": lambda envs: envs.diagnostics(),
}
NUM_ENVS = 2
ODD_INFO = {"": 1.5, "empty": {}, "text": "a", "none": None, "deep": {"x": 1, "y": {"z": [1, {}]}}, "count": 3}
RECORDED = {
    "Behaved/Clock-v0": {"render_mode": "rgb_array", "kwargs": {"length": 2, "step_info": ODD_INFO}},
    "nested": {},
}
ACTIONS = {
    "Behaved/Clock-v0": np.zeros(NUM_ENVS, int),
    "nested": {
        "move": np.zeros((NUM_ENVS, 2), int),
        "push": np.zeros((NUM_ENVS, 2), np.float32),
        "jump": np.ones(NUM_ENVS, int),
    },
}
SPECIAL = [
    0x80,
    0x90,
    0xA0,
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC4,
    0xC7,
    0xCA,
    0xCB,
    0xCF,
    0xD3,
    0xD9,
    0xDC,
    0xDD,
    0xDE,
    0xDF,
    0xFF,
]


class Player:
    """Connects as a worker does; the test says what it answers."""

    def __init__(self, address):
        self.lifeline, self.control = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
        for one in (self.lifeline, self.control):
            one.connect(address)

    def answer(self, body):
        with contextlib.suppress(BlockingIOError):
            self.control.recv(1 << 20, socket.MSG_DONTWAIT)  # requests, so that there is room for more
        self.control.sendall(len(body).to_bytes(4, "little") + body)

    def poll(self):
        return "is played"

    def kill(self):
        self.lifeline.close()
        self.control.close()


class Played(Here):
    """Starts players, with the answers to the first two requests ready: load and make."""

    first = ()

    def launch(self, folder, limits):
        self.player = Player(str(folder / "socket"))
        for body in self.first:
            self.player.answer(body)
        return self.player


def record(name):
    """What a real worker answers to each call, by the call's name, and to load and make."""
    answers = []
    receive = worker_process.WorkerProcess._next_answer

    def recording(worker, *arguments):
        answers.append(receive(worker, *arguments))
        return answers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process.WorkerProcess, "_next_answer", recording)
        settings = RemoteSettings(Here(ODD), name, **RECORDED[name])
        envs = RemoteVectorEnv(settings, NUM_ENVS, autoreset_mode=SAME_STEP)
        found = {"load": answers[0], "make": answers[1]}
        for call in ("reset", "step", *CALLS):  # of two steps, the second ends an episode
            with contextlib.suppress(LDMError):  # not all of them render
                CALLS[call](envs)
            found[call] = answers[-1]
            if call == "step":
                envs.step(ACTIONS[name])
                found["last step"] = answers[-1]
        envs.close()
    return found


@pytest.fixture(scope="module")
def recorded():
    return {name: record(name) for name in RECORDED}


def pack(answer):
    return msgpack.packb(answer, default=protocol.encode_array, use_bin_type=True)


def mutated(body, chance):
    data = bytearray(body)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data))
        length = chance.choice((1, 1, 2, 4, 9))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at] = chance.choice(SPECIAL)
        elif kind == 2:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 3 and len(data) > length:
            del data[at : at + length]
        elif kind == 4:
            other = chance.randrange(len(data))
            data[at:at] = data[other : other + length]
        else:
            other = chance.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        if not data:
            data = bytearray(b"\x80")
    return bytes(data)


class Target:
    """A vector environment whose worker is kept, whatever it answered: starting another takes longer than all the rest."""

    def __init__(self, name, answers):
        self.name, self.answers = name, answers
        self.provider = Played(dataclasses.replace(ODD, modules=()))
        self.made = RemoteSettings(
            self.provider, name, **RECORDED[name], step_timeout=1e-3, start_timeout=1e-3, limits=Limits(memory=1 << 24)
        )
        self.envs = self.make(pack(answers["make"]))
        (self.worker,) = self.envs._pool.workers

    def make(self, description):
        self.provider.first = (pack(self.answers["load"]), description)
        return RemoteVectorEnv(self.made, NUM_ENVS, autoreset_mode=SAME_STEP)

    def take(self, call, answer, mutate):
        """Answer a call, after a mutation."""
        self.envs._pool.workers[0], self.envs._pool._state = self.worker, State.READY
        request = self.worker._worker.number + 1
        self.worker.shared.number[0] = request
        self.player.answer(mutate(pack({**answer, "number": request})))
        CALLS[call](self.envs)


def fuzz(recorded, number, seed, monkeypatch):
    """Take mutated answers; returns how many were refused and how many were taken."""
    monkeypatch.setattr(worker_process, "_LIFELINE_TIMEOUT", 0.0)  # nobody answers `close`
    targets = [Target(name, answers) for name, answers in recorded.items()]
    for target in targets:
        target.player = target.provider.player
    chance, bodies = random.Random(seed), []

    def mutate(body):
        bodies.append(mutated(body, chance))
        return bodies[-1]

    def once(target):
        if chance.random() < 0.02:
            target.make(mutate(pack(target.answers["make"]))).close()
            return
        with monkeypatch.context() as patch:
            patch.setattr(
                worker_process.WorkerProcess, "_give_up", lambda worker, reason: worker_process.WorkerEnd(reason)
            )
            patch.setattr(WorkerBatch, "close", lambda batch: None)
            call = chance.choice(list(CALLS))
            last = call == "step" and chance.random() < 0.5
            target.take(call, target.answers["last step" if last else call], mutate)

    outcomes = {"refused": 0, "taken": 0}
    for _ in range(number):
        try:
            once(chance.choice(targets))
            outcomes["taken"] += 1
        except LDMError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{error!r} for {bodies[-1]!r}") from error
        bodies.clear()
    for target in targets:
        target.envs.close()
    return outcomes


def test_mutated_answers_are_refused_or_understood(recorded, monkeypatch):
    outcomes = fuzz(recorded, 5000, 0, monkeypatch)
    assert min(outcomes.values()) > 500


@pytest.mark.slow
def test_two_hundred_thousand_mutated_answers_are_refused_or_understood(recorded, monkeypatch):
    outcomes = fuzz(recorded, 200_000, 1, monkeypatch)
    assert min(outcomes.values()) > 20_000
