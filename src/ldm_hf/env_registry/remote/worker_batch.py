"""The environments of one worker as the client sees them: spaces, shared numbers, requests."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldm_hf.env_registry.experts import Expert
from ldm_hf.env_registry.providers.base import IsolatedProvider, Limits
from ldm_hf.env_registry.remote.worker_process import START_TIMEOUT, WorkerProcess
from ldm_hf.env_registry.worker.protocol import SharedBatch
from ldm_hf.errors import ConfigError, EnvironmentFailure
from ldm_hf.modeling.spaces_ldm import InvalidValueError, space_from_json

STEP_TIMEOUT = 60.0
"""Seconds that a step or a reset may take."""

CLIENT_SPIN, WORKER_SPIN = 500e-6, 200e-6
"""Seconds to keep asking for a message before sleeping: waking a sleeping process costs more than a short step takes."""


_MAX_ELEMENTS = 1 << 24  # of a space, each with bounds: nothing larger is an observation


@dataclass(frozen=True)
class RemoteSettings:
    """What a remote environment is made of; plain data, so that it can be pickled to another process.

    Attributes:
        provider: the library's isolated installation.
        name: the environment's Gymnasium id.
        render_mode: as in ``gymnasium.make``.
        max_episode_steps: steps after which an episode is truncated; None takes the library's, or the manifest's default.
        kwargs: for the environment's constructor.
        limits: what a worker may use.
        step_timeout: seconds that a step or a reset may take.
        start_timeout: seconds that starting a worker, importing the library and making the environments may take, each.
        restart: whether a worker that fails is replaced, its environments' episodes ending as truncated.
        expert: what chooses actions beside the environments, if they are asked for.
    """

    provider: IsolatedProvider
    name: str
    render_mode: str | None = None
    max_episode_steps: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()
    step_timeout: float = STEP_TIMEOUT
    start_timeout: float = START_TIMEOUT
    restart: bool = False
    expert: Expert | None = None

    def __post_init__(self) -> None:
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ConfigError(f"max_episode_steps must be at least 1, got {self.max_episode_steps}")
        for name in ("step_timeout", "start_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)}")

    @property
    def id(self) -> str:
        """The environment's id with its library."""
        return f"{self.provider.manifest.slug}/{self.name}"

    def recipe(self) -> dict[str, Any]:
        """What a worker makes the environment from."""
        return {
            **self.provider.manifest.recipe(self.name),
            "render_mode": self.render_mode,
            "max_episode_steps": self.max_episode_steps,
            "kwargs": {**self.provider.manifest.arguments_of(self.name), **self.kwargs},
        }


