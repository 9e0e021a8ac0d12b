"""The process of ``ldm serve``: checks what can be checked, listens, loads the model, and answers until it is to end."""

import ipaddress
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import replace

import psutil
import torch
import uvicorn

from ldm_hf.errors import ConfigError, one_line
from ldm_hf.hub.model_card import base_model_name
from ldm_hf.hub.pretrained import load_config, load_pretrained
from ldm_hf.serving.app import Application, Limits, make_app
from ldm_hf.serving.engine import Engine

_BACKLOG = 4096
_MOST_ENVIRONMENTS = 4096


def serve(
    model: str,
    host: str,
    port: int,
    limits: Limits,
    *,
    max_environments: int | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C, after which requests that have come are still answered.

    Args:
        model: folder, or name on the Hub.
        host, port: where to listen; 0 is any free port.
        limits: what is taken, but for ``max_environments``.
        max_environments: of all sessions together; by default as many as half of the free memory holds, at most 4,096.
        device: torch device.
        say: is told the address, and what the server takes.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: the port is taken, or the limits do not fit into memory.
        KeyboardInterrupt: it was interrupted, and has ended.
    """
    load_config(model)
    listener = listen(host, port)
    with listener:
        loaded, processor = load_pretrained(model)
        try:
            engine = Engine(loaded.to(device), processor)  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {device!r} cannot be used: {one_line(error, 200)}") from error
        limits = replace(limits, max_environments=room(engine, max_environments))
        application = Application(engine, base_model_name(model), limits)
        address = f"http://{_bracketed(host)}:{listener.getsockname()[1]}"
        each = engine.bytes_per_environment / 1e6
        say(f"{application.name} at {address}, for {limits.max_environments:,} environments of {each:,.1f} MB each")
        allow_connections()
        # uvicorn raises the signals that ended it once more, when all is done.
        previous = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            http_server(application).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, previous)


def http_server(application: Application, grace: int = 30) -> uvicorn.Server:
    """The server of an application, which says nothing but errors.

    Args:
        application: what it serves.
        grace: seconds that it waits at its end for requests that have not wholly come, or that cannot be answered.
    """
    config = uvicorn.Config(
        make_app(application),
        lifespan="on",
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=int(application.limits.session_timeout) + 60,
    )
    return uvicorn.Server(config)


def allow_connections() -> None:
    """Take as many connections as the system lets this process: by default often 1,024, which are fewer than sessions."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def room(engine: Engine, max_environments: int | None) -> int:
    """How many environments a server takes.

    Args:
        engine: the model, which is loaded.
        max_environments: how many are wanted; None: as many as half of the free memory holds, at most 4,096.

    Raises:
        ConfigError: the contexts of that many do not fit into the free memory.
    """
    device = engine.model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if max_environments is None:
        return max(1, min(_MOST_ENVIRONMENTS, free // 2 // (engine.bytes_per_environment + engine.bytes_of_images)))
    fit = free // engine.bytes_per_environment
    if max_environments > fit:
        each = engine.bytes_per_environment / 1e6
        raise ConfigError(f"{max_environments} environments of {each:,.1f} MB do not fit into memory: at most {fit} do")
    return max_environments


def check_access(host: str, token: str | None, unauthenticated: bool) -> None:
    """Refuse to serve other machines without a token, unless that is asked for.

    Raises:
        ConfigError: it is not.
    """
    if token is not None and (not token or not token.isascii() or not token.isprintable()):
        raise ConfigError("a token must be printable ASCII characters, at least one")
    if token is None and not unauthenticated and not _is_this_machine(host):
        raise ConfigError(
            f"host {host} lets other machines in: set a token by LDM_SERVE_TOKEN or --token, or say --unauthenticated"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the port is in use, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        reason = reason.partition(" (while")[0]  # what follows says the same once more
        advice = "choose another --port or --host"
        raise ConfigError(f"cannot listen on port {port} of {host!r}: {reason}; {advice}") from error


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
