"""Gymnasium's own tests of vector environments, on the environments of every provider."""

import os
import re
import subprocess
import sys

import pytest

import gymnasium_tests
from bridges import BRIDGES, provider
from test_remote_env import TESTS

MODULES = ("vector_env", "autoreset_mode", "sync_vector_env", "async_vector_env", "vector_env_info")
LEAST = 100  # of 115 in Gymnasium 1.4, in each: fewer would mean that they were not found


@pytest.mark.slow
@pytest.mark.parametrize("bridge", BRIDGES)
def test_gymnasium_s_own_tests_pass(bridge):
    folder = gymnasium_tests.source()
    if folder is None:
        pytest.skip(
            "Gymnasium's tests can be had from its repository only, which is out of reach: LDM_GYMNASIUM_SOURCE"
        )
    provider(bridge)  # skips the test where there are no containers
    path = os.pathsep.join([str(TESTS), str(folder), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, gymnasium_tests.BRIDGE: bridge}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gymnasium_tests", "-p", "no:cacheprovider"]
    modules = [f"tests/vector/test_{name}.py" for name in MODULES]
    done = subprocess.run(
        [*command, *modules], cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=1200
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed is not None and int(passed[1]) >= LEAST, done.stdout[-4000:]
