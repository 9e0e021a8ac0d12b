"""Gymnasium's own tests of vector environments, run on this package's.

They are in no distribution of Gymnasium on the package index, so they come from its source repository: a checkout that
``LDM_GYMNASIUM_SOURCE`` names, or the archive of the installed release, which is downloaded once per environment. They are
never committed. pytest takes this module as a plugin in a process of its own (``-p gymnasium_tests``): there, the vector
classes that the tests import are this package's, which run the environments that the tests define in workers.
"""

import base64
import importlib.metadata
import io
import os
import sys
import tarfile
import unittest.mock
import urllib.error
import urllib.request
from pathlib import Path

import cloudpickle
import gymnasium
from gymnasium.vector import AutoresetMode

FOLDER = Path(sys.prefix) / "gymnasium-tests" / importlib.metadata.version("gymnasium")
_ARCHIVE = "https://github.com/Farama-Foundation/Gymnasium/archive/refs/tags/v{}.tar.gz"
BRIDGE = "LDM_TESTED_BRIDGE"

_SYNC = gymnasium.vector.SyncVectorEnv  # which the provider of this process makes

DESELECTED = {
    "they are about methods that a worker's client lacks: reset_async, reset_wait, close(terminate), step_wait(timeout)": [
        "test_reset_timeout_async_vector_env",
        "test_step_timeout_async_vector_env",
        "test_reset_out_of_order_async_vector_env",
        "test_step_out_of_order_async_vector_env",
        "test_async_vector_subenv_error",
    ],
    "spaces that are none of Gymnasium's cannot be described to another process": [
        "test_custom_space_sync_vector_env",
        "test_custom_space_async_vector_env",
        "test_custom_space_async_vector_env_shared_memory",
    ],
    "the environments of one vector environment are copies of one": [
        "test_check_spaces_sync_vector_env",
        "test_check_spaces_async_vector_env",
    ],
    "a Discrete observation arrives as np.int64, and the test compares it with int": ["test_autoreset_within_step"],
    "the state of a sub-environment's own generator of random actions does not cross": [
        "test_sync_vector_env_seed",
        "test_sync_vector_determinism",
        "test_async_vector_env_seed",
    ],
    "they read the list of environments of SyncVectorEnv, which is in this process": ["test_metadata_sync_vector_env"],
}

DESELECTED_HERE = {  # and run in workers
    "the test's functions collect frames themselves, which the provider of this process does around them": [
        "test_call_sync_vector_env",
        "test_call_async_vector_env",
    ],
}


def source() -> Path | None:
    """The folder that holds ``tests/vector``; None if there is none, and none can be downloaded."""
    named = os.environ.get("LDM_GYMNASIUM_SOURCE")
    if named:
        return Path(named)
    if not FOLDER.is_dir():
        try:
            _download()
        except (OSError, urllib.error.URLError):
            return None
    return FOLDER


def _download() -> None:
    from ldm_hf.utils.files import replacing

    with urllib.request.urlopen(_ARCHIVE.format(FOLDER.name), timeout=60) as answer:
        archive = io.BytesIO(answer.read())
    with tarfile.open(fileobj=archive) as opened, replacing(FOLDER) as folder:
        members = [one for one in opened.getmembers() if Path(one.name).parts[1:2] == ("tests",)]
        for member in members:
            member.name = str(Path(*Path(member.name).parts[1:]))
        opened.extractall(folder, members, filter="data")


def vectorised(
    env_fns, *, autoreset_mode="NextStep", shared_memory=True, copy=True, context=None, observation_mode="same"
):
    """What the tests take for ``SyncVectorEnv`` and ``AsyncVectorEnv``: the same environments behind a provider."""
    from bridges import make_functions

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "tests" or name == "test_vec_envs":  # which workers cannot import
            cloudpickle.register_pickle_by_value(module)
    pickled = base64.b64encode(cloudpickle.dumps(list(env_fns))).decode()
    first = env_fns[0]()
    render_mode = first.render_mode
    first.close()
    if render_mode == "rgb_array_list":  # The wrapper that collects is inside the function.
        render_mode = None
    with unittest.mock.patch("gymnasium.vector.SyncVectorEnv", _SYNC):
        return make_functions(os.environ[BRIDGE], pickled, len(env_fns), AutoresetMode(autoreset_mode), render_mode)


def pytest_configure(config):
    """Put this package's classes where the tests import theirs."""
    if os.environ.get(BRIDGE):
        gymnasium.vector.SyncVectorEnv = gymnasium.vector.AsyncVectorEnv = vectorised


def pytest_collection_modifyitems(config, items):
    """Leave out what does not apply."""
    if os.environ.get(BRIDGE):
        chosen = [*DESELECTED.values(), *(DESELECTED_HERE.values() if os.environ[BRIDGE] == "inprocess" else ())]
        names = {name for listed in chosen for name in listed}
        # SyncVectorEnv and AsyncVectorEnv are one here, with shared memory or without: each test is run for one of them.
        twice = ("Async", "True", "venv_constructor1", "venv_constructor2", "vectorised1", "ASYNC")
        left_out = [
            item
            for item in items
            if item.originalname in names or ("[" in item.name and any(part in item.name for part in twice))
        ]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
