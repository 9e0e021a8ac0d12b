"""Libraries in containers: code that is not trusted runs without network, privileges, or a file system to write to."""

import contextlib
import functools
import hashlib
import io
import logging
import os
import platform
import shlex
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil

from ldm_hf.env_registry.library.manifest import Manifest
from ldm_hf.env_registry.providers.base import WORKER_VARIABLES, IsolatedProvider, Limits, ProcessHandle, local_source
from ldm_hf.env_registry.providers.venv import WORKER_REQUIREMENTS
from ldm_hf.errors import EnvironmentFailure, MissingDependencyError
from ldm_hf.utils.dependencies import require

_log = logging.getLogger(__name__)

BASE_IMAGE = "python:{python}-slim-bookworm"
"""Template of the image that libraries are installed on; ``LDM_BASE_IMAGE`` replaces it, for sites with an own registry."""

OWNER_LABEL = "ldm-hf.owner"
"""Label of every container: the process that it belongs to."""

_PIDS_LABEL = "ldm-hf.pids"
_MOUNT = "/run/ldm"
_NOBODY = 65534
_KILL_TIMEOUT = 10.0
_PING_TIMEOUT, _REQUEST_TIMEOUT = 10.0, 600.0  # of the engine: a step of a build may say nothing for minutes
_LOCAL = "http+docker://localhost"  # what the SDK calls a Unix socket
_OUTPUT_KEPT = 1000  # characters of a build's output, for the message about its failure
_INSTALLATION = "/opt/ldm"


