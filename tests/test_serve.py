"""A server and its clients, on loopback: what it answers is what a policy would do alone, whatever the others do."""

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from conftest import CARTPOLE, run_ldm_here
from ldm_hf.errors import (
    ConfigError,
    InvalidRequestError,
    InvalidValueError,
    ServerFullError,
    ServingError,
    SessionConflictError,
    UnknownSessionError,
    UnsupportedSpaceError,
)
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMPolicy
from ldm_hf.serving.batching import Batcher
from ldm_hf.serving.client import Client, RemotePolicy
from ldm_hf.serving.engine import Engine
from ldm_hf.serving.metrics import Metrics
from ldm_hf.serving.server import check_access, listen, room
from ldm_hf.serving.sessions import Sessions
from sequences import CAMERA, CONTROL, GRID
from serving import FULL, eventually, same, serving, stream

MINI = Path(__file__).parents[1] / "pretrained/ldm-mini"


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}, {"context_length": 6, "seed": 2}])
def test_sessions_of_all_kinds_get_what_a_policy_alone_would_do(model, processor, address, options):
    """Five clients act at once, for longer than the context of 16, each in other spaces."""
    batches = [[CONTROL], [GRID], [CAMERA, GRID], [GRID, CONTROL, CAMERA], [CONTROL, CONTROL]]
    recorded = [list(stream(envs, number, 40)) for number, envs in enumerate(batches)]

    def act(number: int) -> list:
        with Client(address) as client, client.policy(batches[number], **options) as policy:
            return [policy.act(*step) for step in recorded[number]]

    with ThreadPoolExecutor(len(batches)) as threads:
        served = list(threads.map(act, range(len(batches))))
    for envs, steps, answers in zip(batches, recorded, served, strict=True):
        alone = LDMPolicy(model, processor, envs, **options)
        for step, answer in zip(steps, answers, strict=True):
            assert same(answer, alone.act(*step))
            assert all(env.action_space.contains(action) for env, action in zip(envs, answer, strict=True))


def test_a_pretrained_model_plays_as_in_this_process():
    """Every action of two CartPoles, whose contexts of 128 are read again twice, and episodes' ends in between."""
    model, processor = load_pretrained(MINI)

    def play(policy) -> list:
        envs = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
        seen, acted = (envs.reset(seed=3)[0],), []
        for step in range(200):
            acted.append(policy.act(*seen))
            forced = [action if step % 50 else 1 - action for action in acted[-1]]  # so that poles fall
            seen = envs.step(np.array(forced if step < 40 or step > 60 else [0, 0]))[:4]
        return acted

    with serving(model, processor) as address, Client(address) as client:
        assert play(client.policy([gymnasium.make("CartPole-v1")] * 2)) == play(
            LDMPolicy(model, processor, [gymnasium.make("CartPole-v1")] * 2)
        )


def test_an_evaluation_may_be_by_a_server(model, processor, client):
    """Rows leave the batch as their rollouts end."""
    protocol = Protocol(episodes=2, rollouts=3)
    (expected,) = roll_out(ModelPlayer(model, processor), [CARTPOLE], protocol)
    player = RemotePlayer(client)
    (played,) = roll_out(player, [CARTPOLE], protocol)
    player.policy.close()
    assert played == expected and played.failure is None and len(set(map(sum, played.lengths))) > 1


class RemotePlayer:
    """Plays by a server."""

    def __init__(self, client: Client):
        self.client = client

    def start(self, envs):
        self.policy = self.client.policy(envs)
        return self.policy

    def check(self, env, observation):
        """Nothing: the server does."""