class WorkerBatch:
    """``num_envs`` environments in one worker.

    Attributes:
        description: what the worker says of the environments: spaces as JSON, time limit, render modes.
        observation_space, action_space: of one environment, as Gymnasium spaces.
        shared: the numbers of the last step, in memory that the worker writes to.
    """

    def __init__(self, settings: RemoteSettings, num_envs: int, *, autoreset: str, spin: bool) -> None:
        """Start a worker and make the environments in it.

        Raises:
            EnvironmentFailure: that failed; nothing is left of it.
        """
        self.settings, self.num_envs = settings, num_envs
        self._spin = CLIENT_SPIN if spin else 0.0
        self._worker = WorkerProcess(settings.provider, settings.id, settings.limits, settings.start_timeout)
        try:
            make = {"recipe": settings.recipe(), "num_envs": num_envs, "autoreset": autoreset}
            make["expert"] = None if settings.expert is None else vars(settings.expert)
            self.description = self._worker.ask(settings.start_timeout, do="make", spin=WORKER_SPIN, **make)
            with self.trust():
                observation, action = self.description["observation_space"], self.description["action_space"]
                if _elements(observation) + _elements(action) > _MAX_ELEMENTS:
                    raise ValueError(f"spaces of more than {_MAX_ELEMENTS} numbers")
                _check_description(self.description)
                self.observation_space, self.action_space = space_from_json(observation), space_from_json(action)
                self.shared = SharedBatch(observation, action, num_envs)
                if self.shared.nbytes > settings.limits.memory:
                    raise ValueError(
                        f"its numbers take {self.shared.nbytes} bytes, its limit is {settings.limits.memory}"
                    )
            self._worker.share(self.shared)
        except BaseException:
            self._worker.close()
            raise

    def reset(
        self,
        seeds: Sequence[int | None],
        options: Sequence[dict[str, Any] | None],
        mask: Sequence[bool] | None = None,
    ) -> dict[str, Any]:
        """Reset the environments of the mask, or all; the observations are in ``shared``."""
        self.send_reset(seeds, options, mask)
        return self.receive("reset")

    def send_reset(
        self,
        seeds: Sequence[int | None],
        options: Sequence[dict[str, Any] | None],
        mask: Sequence[bool] | None = None,
    ) -> None:
        """The same without waiting."""
        flags = None if mask is None else [bool(flag) for flag in mask]
        request = {"seeds": list(seeds), "options": list(options), "mask": flags}
        self._worker.send(self.settings.step_timeout, do="reset", **request)

    def write_actions(self, actions: Sequence[Any]) -> list[list[Any]] | None:
        """Write actions, one batched array a leaf of the action space, where the worker reads them.

        Returns:
            Those that have no fixed size, for ``send_step``: a list an environment; None if there are none.

        Raises:
            InvalidValueError: they do not have the shape of the action space, or are of another kind.
        """
        inline: list[list[Any]] | None = None
        for shared, values in zip(self.shared.actions, actions, strict=True):
            if shared is None:
                inline = inline or [[] for _ in range(self.num_envs)]
                for row, value in zip(inline, values, strict=True):
                    row.append(value)
                continue
            array = np.asarray(values)
            if array.shape != shared.shape:
                raise InvalidValueError(
                    f"{self.settings.id}: actions have shape {array.shape}, the action space says {shared.shape}"
                )
            try:
                np.copyto(shared, array, casting="same_kind")
            except TypeError as error:
                raise InvalidValueError(f"{self.settings.id}: actions are of another kind: {error}") from None
            if shared.dtype.kind in "iu" and shared.dtype != array.dtype and not np.array_equal(shared, array):
                raise InvalidValueError(f"{self.settings.id}: actions do not fit {shared.dtype}: {array.ravel()[:8]}")
        return inline

    def send_step(self, inline: list[list[Any]] | None) -> None:
        """Have all environments take the actions that were written."""
        if inline is None:
            self._worker.send(self.settings.step_timeout, do="step")
        else:
            self._worker.send(self.settings.step_timeout, do="step", actions=inline)

    @property
    def deadline(self) -> float:
        """When what was sent has to end, of ``time.monotonic``."""
        return self._worker.deadline

    def fileno(self) -> int:
        """Of what becomes readable when that has ended."""
        return self._worker.fileno()

    @property
    def ended(self) -> bool:
        """Whether the worker is gone."""
        return self._worker.ended

    def check_number(self) -> None:
        """Raise ``ValueError`` unless ``shared`` holds what answers the last request."""
        if self.shared.number[0] != self._worker.number:
            raise ValueError(f"its numbers are those of request {self.shared.number[0]}, not {self._worker.number}")

    def receive(self, doing: str) -> dict[str, Any]:
        """Wait for the end of what was sent, a step or a reset; numbers are in ``shared``, infos in what is returned."""
        return self._worker.receive(self.settings.step_timeout, doing, spin=self._spin)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send any other request and wait for its answer."""
        return self._worker.ask(self.settings.step_timeout, do=do, **request)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    @contextlib.contextmanager
    def trust(self) -> Iterator[None]:
        """Whatever fails here fails because of what the worker answered."""
        try:
            yield
        except Exception as error:
            raise self.distrust(error) from error

    def distrust(self, error: Exception) -> EnvironmentFailure:
        """End the worker, because what it answered made an error; returns the one to raise."""
        reason = " ".join(str(error).split())
        return self._worker.fail(f"its answer is not understood ({type(error).__name__}: {reason})")


def _elements(space: Any) -> int:
    """How many numbers the boxes in a space's description have; building the space takes memory for each."""
    if isinstance(space, list):
        return sum(_elements(part) for part in space)
    if not isinstance(space, dict):
        return 0
    size: Any = space.get("shape", 0)
    if space.get("type") == "MultiBinary":
        size = space["n"]
    own = math.prod(size) if isinstance(size, list) else int(size)
    return own + sum(_elements(part) for key, part in space.items() if key not in ("low", "high", "nvec", "start"))


def _check_description(description: dict[str, Any]) -> None:
    modes, fps = description["render_modes"], description["render_fps"]
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise ValueError("render modes are not names")
    if fps is not None and not isinstance(fps, int | float):
        raise ValueError("frames per second are not a number")
    for key, kind in (("max_episode_steps", int), ("time_limit_is_default", bool)):
        if type(description[key]) is not kind:
            raise ValueError(f"{key} is a {type(description[key]).__name__}")
