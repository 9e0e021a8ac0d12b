"""A server in a thread of the test, and what is sent to it."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np

from ldm_hf.serving import wire
from ldm_hf.serving.app import Application, Limits
from ldm_hf.serving.engine import Engine
from ldm_hf.serving.server import http_server, listen
from sequences import Spaces

FULL = 32  # environments that the tests' server takes
LONG = 60.0  # seconds until a condition that must come is given up


@contextlib.contextmanager
def serving(model, processor, grace=30, **limits):
    """A server in a thread; its address."""
    listener = listen("127.0.0.1", 0)
    options = {"max_environments": FULL, "max_batch_delay": 0.002, **limits}
    server = http_server(Application(Engine(model, processor), "toy", Limits(**options)), grace)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def eventually(condition):
    """Wait until something holds, and return what it is."""
    deadline = time.monotonic() + LONG
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to hold"
    return found


def stream(environments: list[Spaces], seed: int, steps: int):
    """Arguments of ``act``, one call after another: random observations and outcomes."""
    generator = np.random.default_rng(seed)
    for number, environment in enumerate(environments):
        environment.observation_space.seed(seed + number)
    for step in range(steps):
        seen = [environment.observation_space.sample() for environment in environments]
        ended = generator.random((2, len(seen))) < 0.2
        yield (seen, generator.normal(size=len(seen)), ended[0], ended[1] & ~ended[0]) if step else (seen,)


def same(one: list, other: list) -> bool:
    return all(np.array_equal(a, b) and type(a) is type(b) for a, b in zip(one, other, strict=True))


def send(address: str, method: str, path: str, body: bytes | None, kind: str = wire.MEDIA_TYPE) -> tuple[int, bytes]:
    request = urllib.request.Request(address + path, body, {"Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def line(answer: bytes) -> str:
    error = json.loads(answer)["error"]
    assert set(error) == {"type", "message"} and error["message"] and "\n" not in error["message"]
    return error["message"]
