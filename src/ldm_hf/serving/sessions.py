"""The sessions of a server: who has which rollout, how many environments that makes, and who has gone."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ldm_hf.errors import ServerFullError, SessionConflictError, UnknownSessionError

if TYPE_CHECKING:
    from ldm_hf.modeling import LDMPolicy


@dataclass(eq=False)
class Session:
    """A client's rollout, and what was last answered.

    Attributes:
        policy: context and key-value cache, of this session alone.
        id: unguessable.
        num_envs: environments, which are rows of the policy.
        steps: how many actions of each environment were answered.
        last_answer: body of the last of these answers, for a client that asks again because it did not arrive.
        pending: the answer that is being made.
        is_changing: whether environments are being left out.
        last_used: when the last request came or was answered, by the clock of ``Sessions``.
    """

    policy: "LDMPolicy"
    num_envs: int
    last_used: float
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    steps: int = 0
    last_answer: bytes = b""
    pending: "asyncio.Future[bytes] | None" = None
    is_changing: bool = False

    def earlier_answer(self, step: int) -> "bytes | asyncio.Future[bytes] | None":
        """What was, or is being, answered to a request of this number; None if it is the next one.

        Raises:
            SessionConflictError: it is neither.
        """
        self._check_unchanging()
        if step == self.steps:
            return self.pending
        if 0 <= step == self.steps - 1 and self.pending is None:
            return self.last_answer
        raise SessionConflictError(f"the next step of this session is {self.steps}, got {step}")

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Let no other request of this session in.

        Raises:
            SessionConflictError: another one is being answered.
        """
        self._check_unchanging()
        if self.pending is not None:
            raise SessionConflictError("an answer of this session is being made: wait for it")
        self.is_changing = True
        try:
            yield
        finally:
            self.is_changing = False

    def _check_unchanging(self) -> None:
        if self.is_changing:
            raise SessionConflictError("environments of this session are being left out: wait for the answer")


class Sessions:
    """All open sessions.

    Args:
        max_environments: of all sessions together.
        timeout: seconds after which a session without requests is dropped.
        clock: seconds that always grow.
    """

    def __init__(self, max_environments: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_environments, self.timeout, self.clock = max_environments, timeout, clock
        self._open: dict[str, Session] = {}
        self._reserved = 0
        self.opened = self.closed = self.expired = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_envs(self) -> int:
        """Environments of all open sessions."""
        return sum(session.num_envs for session in self._open.values())

    @contextlib.contextmanager
    def room_for(self, num_envs: int) -> Iterator[None]:
        """Keep room for a session that is being made.

        Raises:
            ServerFullError: there is none.
        """
        left = self.max_environments - self.num_envs - self._reserved
        if num_envs > left:
            raise ServerFullError(
                f"a session of {num_envs} was asked for, and {left} of {self.max_environments} environments are free: "
                "close sessions, try again later, or start the server with more --max-environments"
            )
        self._reserved += num_envs
        try:
            yield
        finally:
            self._reserved -= num_envs

    def add(self, policy: "LDMPolicy") -> Session:
        """Open a session."""
        session = Session(policy, len(policy), self.clock())
        self._open[session.id] = session
        self.opened += 1
        return session

    def get(self, name: str) -> Session:
        """The open session of an id, which has been used with this.

        Raises:
            UnknownSessionError: there is none.
        """
        session = self._open.get(name)
        if session is None:
            raise UnknownSessionError(
                f"no session {name[:40]!r} is open: it was closed, or {self.timeout:g} seconds went by without a request"
            )
        session.last_used = self.clock()
        return session

    def close(self, session: Session) -> None:
        """Forget a session; what is being answered still will be."""
        if self._open.pop(session.id, None) is not None:
            self.closed += 1

    def expire(self) -> None:
        """Forget sessions whose clients have not asked for anything in time."""
        oldest = self.clock() - self.timeout
        for session in list(self._open.values()):
            if session.pending is None and not session.is_changing and session.last_used < oldest:
                del self._open[session.id]
                self.expired += 1
