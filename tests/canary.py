"""A package whose installer tells what it saw: its environment variables, and whether it could write on the host."""

from pathlib import Path

_SETUP = """
import json, os
from setuptools import setup
from setuptools.command.build_py import build_py

class Canary(build_py):
    def run(self):
        super().run()
        os.makedirs({folder!r}, exist_ok=True)
        with open(os.path.join({folder!r}, "marker"), "a") as file:
            file.write("built")
        with open(os.path.join(self.build_lib, "ldm_canary_seen.py"), "w") as file:
            file.write("SEEN = " + repr(dict(os.environ)))

setup(name="ldm-canary", version="1.0", py_modules=["ldm_canary"], cmdclass={{"build_py": Canary}})
"""
_MODULE = """
import gymnasium
import numpy as np
from ldm_canary_seen import SEEN

class Canary(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def seen(self):
        return SEEN

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, False, False, {}

gymnasium.register("Canary-v0", entry_point=Canary, max_episode_steps=50)
"""


def write(folder: Path, marked: Path) -> Path:
    """The package's sources in a folder; its installer writes ``marked / "marker"``."""
    folder.mkdir()
    (folder / "setup.py").write_text(_SETUP.format(folder=str(marked)))
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools>=64"]\n')
    (folder / "ldm_canary.py").write_text(_MODULE)
    return folder