class DockerProvider(IsolatedProvider):
    """An image a library, through the Docker engine of this machine."""

    name = "docker"

    @property
    def base_image(self) -> str:
        """The image that the library is installed on."""
        return os.environ.get("LDM_BASE_IMAGE", BASE_IMAGE).format(python=self.manifest.python)

    @property
    def tag(self) -> str:
        """Name of the library's image; another manifest or another base image gives another name."""
        key = hashlib.sha256(f"{self.manifest.build_key} {self.base_image}".encode()).hexdigest()[:12]
        return f"{self._repository}:{key}"

    @property
    def _repository(self) -> str:
        return f"ldm-hf/{self.manifest.slug}"

    def is_built(self) -> bool:
        """Whether the engine has the image."""
        import docker.errors

        with _typed("the engine does not say what images it has"):
            try:
                engine().images.get(self.tag)
            except docker.errors.ImageNotFound:
                return False
        return True

    def was_built(self) -> bool:
        """Whether the engine has any image of the library, whatever it was built from."""
        with _typed("the engine does not say what images it has"):
            return bool(engine().images.list(name=self._repository))

    def build(self) -> None:
        """Build the image, unless the engine has it.

        Raises:
            EnvironmentFailure: no engine answers, or the build fails.
        """
        if self.is_built():
            return
        _log.warning("Building the image %s on %s (%s)", self.tag, self.base_image, self._occasion())
        subject, output = f"the image of {self.manifest.slug!r} could not be built", ""
        with _typed(subject):
            for line in engine().api.build(
                fileobj=self._context(),
                custom_context=True,
                tag=self.tag,
                rm=True,
                forcerm=True,  # of builds that fail, too
                labels={"ldm-hf.slug": self.manifest.slug},
                decode=True,
            ):
                text = line.get("stream", "")
                output = (output + text)[-_OUTPUT_KEPT:]
                if text.startswith("Step "):
                    _log.info("  %s", text.strip()[:100])
                if "error" in line:
                    raise EnvironmentFailure(f"{subject}: {_one_line(output + line['error'])}")

    def remove(self) -> None:
        """Remove the image, if the engine has it; layers that other images share stay."""
        import docker.errors

        with _typed(f"the image of {self.manifest.slug!r} could not be removed"):
            try:
                engine().images.remove(self.tag)
            except docker.errors.ImageNotFound:
                return

    def source_of(self, address: str) -> str | None:
        """The path on this machine of what was copied into the image, and installed from there."""
        source = self._sources().get(unquote(address.removeprefix("file://")))
        return None if source is None else str(source)

    def launch(self, folder: Path, limits: Limits) -> ProcessHandle:
        """Start a worker in a container that can do nothing but talk to its socket and compute."""
        from docker.types import LogConfig, Mount, Ulimit

        user = (os.getuid(), os.getgid()) if os.getuid() else (_NOBODY, _NOBODY)
        with _typed(f"the container of {self.manifest.slug!r} did not start"):
            _remove_orphans()
            # Not `run`, which asks a public registry for an image that is missing here: that one would be anybody's.
            container = engine().containers.create(
                self.tag,
                [f"{_INSTALLATION}/bin/python", f"{_MOUNT}/main.py", f"{_MOUNT}/socket"],
                auto_remove=True,
                labels=_labels(),
                user=f"{user[0]}:{user[1]}",
                environment={**WORKER_VARIABLES, "HOME": "/tmp", **self.manifest.environment},
                working_dir="/tmp",
                mounts=[Mount(_MOUNT, str(folder), type="bind", read_only=True)],
                use_config_proxy=False,  # an address that may hold the user's password
                network_mode="none",
                ipc_mode="none",
                read_only=True,
                tmpfs={"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_size}"},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                mem_limit=limits.memory,
                memswap_limit=limits.memory,
                nano_cpus=int(limits.cpus * 1e9),
                pids_limit=limits.processes,
                ulimits=[
                    Ulimit(name="core", soft=0, hard=0),
                    Ulimit(name="fsize", soft=limits.file_size, hard=limits.file_size),
                    Ulimit(name="nofile", soft=1024, hard=1024),
                ],
                log_config=LogConfig(type="none"),
            )
            try:
                container.start()
            except BaseException:
                _Container(container).kill()
                raise
        return _Container(container)

    def provenance(self) -> dict[str, str]:
        """Provider, version of Python, and the image with its digest."""
        with _typed(f"the image of {self.manifest.slug!r} is not there"):
            image = engine().images.get(self.tag)
        return {"provider": self.name, "python": self.manifest.python, "image": self.tag, "digest": str(image.id)}

    def _wanted(self) -> tuple[str, ...]:
        return self.manifest.lock or (*self.manifest.requirements, *WORKER_REQUIREMENTS)

    def _sources(self) -> dict[str, Path]:
        """What requirements name by a path: where it lies in the build container, and here."""
        sources = [source for package in self._wanted() if (source := local_source(package))]
        return {f"/build/sources/{index}/{source.name}": source for index, source in enumerate(dict.fromkeys(sources))}

    def _context(self) -> io.BytesIO:
        """A build context: the Dockerfile, the list of packages, and the sources that a requirement names by their path."""
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as archive:
            places = {path: inside for inside, path in self._sources().items()}
            for source, inside in places.items():
                archive.add(source, inside.removeprefix("/build/"), filter=_unless_made)
            local = {package: local_source(package) for package in self._wanted()}
            packages = [package if source is None else places[source] for package, source in local.items()]
            _add(archive, "sources/.keep", "")
            _add(archive, "packages.txt", "\n".join(packages) + "\n")
            _add(archive, "Dockerfile", dockerfile(self.manifest, self.base_image))
        context.seek(0)
        return context


def dockerfile(manifest: Manifest, base_image: str) -> str:
    """The recipe of a library's image."""
    system = shlex.join(manifest.system_packages)
    apt = f"apt-get update && apt-get install -y --no-install-recommends {system} && rm -rf /var/lib/apt/lists/*"
    pip = f"{_INSTALLATION}/bin/python -m pip install --no-cache-dir --disable-pip-version-check"
    steps = [
        f"FROM {base_image}",
        f"RUN {apt}" if system else "",
        f"RUN python3 -m venv {_INSTALLATION}",
        f"RUN {pip} {shlex.join(manifest.build_requirements)}" if manifest.build_requirements else "",
        "COPY . /build",
        f"RUN {pip} {'--no-deps' if manifest.lock else ''} "
        f"{'--no-build-isolation' if manifest.build_requirements else ''} -r /build/packages.txt",
    ]
    return "\n".join(step for step in steps if step) + "\n"


