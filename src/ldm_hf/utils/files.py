"""Writing files and folders so that a crash, a kill or a full disk never leaves half of one under its final name."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ldm_hf.errors import ConfigError, StorageError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MARK = ".partial-"
_ASIDE = f"{_MARK}replaced"
_LOCK = ".ldm-lock"
_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write a file or folder to; it takes its place when the block succeeds.

    When the block raises, what was written is removed and what stood at ``path`` before is still there.

    Raises:
        StorageError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{_MARK}{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        _share_weights(temporary)
        publish(temporary, path)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise StorageError(f"{path} cannot be written: {error.strerror}; what was there before is untouched") from error
    except SafetensorError as error:  # which is how safetensors reports a full disk
        reason = " ".join(str(error).split())
        raise StorageError(f"{path} cannot be written: {reason}; what was there before is untouched") from error
    finally:
        remove(temporary)


def _share_weights(written: Path) -> None:
    """Let others read weights as they read the files beside them: safetensors 0.8 writes for the owner alone."""
    files = written.rglob("*.safetensors") if written.is_dir() else [written]
    for file in files:
        if ".safetensors" in file.name and file.is_file() and file.stat().st_mode & 0o077 == 0:
            file.chmod(0o666 & ~_UMASK)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside ``path``, on the same disk, that is gone afterwards; ``remove_leftovers`` knows it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f"{path.name}{_MARK}{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder that one process may write to at a time, on whatever machine; readers need not ask.

    The system lets go of it when the process ends, in whatever way.

    Raises:
        ConfigError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"another process is writing to {folder}: let it finish, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def publish(temporary: Path, path: Path) -> None:
    """Move a finished file or folder to its final name, replacing what is there."""
    if path.is_dir():
        # A folder cannot be renamed over another: the old one steps aside first. Should this process be killed before
        # the new one is in its place, `remove_leftovers` brings the old one back.
        aside = path.with_name(path.name + _ASIDE)
        remove(aside)
        path.rename(aside)
        temporary.rename(path)
        remove(aside)
    else:
        temporary.replace(path)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder that nobody else is writing to, and bring back what they had moved."""
    for aside in folder.glob(f"*{_ASIDE}"):
        path = aside.with_name(aside.name.removesuffix(_ASIDE))
        if not path.exists():
            aside.rename(path)
    for path in folder.glob(f"*{_MARK}*"):
        remove(path)
