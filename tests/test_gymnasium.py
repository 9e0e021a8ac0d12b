"""Gymnasium's and Stable-Baselines3's own tests of vector environments, on the environments of the providers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gymnasium_tests
import sb3_tests
from bridges import BRIDGES, provider
from test_remote_env import TESTS

MODULES = ("vector_env", "autoreset_mode", "sync_vector_env", "async_vector_env", "vector_env_info")


def passed(bridge: str, folder: Path, plugin: str, modules: list[str]) -> int:
    """How many tests pass; fails if one does not."""
    path = os.pathsep.join([str(TESTS), str(folder), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, gymnasium_tests.BRIDGE: bridge}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", plugin, "-p", "no:cacheprovider", *modules]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=1200)
    found = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and found is not None, done.stdout[-4000:]
    return int(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("bridge", BRIDGES)
def test_gymnasium_s_own_tests_pass(bridge):
    folder = gymnasium_tests.source()
    if folder is None:
        pytest.skip(
            "Gymnasium's tests can be had from its repository only, which is out of reach: LDM_GYMNASIUM_SOURCE"
        )
    if bridge == "docker":
        provider(bridge)  # skips the test where there are no containers
    number = passed(bridge, folder, "gymnasium_tests", [f"tests/vector/test_{name}.py" for name in MODULES])
    assert number >= 100  # of 115 in Gymnasium 1.4: fewer would mean that they were not found


@pytest.mark.slow
@pytest.mark.parametrize("bridge", ["inprocess", "venv"])  # the environments that they define import PyTorch
def test_stable_baselines3_s_own_tests_pass(bridge):
    folder = sb3_tests.source()
    if folder is None:
        pytest.skip("the source distribution of Stable-Baselines3 cannot be downloaded")
    assert passed(bridge, folder, "sb3_tests", ["tests/test_vec_envs.py"]) >= 14