@functools.cache
def engine() -> Any:
    """The Docker engine of this machine.

    Raises:
        MissingDependencyError: the Docker SDK is not installed.
        EnvironmentFailure: there is none; the message says what is missing.
    """
    require("the docker provider", "docker")
    import docker
    import docker.errors

    try:
        client = docker.from_env(timeout=_PING_TIMEOUT)
        if client.api.base_url != _LOCAL:
            raise EnvironmentFailure(
                f"the Docker engine at {client.api.base_url} is not reached by a Unix socket; workers must run on this "
                "machine: unset DOCKER_HOST"
            )
        client.ping()
    except (docker.errors.DockerException, OSError) as error:  # requests' errors are OSErrors
        raise EnvironmentFailure(f"no Docker engine answers: {_one_line(str(error))}") from error
    client.api.timeout = _REQUEST_TIMEOUT
    return client


def engine_problem() -> str | None:
    """Why containers cannot be used here; None if they can."""
    try:
        engine()
    except (EnvironmentFailure, MissingDependencyError) as failure:
        return str(failure)
    return None


class _Container:
    def __init__(self, container: Any) -> None:
        self._container = container

    def poll(self) -> str | None:
        import docker.errors

        try:
            self._container.reload()
        except docker.errors.NotFound:
            return "exited and its container was removed"
        except (docker.errors.APIError, OSError) as error:
            return f"is out of reach, its Docker engine does not answer: {_one_line(str(error))}"
        state = self._container.attrs["State"]
        if state["Status"] in ("created", "running", "restarting"):
            return None
        return f"exited with status {state['ExitCode']}" + (" (out of memory)" if state["OOMKilled"] else "")

    def kill(self) -> None:
        """Remove the container; the engine removes it by itself when its first process ends."""
        import docker.errors

        deadline = time.monotonic() + _KILL_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(docker.errors.APIError, OSError):
                try:
                    self._container.remove(force=True)
                except docker.errors.NotFound:
                    return
            time.sleep(0.02)


@contextlib.contextmanager
def _typed(subject: str) -> Iterator[None]:
    """Whatever the engine, or the way to it, fails with becomes an ``EnvironmentFailure``."""
    import docker.errors

    try:
        yield
    except (docker.errors.DockerException, OSError) as error:
        raise EnvironmentFailure(f"{subject}: {_one_line(str(error))}") from error


def _labels() -> dict[str, str]:
    """The process that a container belongs to, and the processes among which its number is unique."""
    pids = Path("/proc/self/ns/pid")
    return {
        OWNER_LABEL: str(os.getpid()),
        _PIDS_LABEL: f"{platform.node()}/{pids.stat().st_ino if pids.exists() else 0}",
    }


def _remove_orphans() -> None:
    """Remove containers whose process is gone.

    Containers remove themselves when their worker ends, but not those whose process was killed between making and starting
    them, and not those whose image holds a supervisor that stays.
    """
    import docker.errors

    api = engine().api
    for container in api.containers(all=True, filters={"label": f"{_PIDS_LABEL}={_labels()[_PIDS_LABEL]}"}):
        owner = container["Labels"].get(OWNER_LABEL, "")
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            with contextlib.suppress(docker.errors.APIError):
                api.remove_container(container["Id"], force=True)


def _unless_made(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what tools made in a folder of sources: setuptools would install old modules from ``build``."""
    name = Path(entry.name).name
    return None if name in ("build", "__pycache__", ".git", ".venv") or name.endswith(".egg-info") else entry


def _one_line(text: str) -> str:
    return " ".join(text.split())[-_OUTPUT_KEPT:]


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
