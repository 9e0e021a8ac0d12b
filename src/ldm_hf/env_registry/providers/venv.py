"""Libraries in virtual environments: other versions of Python and of packages, but the user's own privileges."""

import contextlib
import functools
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import filelock
import psutil
import uv

from ldm_hf.env_registry.library.manifest import home
from ldm_hf.env_registry.providers.base import WORKER_VARIABLES, IsolatedProvider, Limits, ProcessHandle, local_source
from ldm_hf.errors import EnvironmentFailure
from ldm_hf.utils.files import remove

_log = logging.getLogger(__name__)

WORKER_REQUIREMENTS = ("numpy", "msgpack")
"""What a worker needs beside its library."""

_MARKER = "installed.json"  # written last: an installation without it is half an installation
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")  # of the user's variables: no secrets
_KILL_TIMEOUT = 5.0

# What finds and builds packages; addresses of indexes and proxies may hold a password, which is theirs.
_BUILD_VARIABLE = re.compile(
    r"PATH|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|SOURCE_DATE_EPOCH"
    r"|(?i:https?|all|no)_(?i:proxy)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_CAINFO"
    r"|PIP_(CONFIG_FILE|(EXTRA_)?INDEX_URL|NO_INDEX|FIND_LINKS|TRUSTED_HOST|CERT|PROXY|DEFAULT_TIMEOUT|RETRIES)"
    r"|UV_(CONFIG_FILE|((DEFAULT|EXTRA|NO)_)?INDEX(_URL|_STRATEGY)?|FIND_LINKS|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS)"
    r"|UV_(HTTP_TIMEOUT|OFFLINE|LINK_MODE|CONCURRENT_\w+)|(PIP|UV)_(NO_)?CACHE(_DIR)?"
    r"|CC|CXX|CPP|FC|LD|AR|(C|CXX|CPP|F|LD|MAKE)FLAGS|CMAKE_PREFIX_PATH|PKG_CONFIG_PATH|CPATH|LIBRARY_PATH|CUDA_(HOME|PATH)"
)


class VenvProvider(IsolatedProvider):
    """A virtual environment with the library's own Python, made with uv, or with pip where uv cannot."""

    name = "venv"

    @property
    def folder(self) -> Path:
        """Where the installation is, or will be."""
        return home() / "envs" / f"{self.manifest.slug}-{self.manifest.build_key}"

    @property
    def python(self) -> Path:
        """The installation's interpreter."""
        return self.folder / "bin" / "python"

    def is_built(self) -> bool:
        """Whether the installation is complete."""
        return (self.folder / _MARKER).exists()

    def was_built(self) -> bool:
        """Whether any installation of the library is complete, of whatever build key."""
        any_key = "?" * len(self.manifest.build_key)  # exactly as long: "gym-*" would be gym-maze's, too
        return any(self.folder.parent.glob(f"{self.manifest.slug}-{any_key}/{_MARKER}"))

    def build(self) -> None:
        """Install the library, unless that is done; two processes that try wait for each other.

        Raises:
            EnvironmentFailure: there is no such Python, or a package cannot be installed.
        """
        if self.is_built():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.folder}.lock"):
            if self.is_built():
                return
            remove(self.folder)
            manifest = self.manifest
            _log.warning("Installing %s for Python %s (%s)", manifest.slug, manifest.python, self._occasion())
            interpreter = find_python(manifest.python)
            try:
                with tempfile.TemporaryDirectory(prefix="ldm-build-") as scratch:
                    self._install(interpreter, Path(scratch))
                (self.folder / "home").mkdir()
                (self.folder / _MARKER).write_text(json.dumps({"lock": manifest.lock}), encoding="utf-8")
            except BaseException:
                remove(self.folder)
                raise

    def remove(self) -> None:
        """Remove the folder of the installation."""
        remove(self.folder)

    def source_of(self, address: str) -> str | None:
        """The path of an address, if it is that of a requirement."""
        named = {str(source) for requirement in self.manifest.requirements if (source := local_source(requirement))}
        path = unquote(address.removeprefix("file://"))
        return path if path in named else None

    def launch(self, folder: Path, limits: Limits) -> ProcessHandle:
        """Start a worker in a session of its own, with a home folder of its own."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the worker has ended
        process = subprocess.Popen(
            [self.python, folder / "main.py", folder / "socket"],
            cwd=self.folder / "home",
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        if hasattr(resource, "prlimit"):
            # Set from here while the interpreter starts: code between fork and exec is not safe beside threads.
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (limits.memory, limits.memory))
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limits.file_size, limits.file_size))
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        return _Process(process, errors)

    def provenance(self) -> dict[str, str]:
        """Provider, version of Python and the manifest's build key."""
        return {"provider": self.name, "python": self.manifest.python, "build": self.manifest.build_key}

    def _install(self, interpreter: Path, scratch: Path) -> None:
        run = functools.partial(_run, variables=build_variables(scratch))
        manifest, subject = self.manifest, f"the library {self.manifest.slug!r}"
        # A locked installation needs no resolution; that is also how versions that contradict each other are kept.
        what = ["--no-deps", *manifest.lock] if manifest.lock else [*manifest.requirements, *WORKER_REQUIREMENTS]
        options = ["--no-build-isolation"] if manifest.build_requirements else []
        if manifest.installer == "uv":
            run([uv.find_uv_bin(), "venv", "--quiet", "--seed", "--python", interpreter, self.folder], subject)
            install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--python", self.python]
        else:
            run([interpreter, "-m", "venv", self.folder], subject)
            install = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if manifest.build_requirements:
            run([*install, *manifest.build_requirements], subject)
        run([*install, *options, *what], subject)

    def _variables(self) -> dict[str, str]:
        return {
            **WORKER_VARIABLES,
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.defpath}",
            "HOME": str(self.folder / "home"),
            "CUDA_VISIBLE_DEVICES": "",
            **self.manifest.environment,
        }


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors

    def poll(self) -> str | None:
        status = self._process.poll()
        if status is None:
            return None
        with contextlib.suppress(ValueError, OSError):
            self._errors.seek(0)
            tail = " ".join(self._errors.read().decode(errors="replace").split())[-500:]
            return f"exited with status {status}: {tail}" if tail else f"exited with status {status}"
        return f"exited with status {status}"

    def kill(self) -> None:
        """End the supervisor, which ends what it started; what survives that is killed one by one."""
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self._process.pid)
            descendants = supervisor.children(recursive=True)
            try:
                self._process.wait(_KILL_TIMEOUT)  # Its lifeline is closed: it ends by itself.
            except subprocess.TimeoutExpired:
                self._process.kill()
            for process in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_TIMEOUT)
        self._errors.close()