def test_different_environments_are_one_batch(model, processor):
    """Nobody is waited for who has asked, and both are, however long the delay."""
    with (
        serving(model, processor, max_batch_delay=3600.0) as address,
        Client(address) as one,
        Client(address) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        sessions = [one.session(CAMERA.observation_space, CAMERA.action_space)]
        sessions.append(other.session(GRID.observation_space, GRID.action_space))
        seen = CAMERA.observation_space.sample(), 7
        actions = list(threads.map(lambda pair: pair[0].act(pair[1]), zip(sessions, seen, strict=True)))
        metrics = one.metrics()
    assert CAMERA.action_space.contains(actions[0]) and GRID.action_space.contains(actions[1])
    assert (metrics["batches"], metrics["actions"], metrics["batch_size"]["largest"]) == (1, 2, 2)


def test_requests_beyond_a_batch_wait_for_the_next(model, processor):
    with serving(model, processor, max_batch_size=2, max_batch_delay=3600.0) as address:
        clients = [Client(address) for _ in range(4)]
        policies = [one.policy([GRID]) for one in clients]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda policy: policy.act([5]), policies))
        metrics = clients[0].metrics()
        assert (metrics["batches"], metrics["actions"], metrics["batch_size"]["largest"]) == (2, 4, 2)
        assert len(clients[0].policy([GRID] * 3).act([1, 2, 3])) == 3  # more than a batch is a batch of its own
        assert clients[0].metrics()["batch_size"]["largest"] == 3


def test_the_model_is_described(client, model):
    told = client.model()
    assert told["context_length"] == 16 and told["spaces"]["max_action_slots"] == 4
    assert told["max_environments"] == FULL and told["parameters"] == model.num_parameters()
    assert json.load(urllib.request.urlopen(f"{client.address}/health")) == {"status": "ok"}


def test_a_session_survives_what_it_cannot_read(client, model, processor):
    alone = LDMPolicy(model, processor, [CONTROL])
    with client.policy([CONTROL]) as policy:
        good = np.array([0.1, 0.2, 0.3], np.float32)
        assert same(policy.act([good]), alone.act([good]))
        rest = [1.0], [False], [False]
        for bad in ([np.zeros(2)], [[0.0, np.nan, 0.0]], ["text"], [None], [], [good, good], [{"a": 1}], [[[1], 2, 3]]):
            with pytest.raises(InvalidValueError):
                policy.act(bad, *rest)
        for outcome in (([np.inf], [False], [False]), ([1.0, 2.0], [False], [False]), ([1.0], [False], [[False]])):
            with pytest.raises(InvalidValueError):
                policy.act([good], *outcome)
        with pytest.raises(InvalidValueError, match="cannot be sent"):
            policy.act([object()], *rest)
        assert same(policy.act([good], *rest), alone.act([good], *rest))


def test_what_does_not_fit_is_refused(client):
    wide = gymnasium.spaces.Box(-1, 1, (200,))
    with pytest.raises(UnsupportedSpaceError, match="takes 200 slots"):
        client.session(wide, GRID.action_space)
    box = {"type": "Box", "shape": [3], "dtype": "float32", "low": -1.0, "high": 1.0}
    for changed in (
        {"dtype": "object"},
        {"dtype": "complex64"},
        {"high": float("nan")},
        {"shape": [-1]},
        {"dtype": "x"},
    ):
        for spaces in (({**box, **changed}, GRID.action_space), (GRID.observation_space, {**box, **changed})):
            with pytest.raises(UnsupportedSpaceError):
                client.session(*spaces)
    for space in ({"type": "Box"}, {"type": "Discrete", "n": "many", "start": 0}, {"kind": 1}, {"type": []}):
        with pytest.raises((UnsupportedSpaceError, InvalidRequestError)):
            client.session(space, GRID.action_space)
    with pytest.raises(InvalidValueError, match="is the limit"):
        client.session({"type": "Discrete", "n": 2, "start": 0, "more": "x" * 70_000}, GRID.action_space)
    for options in ({"context_length": 17}, {"context_length": 1}, {"temperature": -1.0}, {"seed": -1}):
        with pytest.raises(InvalidValueError):
            client.session(GRID.observation_space, GRID.action_space, **options)
    with pytest.raises(InvalidRequestError, match="'temperature' must be float"):
        client.session(GRID.observation_space, GRID.action_space, temperature="hot")
    with pytest.raises(InvalidValueError, match="at least one environment"):
        client.policy([])
    assert client.metrics()["sessions"]["environments"] == 0


