"""Environment ids, and environments by id."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

import ldm_hf
from ldm_hf.env_registry import registry
from ldm_hf.env_registry.doctor import diagnose
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.library.report import load_report
from ldm_hf.env_registry.registry import find_manifest
from ldm_hf.errors import ConfigError, EnvironmentFailure, UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import space_to_json

PART = st.text(st.characters(codec="utf-8", exclude_characters="/", exclude_categories=("Z", "C")), min_size=1)
NAMES = st.lists(PART, min_size=1, max_size=3).map("/".join)
SLUGS = st.from_regex(r"[a-z0-9]+(?:[._-][a-z0-9]+)*", fullmatch=True)


@given(SLUGS, NAMES)
def test_ids_are_written_as_they_are_read(library, name):
    parsed = EnvironmentId.parse(f"{library}/{name}")
    assert (parsed.library, parsed.name, str(parsed)) == (library, name, f"{library}/{name}")


@given(NAMES, NAMES)
def test_config_names_are_different_and_safe(first, second):
    one, other = EnvironmentId("x", first).config_name, EnvironmentId("x", second).config_name
    assert (one == other) == (first == second)
    assert not set(one) & set('<>:/\\|?*" ') and not one.startswith(".")


def test_config_names_by_hand():
    assert EnvironmentId.parse("ale-py/ALE/Pong-v5").config_name == "ALE--Pong-v5"
    assert EnvironmentId.parse("gymnasium/CartPole-v1").config_name == "CartPole-v1"


@pytest.mark.parametrize("text", ["", "CartPole-v1", "/CartPole-v1", "gymnasium/", "Upper/X-v0", "a/b c", "a/b\n"])
def test_what_is_no_id_is_refused(text):
    with pytest.raises(UnknownEnvironmentError, match="is not an environment id"):
        EnvironmentId.parse(text)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("gymnasium/CartPol-v1", "gymnasium/CartPole-v1"),
        ("gymnasium/cartpole", "gymnasium/CartPole-v1"),
        ("CartPole-v1", "gymnasium/CartPole-v1"),
        ("gym/Pendulum-v1", "gymnasium/Pendulum-v1"),
    ],
)
def test_unknown_ids_suggest_their_neighbours(wrong, meant):
    with pytest.raises(UnknownEnvironmentError, match="did you mean") as caught:
        ldm_hf.make(wrong)
    assert meant in str(caught.value) and "\n" not in str(caught.value)


def test_environments_without_a_limit_get_one_and_say_so():
    spec = ldm_hf.spec("gymnasium/CliffWalking-v1")
    assert gymnasium.spec("CliffWalking-v1").max_episode_steps is None
    assert (spec.max_episode_steps, spec.time_limit_is_default) == (1000, True)
    env = ldm_hf.make("gymnasium/CliffWalking-v1")
    env.reset(seed=0)
    ended = [env.step(0)[2:4] for _ in range(1000)]  # up, forever
    assert ended[-1] == (False, True) and not any(truncated for _, truncated in ended[:-1])
    limited = ldm_hf.make("gymnasium/CartPole-v1", max_episode_steps=3)
    limited.reset(seed=0)
    assert [limited.step(step % 2)[3] for step in range(3)] == [False, False, True]
    assert ldm_hf.spec("gymnasium/CartPole-v1").max_episode_steps == 500
    with pytest.raises(ConfigError):
        ldm_hf.make("gymnasium/CartPole-v1", max_episode_steps=0)


def lacks(environment: str) -> str | None:
    """The command that installs what an environment of Gymnasium's own needs here."""
    name = EnvironmentId.parse(environment).name
    return find_manifest("gymnasium").install_command(load_report("gymnasium").environments[name].entry_point)


GYMNASIUM = [spec.id for spec in ldm_hf.list_environments("gymnasium")]
HERE = [environment for environment in GYMNASIUM if lacks(environment) is None]


def test_what_is_listed():
    assert {"gymnasium/CartPole-v1", "gymnasium/Taxi-v4", "gymnasium/FrozenLake-v1", "gymnasium/Blackjack-v1"} <= set(
        GYMNASIUM
    )
    everything = {spec.id for spec in ldm_hf.list_environments(all_versions=True)}
    assert "gymnasium/CartPole-v0" in everything and "gymnasium/CartPole-v0" not in GYMNASIUM
    assert sorted(GYMNASIUM) == GYMNASIUM


@pytest.mark.parametrize("environment", HERE)
def test_what_is_listed_runs_and_fits_or_says_why(environment):
    spec = ldm_hf.spec(environment)
    assert spec.max_episode_steps > 0 and spec.id == environment
    env = ldm_hf.make(environment)
    # What the report of another machine says of the spaces is what stands here.
    assert space_to_json(env.observation_space) == spec.observation_space
    assert space_to_json(env.action_space) == spec.action_space
    first, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    np.testing.assert_equal(first, again)
    for _ in range(20):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert np.isfinite(reward)
        if terminated or truncated:
            env.reset()
    env.close()
    fit = diagnose(spec)
    assert fit.problems == spec.problems and fit.action_slots >= 1
    assert fit.fits or "the limit is 128" in fit.problems[0]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Blackjack-v1"])
def test_gymnasium_s_own_checks_pass(name):
    check_env(ldm_hf.make(f"gymnasium/{name}").unwrapped, skip_render_check=True)


def test_what_runs_an_environment_is_installed_before_it_is_recorded(monkeypatch):
    done = []

    class Missing:
        def build(self):
            done.append("build")

        def provenance(self):
            return {"provider": "docker", "after": " ".join(done)}

    monkeypatch.setattr(registry, "choose", lambda *_, **__: Missing())
    assert registry.provenance("gymnasium/CartPole-v1") == {"provider": "docker", "after": "build"}


def test_a_missing_package_names_the_command_that_helps():
    with pytest.raises(EnvironmentFailure, match=r"procgen.*pip install"):
        ldm_hf.make("procgen/procgen-coinrun-v0", provider="inprocess")
    for environment in [one for one in GYMNASIUM if one not in HERE][:1]:  # none where everything is installed
        with pytest.raises(EnvironmentFailure, match="pip install"):
            ldm_hf.make(environment, provider="inprocess")


def test_vector_environments_reset_as_gymnasium_s_do_or_in_the_step_that_ends_an_episode():
    envs = ldm_hf.make_vec("gymnasium/CartPole-v1", 3)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    envs.close()
    envs = ldm_hf.make_vec("gymnasium/CartPole-v1", 3, max_episode_steps=2, autoreset_mode="SameStep")
    assert envs.num_envs == 3 and envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    envs.reset(seed=0)
    envs.step(np.zeros(3, int))
    observations, _, _, truncated, info = envs.step(np.zeros(3, int))
    assert truncated.all() and len(info["final_obs"]) == 3
    # A reset's observation is within 0.05 of zero, that of two pushes to the left is not.
    assert (np.abs(observations) <= 0.05).all() and (np.abs(np.stack(info["final_obs"])[:, 1]) > 0.05).all()
    envs.close()


def test_the_doctor_counts_slots_and_names_what_is_in_the_way():
    fit = diagnose("gymnasium/Acrobot-v1")
    assert (fit.fits, fit.observation_slots, fit.action_slots, fit.image_shape) == (True, 6, 1, None)
    tight = diagnose("gymnasium/Acrobot-v1", max_observation_slots=5)
    assert not tight.fits and "takes 6 slots; the limit is 5" in tight.problems[0] and tight.action_slots == 1
