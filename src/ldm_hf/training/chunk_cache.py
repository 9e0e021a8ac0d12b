"""Decoded chunks of a training run, in files that all processes of a node read: each chunk is decoded once on a node.

A file holds a chunk as one numpy array with a record for each transition. It is mapped into memory, the system's page
cache, so a sequence is where it is, until it is copied into its batch. Chunks are kept as they come until there is no
more room. None makes room for another: where the data do not fit, any chunk that is kept is as likely to be wanted as
any other.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldm_hf.modeling.spaces_ldm import Transitions

_log = logging.getLogger(__name__)

_PREFIX = "ldm-chunks-"
_IN_USE, _USED = "in-use", "used"


class ChunkCache:
    """Chunks by name; the one that was read last is held in memory.

    Args:
        folder: an empty folder, or that of another process's cache; by default none is kept.
        limit: bytes of all files in it.
    """

    def __init__(self, folder: Path | None = None, limit: int = 0) -> None:
        self._folder, self._limit = folder, limit
        self._last: tuple[str, Transitions] | None = None

    def read(self, name: str, window: slice, decode: Callable[[], Transitions]) -> Transitions:
        """Some transitions of a chunk, which is decoded where it is not kept."""
        if self._last is not None and self._last[0] == name:
            return self._last[1][window]
        kept = self._kept(name, window)
        if kept is not None:
            return kept
        transitions = decode()
        self._last = name, transitions
        self._keep(name, transitions)
        return transitions[window]

    def _kept(self, name: str, window: slice) -> Transitions | None:
        if self._folder is None:
            return None
        try:
            records = np.load(self._folder / name, mmap_mode="r")[window]
        except FileNotFoundError:
            return None
        return Transitions(**{**_OPTIONAL, **{field: records[field] for field in records.dtype.names}})

    def _keep(self, name: str, transitions: Transitions) -> None:
        """Write a chunk where all read it, if there is room."""
        if self._folder is None:
            return
        columns = {field: column for field, column in vars(transitions).items() if column is not None}
        described = [(field, column.dtype, column.shape[1:]) for field, column in columns.items()]
        record = np.dtype(described, align=True)
        partial = self._folder / f"{name}.{os.getpid()}"
        try:
            if not self._take(self._folder / _USED, record.itemsize * len(transitions)):
                return
            records = np.empty(len(transitions), record)
            for field, column in columns.items():
                records[field] = column
            with partial.open("wb") as file:
                np.save(file, records, allow_pickle=False)
            partial.replace(self._folder / name)
        except OSError as error:
            _log.warning(
                f"decoded chunks are not kept any more: {error}; set cache_gib to what {self._folder} has room for"
            )
            self._limit = 0
            partial.unlink(missing_ok=True)

    def _take(self, account: Path, size: int) -> bool:
        """Whether there is room for ``size`` bytes, which then are taken."""
        if size > self._limit:
            return False
        with account.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            used = int(file.read() or b"0")
            if used + size > self._limit:
                return False  # of this size; a smaller one may still fit
            file.truncate(0)
            file.write(str(used + size).encode())
        return True


_OPTIONAL = {"images": None, "reference_actions": None}


@contextlib.contextmanager
def node_cache(accelerator: Accelerator, limit: int) -> Generator[ChunkCache]:
    """The cache of this node, in a temporary folder that is removed at the end: ``limit`` bytes, or half of what is free.

    Every process calls this. A folder whose processes were killed is removed by the next run on that node.
    """
    folder, root = None, Path(tempfile.gettempdir())
    with contextlib.ExitStack() as held:
        if limit and accelerator.is_local_main_process:
            _remove_abandoned(root)
            limit = min(limit, shutil.disk_usage(root).free // 2)
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True))
            in_use = held.enter_context((Path(folder) / _IN_USE).open("wb"))
            fcntl.flock(in_use, fcntl.LOCK_EX)
        of_nodes = gather_object([(folder, limit)])
        folder, limit = of_nodes[accelerator.process_index - accelerator.local_process_index]
        yield ChunkCache(None if folder is None else Path(folder), limit)


def _remove_abandoned(root: Path) -> None:
    """Remove the caches that nobody uses: those of processes that were killed."""
    for in_use in root.glob(f"{_PREFIX}*/{_IN_USE}"):
        with contextlib.suppress(OSError), in_use.open("r+b") as file:  # another user's cannot be opened
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(in_use.parent, ignore_errors=True)
