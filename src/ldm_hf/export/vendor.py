"""Files of npm packages: onnxruntime-web is fetched when something is exported, so that a page asks no other host."""

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from ldm_hf.env_registry.library.manifest import home
from ldm_hf.errors import HubError
from ldm_hf.utils.files import replacing

VERSION = "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_FILES = {
    "dist/ort.wasm.bundle.min.mjs": "ort.js",  # a static host may not know that .mjs is JavaScript
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}


def copy_runtime(folder: Path) -> None:
    """Put the files of onnxruntime-web that a page needs into a folder; raises as ``npm_files``."""
    kept = npm_files("onnxruntime-web", VERSION, _SHA512, _FILES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES.values():
        shutil.copyfile(kept / name, folder / name)


def npm_files(package: str, version: str, sha512: str, files: Mapping[str, str]) -> Path:
    """A folder with files of an npm package: in ``$LDM_HOME/npm``, fetched by npm if they are not there.

    Args:
        package: its name.
        version: the only one that is taken.
        sha512: of its archive, in Base64, as the registry and lock files of npm write it.
        files: paths in the package, and what the files are called in the folder.

    Raises:
        HubError: npm is missing or cannot fetch it, or fetches another archive.
    """
    kept = home() / "npm" / f"{package}-{version}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):  # who comes second finds what the first one fetched
        if not all((kept / name).is_file() for name in files.values()):
            with tempfile.TemporaryDirectory() as scratch:
                archive = _fetch(f"{package}@{version}", sha512, Path(scratch))
            with replacing(kept) as temporary:
                temporary.mkdir()
                _unpack(archive, files, temporary)
    return kept


def _fetch(package: str, sha512: str, folder: Path) -> bytes:
    """The archive of ``NAME@VERSION``, which npm downloads into a folder as its own settings say."""
    if shutil.which("npm") is None:
        raise HubError(f"npm, which fetches {package}, is not installed: install Node.js")
    done = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder), package],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise HubError(f"npm cannot fetch {package}: {' '.join(done.stderr.split())[:300] or 'it says nothing'}")
    content = archives[0].read_bytes()
    if hashlib.sha512(content).digest() != base64.b64decode(sha512):
        raise HubError(f"{package} is another archive than the one that its SHA-512 names: nothing was taken from it")
    return content


def _unpack(archive: bytes, files: Mapping[str, str], folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        for path, name in files.items():
            found = package.extractfile(f"package/{path}")
            assert found is not None
            (folder / name).write_bytes(found.read())
