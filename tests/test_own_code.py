"""`ldm env add` of one's own code: a file, a class, a folder without packaging, a repository by its address."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import ldm_hf
from conftest import run_ldm_here
from ldm_hf.env_registry.library.add import _slug, requirement_of
from ldm_hf.env_registry.library.manifest import tomllib
from ldm_hf.env_registry.library.own_code import PYTHON, own_code
from ldm_hf.errors import ConfigError, UnknownEnvironmentError

WALK = '''"""A walk on a line."""
import os

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Walk(gymnasium.Env):
    observation_space = Box(-10, 10, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, goal=5):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.place += 2 * int(action) - 1
        self.steps += 1
        over = abs(self.place) >= self.goal
        return np.array([self.place], np.float32), float(over), over, self.steps >= 50, {}


class Helper:
    pass
'''


@pytest.fixture
def walk(tmp_path):
    path = tmp_path / "my_walk.py"
    path.write_text(WALK)
    return path


def project(keys) -> Path:
    (folder,) = keys["requirements"]
    return Path(folder)


@pytest.mark.parametrize("named", [":Walk", ""])
def test_a_file_becomes_a_project(named, walk, tmp_path):
    keys = own_code(f"{walk}{named}", tmp_path / "out")
    assert keys["slug"] == "my-walk" and keys["python"] == PYTHON
    assert keys["entry_points"] == [{"name": "Walk-v0", "entry_point": "my_walk:Walk"}]
    settings = tomllib.loads((project(keys) / "pyproject.toml").read_text())
    versions = [f"gymnasium=={gymnasium.__version__}", f"numpy=={np.__version__}"]
    assert settings["project"]["dependencies"] == versions  # of those installed here; os is Python's own
    assert settings["tool"]["setuptools"]["py-modules"] == ["my_walk"]
    assert (project(keys) / "my_walk.py").read_text() == WALK


def test_changed_code_is_another_project(walk, tmp_path):
    before = project(own_code(str(walk), tmp_path / "out"))
    assert project(own_code(str(walk), tmp_path / "out")) == before
    walk.write_text(WALK.replace("goal=5", "goal=6"))
    assert project(own_code(str(walk), tmp_path / "out")) != before


def test_what_python_leaves_beside_code_changes_nothing(walk, tmp_path):
    package = tmp_path / "walks"
    package.mkdir()
    (package / "__init__.py").write_text(WALK)
    before = project(own_code(str(package), tmp_path / "out"))
    for name in ("__pycache__", ".git", "venv"):
        (package / name).mkdir()
        (package / name / "other.py").write_text("import pandas\n")
    assert project(own_code(str(package), tmp_path / "out")) == before


def test_what_cannot_be_added_says_why(walk, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"no such file: nowhere\.py"):
        own_code("nowhere.py:Walk", out)
    with pytest.raises(ConfigError, match="defines no 'Run'; it has Walk, Helper"):
        own_code(f"{walk}:Run", out)
    walk.write_text("class Helper:\n    pass\n")
    with pytest.raises(ConfigError, match=r"no class that derives from gymnasium.Env: name one, my_walk.py:Class"):
        own_code(str(walk), out)
    walk.write_text("class Helper\n")
    with pytest.raises(ConfigError, match="is not a module of Python"):
        own_code(str(walk), out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no Python module"):
        own_code(str(tmp_path / "empty"), out)
    with pytest.raises(ConfigError, match="no module is called 'no_such_module'"):
        own_code("no_such_module.envs:Walk", out)
    assert not out.exists()


def test_a_folder_without_packaging_becomes_a_project_and_one_with_it_does_not(walk, tmp_path):
    package = tmp_path / "code" / "walks"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("from .envs import Walk\n")
    (package / "envs.py").write_text(WALK)
    (package / "data" / "levels.txt").write_text("1 2 3")
    (package / ".git").mkdir()
    keys = own_code(str(tmp_path / "code"), tmp_path / "out")
    assert keys["slug"] == "code" and keys["modules"] == ["walks"] and keys["entry_points"] == []
    copied = {path.relative_to(project(keys)).as_posix() for path in project(keys).rglob("*") if path.is_file()}
    assert copied == {"pyproject.toml", "walks/__init__.py", "walks/envs.py", "walks/data/levels.txt"}
    (tmp_path / "code" / "pyproject.toml").write_text("[project]\nname='walks'\n")
    assert own_code(str(tmp_path / "code"), tmp_path / "out") is None


def test_a_class_that_can_be_imported(tmp_path, monkeypatch):
    keys = own_code("gymnasium.envs.classic_control:CartPoleEnv", tmp_path)
    assert keys["requirements"] == [f"gymnasium=={gymnasium.__version__}"]
    assert keys["entry_points"][0]["name"] == "CartPoleEnv-v0"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks").mkdir()
    (tmp_path / "walks" / "__init__.py").write_text(WALK)
    keys = own_code("walks:Walk", tmp_path / "out")
    assert keys["slug"] == "walks" and (project(keys) / "walks" / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("typed", "requirement", "slug"),
    [
        ("gym-maze==1.0", "gym-maze==1.0", "gym-maze"),
        ("https://github.com/a/Some_Envs", "git+https://github.com/a/Some_Envs", "some-envs"),
        ("https://example.org/a/b.git@feature/x", "git+https://example.org/a/b.git@feature/x", "b"),
        ("https://example.org/a/b.git", "git+https://example.org/a/b.git", "b"),
        ("https://github.com/a/b@v1.2", "git+https://github.com/a/b@v1.2", "b"),
        ("git+https://github.com/a/b.git@feature/x", "git+https://github.com/a/b.git@feature/x", "b"),
        ("git@github.com:a/b.git", "git+ssh://git@github.com/a/b.git", "b"),
        ("ssh://git@example.org/a/b.git@v1", "git+ssh://git@example.org/a/b.git@v1", "b"),
        ("git+file:///srv/b@v1", "git+file:///srv/b@v1", "b"),
        ("https://github.com/a/b/archive/main.zip", "https://github.com/a/b/archive/main.zip", "main-zip"),
    ],
)
def test_repositories_are_named_as_their_users_name_them(typed, requirement, slug):
    assert (requirement_of(typed), _slug(requirement_of(typed))) == (requirement, slug)


@pytest.mark.slow
def test_a_file_is_added_and_made(walk, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_HOME", str(tmp_path / "home"))
    done = run_ldm_here("env", "add", f"{walk}:Walk")
    assert done.returncode == 0, done.stderr
    assert "my-walk: 1 environments validated, 0 failed" in done.stdout
    env = ldm_hf.make("my-walk/Walk-v0")
    env.reset(seed=0)
    steps = [env.step(1) for _ in range(5)]
    assert [step[2] for step in steps] == [False, False, False, False, True] and steps[-1][1] == 1
    env.close()
    env = ldm_hf.make("my-walk/Walk-v0", goal=2)
    env.reset(seed=0)
    assert [env.step(1)[2] for _ in range(2)] == [False, True]
    env.close()


@pytest.mark.slow
def test_an_environment_that_requires_arguments_is_made_with_them(walk, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_HOME", str(tmp_path / "home"))
    walk.write_text(WALK.replace("goal=5", "goal"))
    done = run_ldm_here("env", "add", f"{walk}:Walk")
    assert done.returncode == 1 and "--kwargs '{\"goal\": ...}'" in done.stderr
    with pytest.raises(UnknownEnvironmentError, match="give them to make"):
        ldm_hf.make("my-walk/Walk-v0")
    env = ldm_hf.make("my-walk/Walk-v0", goal=2)
    env.reset(seed=0)
    assert [env.step(1)[2] for _ in range(2)] == [False, True]
    env.close()
    envs = ldm_hf.make_vec("my-walk/Walk-v0", 2, goal=1)
    envs.reset(seed=0)
    assert envs.step(np.array([1, 0]))[2].tolist() == [True, True]
    envs.close()


@pytest.mark.slow
def test_a_repository_is_added_by_a_tag(walk, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "walks"
    (folder / "walks").mkdir(parents=True)
    (folder / "walks" / "__init__.py").write_text(WALK + '\n\ngymnasium.register("Walk-v0", "walks:Walk")\n')
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "walks"\nversion = "1.5"\ndependencies = ["gymnasium"]\n'
    )
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "x"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    done = run_ldm_here("env", "add", f"git+file://{folder}@v1", "--python", f"3.{sys.version_info.minor}")
    assert done.returncode == 0, done.stderr
    lock = tomllib.loads((tmp_path / "home" / "libraries" / "walks.toml").read_text())["lock"]
    assert any(line.startswith(f"walks @ git+file://{folder}@") for line in lock)
    ldm_hf.make("walks/Walk-v0").close()
