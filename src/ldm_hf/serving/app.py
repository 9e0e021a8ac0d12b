"""The HTTP interface of a server: ``docs/serving.md`` describes it."""

import asyncio
import contextlib
import ctypes
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ldm_hf
from ldm_hf.errors import InvalidRequestError, LDMError, ServingError, UnauthorizedError, one_line
from ldm_hf.serving import wire
from ldm_hf.serving.batching import Batcher
from ldm_hf.serving.engine import Engine, Step
from ldm_hf.serving.metrics import Metrics
from ldm_hf.serving.requests import opening, selection, transition
from ldm_hf.serving.sessions import Session, Sessions
from ldm_hf.serving.wire import field, pack, unpack

_DRAINED = 8
"""Times the largest body that are read and dropped of a larger one, for a client to see why it is refused."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        max_environments: of all sessions together.
        max_batch_size: environments that act in one forward pass.
        max_batch_delay: seconds that a request waits for others while the model is idle.
        session_timeout: seconds without a request after which a session is dropped.
        max_body_bytes: of a request.
        token: what requests have to bring; None: nothing.
    """

    max_environments: int = 1024
    max_batch_size: int = 256
    max_batch_delay: float = 0.005
    session_timeout: float = 600.0
    max_body_bytes: int = 64 << 20
    token: str | None = None


