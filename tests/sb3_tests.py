"""Stable-Baselines3's own tests of vector environments, run on ``Sb3VecEnv``.

They come from the source distribution of the installed release, which is downloaded once per environment through the index
that pip is configured with, and are never committed. pytest takes this module as a plugin in a process of its own
(``-p sb3_tests``): there, the vector classes that the tests import are this package's, with the environments that the tests
define in this process, in workers or in containers.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import stable_baselines3.common.vec_env as vec_env
from gymnasium.vector import AutoresetMode

from gymnasium_tests import BRIDGE, vectorised

FOLDER = Path(sys.prefix) / "sb3-tests" / importlib.metadata.version("stable_baselines3")

DESELECTED = {
    "it is about how SubprocVecEnv starts processes": ["test_subproc_start_method"],
    "it gives DummyVecEnv one environment several times, which a worker cannot be given": ["test_vecenv_func_checker"],
    "its environments differ in their wrappers; here all are copies of one": ["test_vec_env_is_wrapped"],
    "Tuple observations become a flat Dict, which policies can read": ["test_vecenv_tuple_spaces"],
    "it needs a screen": ["test_render"],
    "it gives a space of bytes actions of float64, which are refused": ["test_framestack_vecenv"],
}


def source() -> Path | None:
    """The folder that holds ``tests/test_vec_envs.py``; None if it cannot be downloaded."""
    if not FOLDER.is_dir():
        try:
            _download()
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
    return FOLDER


def _download() -> None:
    from ldm_hf.utils.files import replacing

    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        wanted = ["--no-binary", ":all:", "--dest", temporary, f"stable_baselines3=={FOLDER.name}"]
        subprocess.run([*command, *wanted], check=True, timeout=300, capture_output=True)
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as opened, replacing(FOLDER) as folder:
            members = [one for one in opened.getmembers() if Path(one.name).parts[1:2] == ("tests",)]
            for member in members:
                member.name = str(Path(*Path(member.name).parts[1:]))
            opened.extractall(folder, members, filter="data")


def bridged(env_fns, start_method=None):
    """What the tests take for ``SubprocVecEnv``: the same environments behind a provider."""
    from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv

    return Sb3VecEnv(vectorised(env_fns, autoreset_mode=AutoresetMode.SAME_STEP))


def dummy(env_fns):
    """What they take for ``DummyVecEnv``: the same, but not the same object, because the tests compare the classes."""
    return bridged(env_fns)


def pytest_configure(config):
    """Put this package's class where the tests import theirs."""
    if os.environ.get(BRIDGE):
        vec_env.DummyVecEnv, vec_env.SubprocVecEnv = dummy, bridged


def pytest_collection_modifyitems(config, items):
    """Leave out what does not apply, and run what is parametrised by the class for one of them."""
    if os.environ.get(BRIDGE):
        names = {name for listed in DESELECTED.values() for name in listed}
        left_out = [item for item in items if item.originalname in names or "dummy" in item.name.partition("[")[2]]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