def find_python(version: str) -> Path:
    """An interpreter of a version such as ``"3.8"``: what uv finds, otherwise one that pyenv installed.

    Raises:
        EnvironmentFailure: there is none.
    """
    found = subprocess.run(
        [uv.find_uv_bin(), "python", "find", "--no-project", version], check=False, capture_output=True
    )
    if found.returncode == 0 and found.stdout.strip():
        return Path(found.stdout.decode().strip())
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for interpreter in sorted(root.glob(f"versions/{version}.*/bin/python")):
        return interpreter
    on_path = shutil.which(f"python{version}")
    if on_path and subprocess.run([on_path, "--version"], check=False, capture_output=True).returncode == 0:
        return Path(on_path)
    raise EnvironmentFailure(
        f"there is no Python {version} here; try: uv python install {version}, or the docker provider"
    )


def build_variables(scratch: Path) -> dict[str, str]:
    """The environment of installers, and so of what packages run when they are built: none of the user's secrets.

    It holds what ``_BUILD_VARIABLE`` matches, a home folder of its own, and where pip's and uv's settings and caches lie.

    Args:
        scratch: an empty folder, the home.
    """
    home_folder = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home_folder / ".cache")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home_folder / ".config")
    files = {
        "PIP_CONFIG_FILE": [config / "pip/pip.conf", home_folder / ".pip/pip.conf"],
        "UV_CONFIG_FILE": [config / "uv/uv.toml"],
    }
    found = {name: next(filter(Path.is_file, paths), None) for name, paths in files.items()}
    return {
        "PATH": os.defpath,
        "PIP_CACHE_DIR": str(cache / "pip"),
        "UV_CACHE_DIR": str(cache / "uv"),
        **{name: str(path) for name, path in found.items() if path is not None},
        **{name: value for name, value in os.environ.items() if _BUILD_VARIABLE.fullmatch(name)},
        "HOME": str(scratch),
    }


def _run(command: list[object], subject: str, variables: dict[str, str]) -> None:
    """Run an installer; its output is shown only as part of the error."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=variables["HOME"],  # not here, where uv would obey the project that this happens to be a folder of
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
    )
    if done.returncode:
        tail = " ".join(done.stdout.split())[-1000:]
        raise EnvironmentFailure(f"{subject} could not be installed: {tail}")