class Application:
    """What the requests of a server share."""

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.metrics = Metrics()
        self.sessions = Sessions(limits.max_environments, limits.session_timeout)
        self._thread = ThreadPoolExecutor(1, "model")  # of the model: torch and policies are used by this one alone
        self.batcher = Batcher(
            partial(self.in_thread, engine.act),
            limits.max_batch_size,
            limits.max_batch_delay,
            lambda: self.sessions.num_envs,
            self.metrics,
        )

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call something of the engine or of a policy."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    @contextlib.asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Make batches, and drop sessions that are no longer used."""
        tasks = [asyncio.create_task(self.batcher.run()), asyncio.create_task(self._expire())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._thread.shutdown()

    async def _expire(self) -> None:
        returned = 0
        while True:
            await asyncio.sleep(min(1.0, self.sessions.timeout / 4))
            self.sessions.expire()
            gone = self.sessions.closed + self.sessions.expired
            if gone > returned:
                returned = gone
                await self.in_thread(return_memory)

    async def open(self, message: dict[str, Any]) -> Session:
        """Open a session."""
        environments, options = opening(message, self.limits.max_environments)
        with self.sessions.room_for(len(environments)):
            policy = await self.in_thread(self.engine.open, environments, options)
            return self.sessions.add(policy)

    async def act(self, session: Session, message: dict[str, Any]) -> bytes:
        """Answer a request for actions; one that comes again, because the answer was lost, gets the same answer."""
        number = field(message, "step", int)
        earlier = session.earlier_answer(number)
        if earlier is None:
            seen = transition(message, session.num_envs, number)
            session.pending = earlier = asyncio.ensure_future(self._act(session, seen))
        return earlier if isinstance(earlier, bytes) else await asyncio.shield(earlier)

    async def _act(self, session: Session, seen: tuple[Any, ...]) -> bytes:
        step = Step(session.policy, seen)
        try:
            await self.batcher.put(step)
            if step.is_lost:
                self.sessions.close(session)
            if step.error is not None:
                raise step.error
            session.last_answer = pack({"actions": step.actions})
            session.steps += 1
            return session.last_answer
        finally:
            session.pending, session.last_used = None, self.sessions.clock()

    async def select(self, session: Session, rows: list[int]) -> None:
        """Continue with some environments of a session."""
        with session.changing():
            await self.in_thread(session.policy.select, rows)
            session.num_envs, session.last_used = len(rows), self.sessions.clock()


def make_app(application: Application) -> FastAPI:
    """The routes of a server."""
    # No pages of documentation: they would load scripts from another host.
    app = FastAPI(lifespan=application.running, openapi_url=None, docs_url=None, redoc_url=None)
    limits, sessions = application.limits, application.sessions

    async def message(request: Request) -> dict[str, Any]:
        return unpack(await body_of(request, limits.max_body_bytes))

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/model")
    async def model() -> Response:
        return JSONResponse(describe(application))

    @app.get("/metrics")
    async def metrics() -> Response:
        counts = {"open": len(sessions), "environments": sessions.num_envs, "opened": sessions.opened}
        counts |= {"closed": sessions.closed, "expired": sessions.expired}
        waiting = len(application.batcher)
        return JSONResponse({"sessions": counts, "waiting": waiting, **application.metrics.summary()})

    @app.post("/sessions")
    async def open_session(request: Request) -> Response:
        session = await application.open(await message(request))
        answer = pack({"session": session.id, "session_timeout": limits.session_timeout})
        return Response(answer, 201, media_type=wire.MEDIA_TYPE)

    @app.post("/sessions/{name}/act")
    async def act(name: str, request: Request) -> Response:
        answer = await application.act(sessions.get(name), await message(request))
        return Response(answer, media_type=wire.MEDIA_TYPE)

    @app.post("/sessions/{name}/select")
    async def select(name: str, request: Request) -> Response:
        session = sessions.get(name)
        await application.select(session, selection(await message(request), session.num_envs))
        return Response(status_code=204)

    @app.delete("/sessions/{name}")
    async def close_session(name: str) -> Response:
        sessions.close(sessions.get(name))
        return Response(status_code=204)

    app.add_middleware(Guard, limits.token, application.metrics)
    app.add_exception_handler(LDMError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(ClientDisconnect, _on_error)
    return app


class Guard:
    """ASGI middleware: asks for the token, counts answers, and answers where a handler has failed.

    Args:
        app: what it stands before.
        token: see ``Limits``.
        metrics: is told of each answer.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.answered(message["status"])
            await send(message)

        if not self._is_let_in(scope):
            error = UnauthorizedError("this server wants its token, in the header Authorization: Bearer TOKEN")
            await error_response(error)(scope, receive, counted)
            return
        try:
            await self._app(scope, receive, counted)
        except Exception as error:
            _log.exception("a request failed")
            if started:
                raise
            await error_response(ServingError(f"the server failed: {one_line(error, 200)}"))(scope, receive, counted)

    def _is_let_in(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] == "/health":
            return True
        return hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._expected)


def return_memory() -> None:
    """Give what was freed back to the system: glibc keeps it otherwise."""
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


async def body_of(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: it is too large, or says that it is something else than msgpack.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != wire.MEDIA_TYPE:
        # Which also keeps web pages out: browsers send this type to another host only if that allows it.
        raise HTTPException(415, f"the body must be {wire.MEDIA_TYPE}, got {media_type[:40] or 'no content type'}")
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size <= max_bytes:
            pieces.append(piece)
        elif size > _DRAINED * max_bytes:
            break
    if size > max_bytes:
        raise HTTPException(413, f"the body has more than {max_bytes} bytes: send less, or see --max-body-size")
    return b"".join(pieces)


def describe(application: Application) -> dict[str, Any]:
    """What the model is and what it takes, as JSON data."""
    engine, limits = application.engine, application.limits
    config, processor = engine.model.config, engine.processor
    return {
        "name": application.name,
        "ldm_hf_version": ldm_hf.__version__,
        "parameters": engine.num_parameters,
        "device": str(engine.model.device),
        "context_length": config.max_position_embeddings,
        "environments": list(config.environments or []),
        "spaces": {
            "kinds": ["Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"],
            "max_observation_slots": processor.max_observation_slots,
            "max_observation_images": 1,
            "max_action_slots": processor.max_action_slots,
            "max_action_choices": processor.num_bins,
        },
        "max_environments": limits.max_environments,
        "max_batch_size": limits.max_batch_size,
        "max_batch_delay_ms": limits.max_batch_delay * 1000,
        "max_body_bytes": limits.max_body_bytes,
        "session_timeout": limits.session_timeout,
    }


def error_response(error: LDMError, status: int | None = None) -> Response:
    """An error as an answer: one line, and the status of its class."""
    if status is None:
        status = next(code for kind, code in wire.STATUS.items() if isinstance(error, kind))
    return JSONResponse(wire.error_body(error), status)


async def _on_error(_: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # which nobody reads
    if isinstance(error, HTTPException):
        return error_response(InvalidRequestError(str(error.detail)), error.status_code)
    assert isinstance(error, LDMError)
    return error_response(error)
