"""Acting by a model that another process serves: ``Client`` opens sessions with a server of ``ldm serve``.

It needs numpy and msgpack, not torch.
"""

import contextlib
import http.client
import itertools
import json
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_hf.env_registry.worker.decoding import decode
from ldm_hf.errors import InvalidRequestError, ServingError, UnknownSessionError, one_line
from ldm_hf.modeling.spaces_ldm import space_to_json
from ldm_hf.serving import wire

_CONNECTION_LOST = (ConnectionError, http.client.HTTPException)


class Client:
    """A connection to a server. Threads that share a client wait for each other; several processes must not share one.

    Args:
        address: of the server.
        token: that it was started with.
        timeout: seconds to wait for an answer.

    Examples:
        >>> with Client("http://127.0.0.1:8000") as client, client.session(observation_space, action_space) as session:
        ...     action = session.act(observation)
        ...     observation, reward, terminated, truncated, info = env.step(action)
        ...     action = session.act(observation, reward, terminated, truncated)
    """

    def __init__(self, address: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0) -> None:
        parts = urllib.parse.urlsplit(address)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or not parts.hostname:
            raise InvalidRequestError(f"address must be like http://127.0.0.1:8000, got {address!r}")
        self.address, self._timeout, self._path = address, timeout, parts.path.rstrip("/")
        self._connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._lock = threading.Lock()

    def model(self) -> dict[str, Any]:
        """What the server says of its model, of the spaces that fit, and of its limits."""
        return self._get("/model")

    def metrics(self) -> dict[str, Any]:
        """What the server has counted and measured."""
        return self._get("/metrics")

    def policy(
        self,
        environments: Sequence[Any],
        *,
        context_length: int | None = None,
        temperature: float = 0.0,
        exploration_temperature: float | None = None,
        seed: int = 0,
    ) -> "RemotePolicy":
        """Open a session for a batch of environments, which may be of different kinds; arguments as of ``LDMPolicy``.

        Args:
            environments: anything with ``observation_space`` and ``action_space``.
            context_length, temperature, exploration_temperature, seed: of the policy.

        Raises:
            UnsupportedSpaceError: an environment does not fit the model.
            ServerFullError: the server has no room for that many environments.
            ServingError: there is no server, or it refuses.
        """
        spaces = [(_described(env.observation_space), _described(env.action_space)) for env in environments]
        entries = [
            {"observation_space": observed, "action_space": acted, "num_envs": len(list(same))}
            for (observed, acted), same in itertools.groupby(spaces)
        ]
        options = {"context_length": context_length, "temperature": temperature, "seed": seed}
        options["exploration_temperature"] = exploration_temperature
        answer = self.request("POST", "/sessions", {"environments": entries, **options})
        return RemotePolicy(self, str(answer["session"]), [acted for _, acted in spaces])

    def session(self, observation_space: Any, action_space: Any, **options: Any) -> "RemoteSession":
        """Open a session for one environment; options as of ``policy``."""
        return RemoteSession(self.policy([_Spaces(observation_space, action_space)], **options))

    def request(
        self, method: str, path: str, message: dict[str, Any] | None = None, repeatable: bool = False
    ) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            method, path: of HTTP.
            message: the body.
            repeatable: whether to send it once more if the connection is lost.

        Raises:
            LDMError: what the server answered, or a ``ServingError`` where it did not.
        """
        body = None if message is None else wire.pack(message)
        with self._lock:
            try:
                status, kind, answer = self._exchange(method, path, body)
            except _CONNECTION_LOST as error:
                if not repeatable:
                    raise self._named(error) from error
                status, kind, answer = self._repeated(method, path, body)
            except OSError as error:
                raise self._named(error) from error
        return _read(status, kind, answer)

    def close(self) -> None:
        """Close the connection; sessions that are open end by the server's timeout."""
        self._connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _get(self, path: str) -> dict[str, Any]:
        return self.request("GET", path, repeatable=True)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str, bytes]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": wire.MEDIA_TYPE}
        try:
            self._connection.request(method, self._path + path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.headers.get_content_type(), response.read()
        except BaseException:
            self._connection.close()  # what may still come is no answer to the next request
            raise

    def _repeated(self, method: str, path: str, body: bytes | None) -> tuple[int, str, bytes]:
        try:
            return self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> ServingError:
        if isinstance(error, TimeoutError):
            return ServingError(f"{self.address} has not answered within {self._timeout:g} seconds")
        if isinstance(error, ConnectionRefusedError):
            return ServingError(f"no server listens at {self.address}: start one with `ldm serve MODEL`")
        return ServingError(f"the connection to {self.address} was lost: {one_line(error)}")


class RemotePolicy:
    """A policy of a server, used as an ``LDMPolicy`` is; ``Client.policy`` opens it.

    Close it when it is no longer needed, or use it as a context: it takes a place on the server.
    """

    def __init__(self, client: Client, session: str, action_spaces: list[dict[str, Any]]) -> None:
        self._client, self._path, self._action_spaces = client, f"/sessions/{session}", action_spaces
        self._step = 0

    def __len__(self) -> int:
        return len(self._action_spaces)

    def act(
        self,
        observations: Sequence[Any],
        rewards: Sequence[float] | None = None,
        terminated: Sequence[bool] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> list[Any]:
        """Choose an action for every environment, as ``LDMPolicy.act`` does.

        Args:
            observations: one observation per environment. After the end of an episode, that of the reset.
            rewards, terminated, truncated: what the last actions brought; left out at the first call only.

        Raises:
            InvalidValueError: an observation cannot be read; the session is as it was.
            UnknownSessionError: the session is closed, or was dropped for want of requests.
            ServingError: the server cannot be reached, or refuses.
        """
        if (rewards is None) != (self._step == 0):
            raise ValueError("rewards, terminated and truncated belong to every call but the first")
        seen = observations if isinstance(observations, np.ndarray) else list(observations)
        message: dict[str, Any] = {"step": self._step, "observations": seen}
        if rewards is not None:
            message["rewards"] = np.asarray(rewards, np.float64)
            message["terminated"], message["truncated"] = np.asarray(terminated, bool), np.asarray(truncated, bool)
        answer = self._client.request("POST", f"{self._path}/act", message, repeatable=True)
        self._step += 1
        return [decode(space, value) for space, value in zip(self._action_spaces, answer["actions"], strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these environments only, in this order."""
        self._client.request("POST", f"{self._path}/select", {"rows": [int(row) for row in rows]})
        self._action_spaces = [self._action_spaces[row] for row in rows]

    def close(self) -> None:
        """Give the session's place on the server back."""
        with contextlib.suppress(UnknownSessionError):
            self._client.request("DELETE", self._path, repeatable=True)

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(ServingError):  # of a server that has gone, which is no reason to hide another error
            self.close()


class RemoteSession:
    """A policy of a server for one environment; ``Client.session`` opens it."""

    def __init__(self, policy: RemotePolicy) -> None:
        self._policy = policy

    def act(
        self, observation: Any, reward: float | None = None, terminated: bool = False, truncated: bool = False
    ) -> Any:
        """Choose an action.

        Args:
            observation: what the environment shows. After the end of an episode, that of the reset.
            reward, terminated, truncated: what the last action brought; left out at the first call only.

        Raises:
            LDMError: as of ``RemotePolicy.act``.
        """
        outcome = () if reward is None else ([reward], [terminated], [truncated])
        return self._policy.act([observation], *outcome)[0]

    def close(self) -> None:
        """Give the session's place on the server back."""
        self._policy.close()

    def __enter__(self) -> "RemoteSession":
        return self

    def __exit__(self, *arguments: Any) -> None:
        self._policy.__exit__(*arguments)


class _Spaces:
    """What a policy must know of an environment."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def _described(space: Any) -> dict[str, Any]:
    return space if isinstance(space, dict) else space_to_json(space)


def _read(status: int, kind: str, answer: bytes) -> dict[str, Any]:
    """The message of an answer; raises the error that it describes."""
    if status < 400 and kind == wire.MEDIA_TYPE:
        return wire.unpack(answer)
    if status == 204:
        return {}
    try:
        data = json.loads(answer)
    except ValueError:
        data = None
    if status < 400 and isinstance(data, dict):
        return data
    raise wire.error_of(data)