def test_a_full_server_says_so_and_has_room_again(client):
    held = client.policy([GRID] * (FULL - 1))
    with pytest.raises(ServerFullError, match="1 of 32 environments are free"):
        client.policy([GRID] * 2)
    with client.policy([GRID]), pytest.raises(ServerFullError):
        client.policy([GRID])
    held.select([3, 1])
    with client.policy([GRID] * (FULL - 2)) as other:
        assert len(other.act([1] * (FULL - 2))) == FULL - 2
    held.close()
    held.close()
    with pytest.raises(UnknownSessionError, match="was closed"):
        held.act([1, 1])
    with pytest.raises(InvalidValueError, match="num_envs"):
        client.policy([GRID] * (FULL + 1))


def test_a_selection_continues(client, model, processor):
    alone = LDMPolicy(model, processor, [CONTROL, GRID, GRID])
    with client.policy([CONTROL, GRID, GRID]) as policy:
        seen = [np.zeros(3, np.float32), 3, 4]
        assert same(policy.act(seen), alone.act(seen))
        for wrong in ([3], [-1], [1, 1], []):
            with pytest.raises(InvalidValueError, match="rows must be"):
                client.request("POST", f"{policy._path}/select", {"rows": wrong})
        policy.select([2, 0])
        alone.select([2, 0])
        step = [9, np.ones(3, np.float32)], [1.0, 0.0], [False, True], [False, False]
        assert same(policy.act(*step), alone.act(*step))


def test_an_answer_that_was_lost_is_given_again(client, model, processor):
    """A client that was interrupted asks once more; the observation is not taken for two."""
    alone = LDMPolicy(model, processor, [GRID], temperature=1.0)
    policy = client.policy([GRID], temperature=1.0)
    for step, message in enumerate(stream([GRID], 0, 12)):
        asked = dict(zip(("observations", "rewards", "terminated", "truncated"), message, strict=False), step=step)
        answers = [client.request("POST", f"{policy._path}/act", asked)["actions"] for _ in range(2)]
        assert answers[0] == answers[1] == alone.act(*message)
    with client.policy([GRID]) as fresh, pytest.raises(SessionConflictError):
        client.request("POST", f"{fresh._path}/act", {"step": -1, "observations": [1]})
    for number in (step - 1, step + 2, -1):
        with pytest.raises(SessionConflictError, match="next step of this session is 12"):
            client.request("POST", f"{policy._path}/act", {**asked, "step": number})
    policy.close()


def test_sessions_that_are_not_used_are_dropped(model, processor):
    with serving(model, processor, session_timeout=0.2) as address, Client(address) as client:
        policy = client.policy([GRID] * FULL)
        eventually(lambda: client.metrics()["sessions"]["expired"] == 1)
        with pytest.raises(UnknownSessionError, match="without a request"):
            policy.act([1] * FULL)
        client.policy([GRID] * FULL).close()


def test_what_a_session_took_is_free_when_it_ends(model, processor, monkeypatch):
    """Nothing keeps a policy: its memory does not wait for the collector of cycles."""
    made = []
    add = Sessions.add

    def watched(self, policy):
        made.append(weakref.ref(policy))
        return add(self, policy)

    monkeypatch.setattr(Sessions, "add", watched)
    with serving(model, processor, session_timeout=0.2) as address, Client(address) as client:
        gc.disable()
        try:
            for end in (RemotePolicy.close, lambda _: None):
                policy = client.policy([GRID])
                policy.act([1])
                end(policy)
                eventually(lambda: made[-1]() is None)
        finally:
            gc.enable()
    assert len(made) == 2


def test_full_contexts_are_read_again_a_few_at_a_time():
    """Seven rollouts of 10 environments, the first five with full contexts of 256: two of them are due in each batch."""

    async def batches() -> list[list[int]]:
        async def act(steps) -> None:
            acted.append([step.name for step in steps])

        acted: list[list[int]] = []
        batcher = Batcher(act, 60, 0.0, lambda: 70, Metrics())
        steps = [SimpleNamespace(name=n, policy=[None] * 10, num_reads=2048 * (n < 5), error=None) for n in range(7)]
        running = asyncio.ensure_future(batcher.run())
        await asyncio.gather(*map(batcher.put, steps))
        running.cancel()
        return acted

    assert asyncio.run(batches()) == [[0, 1, 5, 6], [2, 3], [4]]


