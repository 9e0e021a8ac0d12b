"""Libraries in containers: code that is not trusted runs without network, privileges, or a file system to write to."""

import contextlib
import functools
import hashlib
import io
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from ldm_hf.env_registry.isolation import WORKER_VARIABLES, IsolatedProvider, Limits, WorkerProcess
from ldm_hf.env_registry.manifest import Manifest
from ldm_hf.env_registry.venv import WORKER_REQUIREMENTS
from ldm_hf.errors import EnvironmentFailure

BASE_IMAGE = "python:{python}-slim-bookworm"
"""Template of the image that libraries are installed on; ``LDM_BASE_IMAGE`` replaces it, for sites with an own registry."""

OWNER_LABEL = "ldm-hf.owner"
"""Label of every container: the process that it belongs to."""

_MOUNT = "/run/ldm"
_NOBODY = 65534
_KILL_TIMEOUT = 10.0
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
        return f"ldm-hf/{self.manifest.slug}:{key}"

    def is_built(self) -> bool:
        """Whether the engine has the image."""
        import docker.errors

        try:
            engine().images.get(self.tag)
        except docker.errors.ImageNotFound:
            return False
        return True

    def build(self) -> None:
        """Build the image, unless the engine has it.

        Raises:
            EnvironmentFailure: no engine answers, or the build fails.
        """
        import docker.errors

        if self.is_built():
            return
        print(f"Building the image {self.tag} on {self.base_image} (once)", file=sys.stderr)
        try:
            engine().images.build(
                fileobj=self._context(),
                custom_context=True,
                tag=self.tag,
                rm=True,
                labels={"ldm-hf.slug": self.manifest.slug},
            )
        except docker.errors.BuildError as error:
            output = " ".join("".join(line.get("stream", "") for line in error.build_log).split())
            raise EnvironmentFailure(
                f"the image of {self.manifest.slug!r} could not be built: {output[-1000:]}"
            ) from error
        except docker.errors.APIError as error:
            raise EnvironmentFailure(f"the image of {self.manifest.slug!r} could not be built: {error}") from error

    def launch(self, folder: Path, limits: Limits) -> WorkerProcess:
        """Start a worker in a container that can do nothing but talk to its socket and compute."""
        import docker.errors
        from docker.types import LogConfig, Mount, Ulimit

        user = (os.getuid(), os.getgid()) if os.getuid() else (_NOBODY, _NOBODY)
        try:
            container = engine().containers.run(
                self.tag,
                [f"{_INSTALLATION}/bin/python", f"{_MOUNT}/worker.py", f"{_MOUNT}/socket"],
                detach=True,
                auto_remove=True,
                labels={OWNER_LABEL: str(os.getpid())},
                user=f"{user[0]}:{user[1]}",
                environment={**WORKER_VARIABLES, "HOME": "/tmp", **self.manifest.environment},
                working_dir="/tmp",
                mounts=[Mount(_MOUNT, str(folder), type="bind", read_only=True)],
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
        except (docker.errors.APIError, docker.errors.ImageNotFound) as error:
            raise EnvironmentFailure(f"the container of {self.manifest.slug!r} did not start: {error}") from error
        return _Container(container)

    def provenance(self) -> dict[str, str]:
        """Provider, version of Python, and the image with its digest."""
        image = engine().images.get(self.tag)
        return {"provider": self.name, "python": self.manifest.python, "image": self.tag, "digest": str(image.id)}

    def _context(self) -> io.BytesIO:
        """A build context: the Dockerfile, the list of packages, and the sources that a requirement names by their path."""
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as archive:
            packages = []
            for package in self.manifest.lock or (*self.manifest.requirements, *WORKER_REQUIREMENTS):
                source = Path(package.partition(" @ ")[2].removeprefix("file://") or package)
                is_here = source.is_absolute() and source.exists()
                if is_here:
                    archive.add(source, f"sources/{source.name}")
                packages.append(f"/build/sources/{source.name}" if is_here else package)
            _add(archive, "sources/.keep", "")
            _add(archive, "packages.txt", "\n".join(packages) + "\n")
            _add(archive, "Dockerfile", dockerfile(self.manifest, self.base_image))
        context.seek(0)
        return context


def dockerfile(manifest: Manifest, base_image: str) -> str:
    """The recipe of a library's image."""
    system = " ".join(manifest.system_packages)
    apt = f"apt-get update && apt-get install -y --no-install-recommends {system} && rm -rf /var/lib/apt/lists/*"
    pip = f"{_INSTALLATION}/bin/python -m pip install --no-cache-dir --disable-pip-version-check"
    steps = [
        f"FROM {base_image}",
        f"RUN {apt}" if system else "",
        f"RUN python3 -m venv {_INSTALLATION}",
        f"RUN {pip} {' '.join(map(repr, manifest.build_requirements))}" if manifest.build_requirements else "",
        "COPY . /build",
        f"RUN {pip} {'--no-deps' if manifest.lock else ''} "
        f"{'--no-build-isolation' if manifest.build_requirements else ''} -r /build/packages.txt",
    ]
    return "\n".join(step for step in steps if step) + "\n"


@functools.cache
def engine() -> Any:
    """The Docker engine of this machine.

    Raises:
        EnvironmentFailure: there is none; the message says what is missing.
    """
    try:
        import docker
        import docker.errors
    except ImportError:
        raise EnvironmentFailure(
            "the docker provider needs the Docker SDK; try: pip install 'ldm_hf[docker]'"
        ) from None
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except docker.errors.DockerException as error:
        raise EnvironmentFailure(f"no Docker engine answers: {error}") from error
    if not client.api.base_url.startswith(("http+docker://", "http://localhost")):
        raise EnvironmentFailure(
            f"the Docker engine at {client.api.base_url} is on another machine: sockets don't reach it"
        )
    return client


def engine_problem() -> str | None:
    """Why containers cannot be used here; None if they can."""
    try:
        engine()
    except EnvironmentFailure as failure:
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
        state = self._container.attrs["State"]
        if state["Status"] in ("created", "running", "restarting"):
            return None
        return f"exited with status {state['ExitCode']}" + (" (out of memory)" if state["OOMKilled"] else "")

    def kill(self) -> None:
        """Remove the container; the engine removes it by itself when its first process ends."""
        import docker.errors

        deadline = time.monotonic() + _KILL_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(docker.errors.APIError):
                try:
                    self._container.remove(force=True)
                except docker.errors.NotFound:
                    return
            time.sleep(0.02)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
