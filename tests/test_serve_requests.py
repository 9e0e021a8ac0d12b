"""What reaches a server that is no client of ours: it gets one line, and all others are served as before."""

import random
import re
import socket

import numpy as np
import pytest

from ldm_hf.errors import InvalidRequestError, ServingError, UnauthorizedError
from ldm_hf.modeling import LDMPolicy
from ldm_hf.modeling.spaces_ldm import space_to_json
from ldm_hf.serving import wire
from ldm_hf.serving.client import Client
from sequences import CAMERA, CONTROL, GRID
from serving import line, same, send, serving, stream

MARKS = bytes([0x00, 0x7F, 0x80, 0x90, 0xA0, *range(0xC0, 0xE0), 0xFF])  # of msgpack: what follows, and how much


def mutated(body: bytes, generator: random.Random) -> bytes:
    """A body with bytes replaced, cut out or put in."""
    changed = bytearray(body)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(changed))
        kind = generator.randrange(4)
        if kind == 0:
            changed[place] = generator.randrange(256)
        elif kind == 1:
            changed[place : place + generator.randint(1, 8)] = b""
        elif kind == 2:
            changed[place:place] = generator.randbytes(generator.randint(1, 8))
        else:
            changed[place] = generator.choice(MARKS)
        changed = changed or bytearray(b"\x00")
    return bytes(changed)


def test_mutated_bodies_get_a_line_and_the_server_lives(model, processor):
    """What still says something is answered; anything else is the client's mistake, never the server's."""
    generator, statuses = random.Random(0), set()
    with serving(model, processor, max_environments=10_000) as address, Client(address) as client:
        spaces = wire.pack(
            {
                "environments": [
                    {
                        "observation_space": space_to_json(env.observation_space),
                        "action_space": space_to_json(env.action_space),
                    }
                    for env in (CAMERA, CONTROL, GRID)
                ],
                "temperature": 0.5,
                "seed": 3,
            }
        )
        for _ in range(200):
            status, answer = send(address, "POST", "/sessions", mutated(spaces, generator))
            statuses.add(status)
            if status == 201:
                send(address, "DELETE", "/sessions/" + wire.unpack(answer)["session"], None)
            else:
                assert 400 <= status < 500 and line(answer)
        survivor, alone = client.policy([CONTROL]), LDMPolicy(model, processor, [CONTROL])
        steps = stream([CONTROL], 0, 1000)
        path, recorded = client.policy([CONTROL, GRID])._path + "/act", stream([CONTROL, GRID], 1, 300)
        names = "observations", "rewards", "terminated", "truncated"
        message = dict(zip(names, next(recorded), strict=False))
        for _ in range(200):
            refusal = line(send(address, "POST", path, wire.pack({"step": -1}))[1])
            number = int(re.search(r"the next step of this session is (\d+)", refusal).group(1))
            if number:
                message = dict(zip(names, next(recorded), strict=True))
            status, answer = send(address, "POST", path, mutated(wire.pack({"step": number, **message}), generator))
            statuses.add(status)
            if status == 200:
                assert len(wire.unpack(answer)["actions"]) == 2
            else:
                assert 400 <= status < 500 and line(answer)
            if generator.random() < 0.1:
                step = next(steps)
                assert same(survivor.act(*step), alone.act(*step))
    assert statuses >= {200, 201, 400, 422}


def test_other_requests_get_a_line(address, client):
    path = client.policy([GRID])._path
    body = wire.pack({"step": 0, "observations": [1]})
    asked = {
        ("POST", "/sessions/unknown/act", wire.MEDIA_TYPE): (404, "no session 'unknown' is open"),
        ("POST", f"{path}/act", "application/json"): (415, "must be application/msgpack, got application/json"),
        ("POST", f"{path}/act", "text/plain"): (415, "must be application/msgpack"),
        ("GET", f"{path}/act", wire.MEDIA_TYPE): (405, "Method Not Allowed"),
        ("POST", "/nothing", wire.MEDIA_TYPE): (404, "Not Found"),
        ("GET", "/docs", wire.MEDIA_TYPE): (404, "Not Found"),
        ("POST", "/sessions", wire.MEDIA_TYPE): (400, "unknown fields"),
    }
    for (method, where, kind), (status, message) in asked.items():
        found = send(address, method, where, None if method == "GET" else body, kind)
        assert found[0] == status and message in line(found[1])
    for other in (b"", b"\x80", b"\x93\x01\x02\x03", b"\x01", b"\x91" * 5000, b"\xdf\xff\xff\xff\xff", b"{}"):
        status, answer = send(address, "POST", f"{path}/act", other)
        assert status == 400 and line(answer)
    send(address, "DELETE", path, None)


def test_large_bodies_are_refused(model, processor):
    with (
        serving(model, processor, max_body_bytes=10_000) as address,
        Client(address) as client,
        client.policy([GRID]) as policy,
    ):
        status, answer = send(address, "POST", f"{policy._path}/act", bytes(10_001))
        assert status == 413 and "more than 10000 bytes" in line(answer)
        with pytest.raises(InvalidRequestError, match="more than 10000 bytes"):
            policy.act(["x" * 10_000])
        with pytest.raises(ServingError):
            policy.act(["x" * 50_000_000])  # of so much more than is allowed not all is read
        assert len(policy.act([1])) == 1
        pieces = iter([b"x" * 6000, b"x" * 6000])  # without a length
        status, answer = send(address, "POST", f"{policy._path}/act", pieces)
        assert status == 413 and "more than 10000 bytes" in line(answer)


def test_clients_that_leave_in_the_middle(address, client):
    """Half a request, or a request whose answer nobody reads: others are served, and the session continues."""
    policy = client.policy([GRID])
    body = wire.pack({"step": 0, "observations": [1]})
    lines = (
        f"POST {policy._path}/act HTTP/1.1",
        "Host: x",
        f"Content-Type: {wire.MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
    )
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    where = re.fullmatch(r"http://(.*):(\d+)", address).groups()
    for sent in (
        head[:30],
        head,
        head + body[:4],
        head + body,
        b"\x00\xff\r\n\r\n",
    ):
        with socket.create_connection(where) as connection:
            connection.sendall(sent)
    with client.policy([CONTROL]) as other:
        assert CONTROL.action_space.contains(other.act([np.zeros(3, np.float32)])[0])
    assert policy.act([1])[0] in range(4)  # an answer that was not read is given again
    assert policy.act([2], [0.0], [False], [False])[0] in range(4)
    policy.close()


def test_half_a_request_does_not_keep_a_server_from_ending(model, processor):
    with serving(model, processor, grace=1) as address:
        connection = socket.create_connection(re.fullmatch(r"http://(.*):(\d+)", address).groups())
        head = f"POST /sessions HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.MEDIA_TYPE}\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head.encode() + b"half")
    connection.close()
    with Client(address) as client, pytest.raises(ServingError, match="no server listens"):
        client.model()


def test_a_token_is_asked_for(model, processor):
    with serving(model, processor, token="secret") as address:
        for token in (None, "", "secre", "secrets", "\N{GREEK SMALL LETTER ALPHA}"):
            with Client(address, token) as client, pytest.raises((UnauthorizedError, UnicodeEncodeError)):
                client.session(GRID.observation_space, GRID.action_space)
        with Client(address, "secret") as client:
            client.session(GRID.observation_space, GRID.action_space).close()
        assert send(address, "GET", "/health", None)[0] == 200 and send(address, "GET", "/model", None)[0] == 401