CLIENT = """
import sys
from gymnasium.spaces import Discrete
from ldm_hf.serving.client import Client

class Environment:
    observation_space, action_space = Discrete(48), Discrete(4)

policy = Client(sys.argv[1]).policy([Environment] * 4)
policy.act([0] * 4)
print("acting", flush=True)
while True:
    policy.act([1] * 4, [0.0] * 4, [False] * 4, [False] * 4)
"""


def test_a_killed_client_disturbs_nobody(model, processor):
    """It dies by SIGKILL amid its requests; another continues as if alone, and the places are free after the timeout."""
    with serving(model, processor, session_timeout=5.0) as address, Client(address) as client:
        alone, steps = LDMPolicy(model, processor, [CONTROL]), stream([CONTROL], 0, 100_000)
        survivor = client.policy([CONTROL])

        def continues() -> dict:
            step = next(steps)
            assert same(survivor.act(*step), alone.act(*step))
            return client.metrics()["sessions"]

        with subprocess.Popen([sys.executable, "-c", CLIENT, address], stdout=subprocess.PIPE) as victim:
            eventually(lambda: continues()["environments"] == 5)
            assert victim.stdout.readline() == b"acting\n"
            for _ in range(5):
                continues()
            victim.kill()
        eventually(lambda: continues()["environments"] == 1)
        assert continues()["expired"] == 1


def test_other_machines_are_let_in_only_when_that_is_said():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ConfigError, match="set a token"):
            check_access(host, None, unauthenticated=False)
        check_access(host, "secret", unauthenticated=False)
        check_access(host, None, unauthenticated=True)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_access(host, None, unauthenticated=False)
    with pytest.raises(ConfigError, match="printable"):
        check_access("127.0.0.1", "", unauthenticated=False)


def test_what_cannot_be_served_is_one_line(model, processor, tmp_path):
    done = run_ldm_here("serve", tmp_path / "missing/model")
    assert done.returncode == 1 and "no such folder" in done.stderr and done.stderr.count("\n") == 1
    done = run_ldm_here("serve", MINI, "--host", "0.0.0.0")
    assert done.returncode == 1 and "--unauthenticated" in done.stderr and done.stderr.count("\n") == 1
    with listen("127.0.0.1", 0) as taken:
        done = run_ldm_here("serve", MINI, "--port", taken.getsockname()[1])
    assert done.returncode == 1 and "choose another --port" in done.stderr and done.stderr.count("\n") == 1
    engine = Engine(model, processor)
    assert room(engine, 5) == 5 and 1 <= room(engine, None) <= 4096
    assert engine.bytes_per_environment == 2 * 2 * 32 * (16 + 8) * 4  # two layers, a hidden size of 32, a context of 16
    with pytest.raises(ConfigError, match="do not fit into memory"):
        room(engine, 10**12)


def test_there_is_no_server():
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServingError, match="no server listens at"):
        Client(f"http://127.0.0.1:{port}").model()
    with pytest.raises(InvalidRequestError, match="address must be like"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_server_that_is_ended_answers_first(model, processor, tmp_path, number):
    """One of two sessions has asked, and waits for the other, when the signal comes."""
    model.save_pretrained(tmp_path / "toy")
    processor.save_pretrained(tmp_path / "toy")
    command = [
        sys.executable,
        "-m",
        "ldm_hf",
        "serve",
        str(tmp_path / "toy"),
        "--port",
        "0",
        "--max-batch-delay",
        "3000",
    ]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LDM_SERVE_TOKEN": "x"},
        # Shells have what they start in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as server:
        said = server.stderr.readline()
        address = re.search(r"toy at (http://127\.0\.0\.1:\d+), for [\d,]+ environments of 0\.0 MB each", said).group(1)
        with Client(address, "x") as client, Client(address, "x") as other, ThreadPoolExecutor(1) as thread:
            policy, _ = client.policy([GRID]), other.policy([GRID])
            answer = thread.submit(policy.act, [3])
            eventually(lambda: answer.done() or other.metrics()["waiting"] == 1)
            server.send_signal(number)
            assert answer.result() == LDMPolicy(model, processor, [GRID]).act([3])
            rest = server.stderr.read()
        assert server.wait() == {signal.SIGTERM: 0, signal.SIGINT: 130}[number]
    assert rest == ""
