"""`ldm solve`: which environment is meant, when training stops, and the whole way from an environment to a policy."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import ldm_hf
from conftest import run_ldm_here
from ldm_hf import policy_search
from ldm_hf.env_registry.library.add import slug_of
from ldm_hf.errors import ConfigError, UnknownEnvironmentError
from ldm_hf.policy_search import FROM_SCRATCH, Round, _Search, find_environment


def rounds(*means: float, seconds: float = 1.0) -> list[Round]:
    return [Round(FROM_SCRATCH, 100 * 2**index, [mean], seconds, "") for index, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("done", "seconds", "enough"),
    [
        (rounds(10), 100, False),
        (rounds(50), 100, True),  # as good as the reference
        (rounds(10, 9), 100, False),  # one round that brought nothing may be chance
        (rounds(10, 9, 8), 100, True),
        (rounds(10, 9, 11), 100, False),
        (rounds(10, seconds=30), 100, False),  # the next takes about 60
        (rounds(10, seconds=40), 100, True),
        (rounds(1, 2, 3, 4, 5, 6), 1e9, True),
    ],
)
def test_training_stops_when_a_round_brings_nothing_or_time_is_over(done, seconds, enough, tmp_path):
    search = _Search("gymnasium/CartPole-v1", tmp_path, 1.0, None, 1, 0, print)
    assert search._is_enough(done, seconds, wanted=50) == enough


@pytest.mark.parametrize(
    ("target", "slug"),
    [
        ("gym-maze==1.0", "gym-maze"),
        ("my_env.py:MyEnv", "my-env"),
        ("code/my_env.py", "my-env"),
        ("my_package.envs:MyEnv", "my-package"),
        ("git@github.com:a/Some_Envs.git", "some-envs"),
        ("git+https://github.com/a/b@v1", "b"),
    ],
)
def test_a_library_is_known_by_what_installs_it(target, slug):
    assert slug_of(target) == slug


def test_which_environment_is_meant():
    assert find_environment("gymnasium/CartPole-v1") == "gymnasium/CartPole-v1"
    with pytest.raises(UnknownEnvironmentError, match="did you mean gymnasium/CartPole-v1"):
        find_environment("gymnasium/CartPol-v1")
    with pytest.raises(
        ConfigError, match=r"gymnasium has \d+ environments that fit a model; name one of them: gymnasium/"
    ):
        find_environment("gymnasium")


def test_what_cannot_be_solved_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="hours must be above 0"):
        ldm_hf.solve("gymnasium/CartPole-v1", tmp_path / "x", hours=0)
    with pytest.raises(ConfigError, match="push must be NAMESPACE/NAME, got 'me'"):
        ldm_hf.solve("gymnasium/CartPole-v1", tmp_path / "x", push="me")
    assert not (tmp_path / "x").exists()
    done = run_ldm_here("solve", "gymnasium/CartPol-v1")
    assert done.returncode == 1 and "did you mean" in done.stderr


def test_a_search_that_was_begun_for_something_else_is_not_resumed(tmp_path, monkeypatch):
    def search(model="a", seed=0, jobs=1):
        return _Search("gymnasium/CartPole-v1", tmp_path, 1.0, model, jobs, seed, print)

    search()._save()
    assert search(jobs=8)._state["rounds"] == []  # on more cores it is the same
    with pytest.raises(ConfigError, match="was begun with another model and seed: give another --output"):
        search("b", 1)
    monkeypatch.setattr(policy_search, "find_manifest", lambda library: SimpleNamespace(validation_key="changed"))
    with pytest.raises(ConfigError, match="was begun with another installation of its library"):
        search()


def test_a_race_of_one_environment_is_given_what_it_can_use(tmp_path):
    """36 minutes on one core and on eight: all ten candidates that act in CartPole, of which eight race."""
    of = {
        jobs: _Search("gymnasium/CartPole-v1", tmp_path, 1.0, None, jobs, 0, print)._core_minutes(36) for jobs in (1, 8)
    }
    assert of == {1: 36, 8: pytest.approx(36 * 32 / 15)}


@pytest.mark.long
def test_an_environment_is_solved_and_an_interrupted_search_resumes(tmp_path):
    """Killed after the race, the same command neither races nor trains finished rounds again."""
    arguments = ["solve", "gymnasium/CartPole-v1", "--hours", "0.03", "--output", str(tmp_path), "--jobs", "1"]
    with subprocess.Popen([sys.executable, "-m", "ldm_hf", *arguments], stderr=subprocess.PIPE, text=True) as search:
        for line in search.stderr:
            if line.startswith("2/4"):
                search.kill()
                break
    race = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("train-*.parquet")}
    assert race
    done = run_ldm_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("train-*.parquet")} == race
    assert "kept: " in done.stdout and "random" in done.stdout
    state = json.loads((tmp_path / "solve.json").read_text())
    assert state["race_seconds"] > 0 and {one["steps"] for one in state["rounds"]} >= {100}
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"README.md", "report.json", "model.safetensors"}
    agent = ldm_hf.load(tmp_path / "model")
    assert agent.play("gymnasium/CartPole-v1", episodes=2).mean_return > 50
    again = run_ldm_here(*arguments)
    assert again.returncode == 0
    assert json.loads((tmp_path / "solve.json").read_text()) == state  # no round was trained again
