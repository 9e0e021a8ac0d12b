"""What Gymnasium and Stable-Baselines3 promise of environments, held against every provider."""

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics, RecordVideo
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from bridges import BRIDGES, ISOLATED, make, make_vec
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.errors import EnvironmentFailure, LDMError

every_bridge = pytest.mark.parametrize("bridge", BRIDGES)
isolated_bridges = pytest.mark.parametrize("bridge", ISOLATED)


@every_bridge
def test_attributes_are_found_and_set_behind_wrappers(bridge):
    envs = make_vec(bridge)
    envs.reset()
    assert envs.get_attr("gravity") == (9.5,) * 3 and envs.call("truth", plus=2) == (1002.0,) * 3
    envs.set_attr("gravity", 1.5)
    assert envs.get_attr("gravity") == (1.5,) * 3
    envs.set_attr("gravity", [1, 2, 3])
    assert envs.call("gravity") == (1, 2, 3)
    envs.set_attr("steps", (7, 8, 9))
    assert envs.step(np.zeros(3, int))[0][:, 0].tolist() == [1008, 1009, 1010]  # the environment's own attribute
    envs.set_attr("fresh", 5)  # which an environment may ask for: not one of a wrapper
    assert envs.get_attr("fresh") == (5,) * 3
    with pytest.raises(ValueError, match="2"):
        envs.set_attr("gravity", [1, 2])
    with pytest.raises((AttributeError, EnvironmentFailure), match="no attribute 'nothing'"):
        envs.get_attr("nothing")
    envs.close()
    env = make(bridge)
    assert env.get_wrapper_attr("gravity") == 9.5 and env.has_wrapper_attr("truth")
    assert env.set_wrapper_attr("gravity", 3.5) is True and env.get_wrapper_attr("gravity") == 3.5
    assert env.get_wrapper_attr("truth")(plus=1) == 1.0 and not env.has_wrapper_attr("nothing")
    assert env.set_wrapper_attr("nothing", 1, force=False) is False
    with pytest.raises(AttributeError, match="nothing"):
        env.get_wrapper_attr("nothing")
    env.close()


@every_bridge
def test_the_adapter_reads_sets_and_calls_single_environments(bridge):
    venv = Sb3VecEnv(make_vec(bridge, mode=AutoresetMode.SAME_STEP))
    venv.reset()
    assert venv.get_attr("gravity") == [9.5] * 3 and venv.get_attr("gravity", [2]) == [9.5]
    venv.set_attr("gravity", 1.0, indices=[0, 2])
    assert venv.get_attr("gravity") == [1.0, 9.5, 1.0]
    assert venv.env_method("truth", plus=5, indices=1) == [1005.0]
    venv.env_method("reset", indices=[1])  # and no other
    assert venv.env_method("truth", indices=[2, 1, 0]) == [1000, 2000, 1000]
    assert venv.has_attr("action_masks") and venv.has_attr("gravity") and not venv.has_attr("nothing")
    with pytest.raises(AttributeError, match="nothing"):
        venv.get_attr("nothing")
    venv.close()


@every_bridge
def test_options_are_each_environment_s_own(bridge):
    venv = Sb3VecEnv(make_vec(bridge, mode=AutoresetMode.SAME_STEP))
    venv.set_options([{"level": 1}, {}, {"level": 3}])
    venv.reset()
    assert [info["options"] for info in venv.reset_infos] == [{"level": 1}, None, {"level": 3}]
    venv.reset()  # they count once
    assert [info["options"] for info in venv.reset_infos] == [None] * 3
    venv.set_options({"level": 2})
    venv.reset()
    assert [info["options"] for info in venv.reset_infos] == [{"level": 2}] * 3
    venv.close()


@every_bridge
def test_masked_policies_train_through_the_adapter(bridge):
    venv = Sb3VecEnv(make_vec(bridge, 2, "Masked", AutoresetMode.SAME_STEP, kwargs={"length": 20}))
    venv.reset()
    assert is_masking_supported(venv)
    assert get_action_masks(venv).tolist() == [[True, False, False, False]] * 2
    model = MaskablePPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(256)  # The environment refuses a masked action: three in four, without the mask.
    assert model.num_timesteps == 256
    with pytest.raises((EnvironmentFailure, ValueError), match="action 3 is masked"):
        venv.reset()
        venv.step(np.array([3, 3]))
    venv.close()


@every_bridge
def test_a_spec_makes_another_one(bridge):
    env = make(bridge, max_episode_steps=3, kwargs={"length": 50})
    assert env.spec.id == "Behaved/Clock-v0" and env.spec.max_episode_steps == 3
    twin = gymnasium.make(env.spec)
    twin.reset()
    assert [twin.step(0)[3] for _ in range(3)] == [False, False, True] and twin.get_wrapper_attr("length") == 50
    twin.close()
    env.close()
    envs = make_vec(bridge)
    assert envs.spec.id == "Behaved/Clock-v0" and "Behaved/Clock-v0, num_envs=3" in repr(envs)
    envs.close()


@every_bridge
def test_render_modes_are_the_environment_s(bridge):
    with pytest.raises(LDMError, match=r"render_mode must be one of .*rgb_array.*, got 'nonsense'") as caught:
        make(bridge, render_mode="nonsense")
    assert "\n" not in str(caught.value)
    env = make(bridge, render_mode="ansi")
    env.reset()
    assert env.render() == "1000"
    env.close()
    env = make(bridge, render_mode="rgb_array_list")
    assert env.render_mode == "rgb_array_list"
    env.reset()
    for _ in range(3):
        env.step(0)
    assert [frame.max() for frame in env.render()] == [0, 1, 2, 3] and env.render() == []
    env.close()
    envs = make_vec(bridge, 2, render_mode="rgb_array_list")
    envs.reset()
    envs.step(np.zeros(2, int))
    assert [[frame.shape for frame in frames] for frames in envs.render()] == [[(4, 6, 3)] * 2] * 2
    envs.close()


@isolated_bridges
def test_nothing_can_be_asked_of_what_is_closed(bridge):
    env, envs = make(bridge), make_vec(bridge)
    for one, action in ((env, 0), (envs, np.zeros(3, int))):
        one.reset()
        one.close()
        one.close()
        for ask in (one.reset, one.render, one.diagnostics, lambda one=one, action=action: one.step(action)):
            with pytest.raises(ClosedEnvironmentError, match="is closed"):
                ask()
    for ask in (lambda: envs.step_async(np.zeros(3, int)), envs.step_wait, lambda: envs.call("truth")):
        with pytest.raises(ClosedEnvironmentError):
            ask()


ODD_INFO = {"": 1.5, "empty": {}, "text": "", "none": None, "list": [], "nested": {"": "", "deep": {}}, "bytes": b""}


@every_bridge
def test_empty_values_and_names_in_infos_arrive(bridge):
    env = make(bridge, kwargs={"step_info": ODD_INFO})
    env.reset()
    assert env.step(0)[4] == ODD_INFO
    env.close()
    envs = make_vec(bridge, kwargs={"step_info": ODD_INFO})
    envs.reset()
    info = envs.step(np.zeros(3, int))[4]
    assert set(info) == {name for key in ODD_INFO for name in (key, f"_{key}")}
    assert all(info[f"_{key}"].tolist() == [True] * 3 for key in ODD_INFO)
    assert info[""].tolist() == [1.5] * 3 and info["empty"] == {} and info["text"].tolist() == [""] * 3
    assert info["nested"]["deep"] == {} and info["nested"][""].tolist() == [""] * 3
    envs.close()
    venv = Sb3VecEnv(make_vec(bridge, mode=AutoresetMode.SAME_STEP, kwargs={"step_info": ODD_INFO}))
    venv.reset()
    _, _, _, rows = venv.step(np.zeros(3, int))
    assert rows == [{**ODD_INFO, "TimeLimit.truncated": False}] * 3
    venv.close()


@every_bridge
def test_gymnasium_s_vector_wrappers_take_the_default_mode(bridge, tmp_path):
    envs = RecordEpisodeStatistics(NormalizeObservation(make_vec(bridge, kwargs={"length": 3})))
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=0)
    returns = [
        step[4]["episode"]["r"].tolist() for step in (envs.step(np.ones(3, int)) for _ in range(8)) if step[2].all()
    ]
    assert returns == [[3.0] * 3] * 2  # a step of each episode's four is its reset, without a reward
    envs.close()


@every_bridge
def test_gymnasium_s_recorder_of_videos_takes_the_default_mode(bridge, tmp_path):
    pytest.importorskip("moviepy")
    made = make_vec(bridge, kwargs={"length": 3}, render_mode="rgb_array")
    envs = RecordVideo(made, str(tmp_path / bridge), episode_trigger=lambda episode: episode < 2)
    envs.reset(seed=0)
    for _ in range(9):
        envs.step(np.zeros(3, int))
    envs.close()
    assert len(list((tmp_path / bridge).glob("*.mp4"))) == 2


MISFITS = [
    ("uint8", 300.7, "300.7, which uint8 cannot hold"),
    ("uint8", 44.5, "44.5, which uint8 cannot hold"),
    ("uint8", -1, "-1, which uint8 cannot hold"),
    ("int8", 300, "300, which int8 cannot hold"),
    ("float32", 1e300, "1e.300, which float32 cannot hold"),
    ("int64", float("nan"), "nan, which int64 cannot hold"),
    ("float32", "3", "'3', which is not a number"),
    ("float32", None, "None, which is not a number"),
]


@pytest.mark.parametrize(("dtype", "value", "message"), MISFITS, ids=[f"{one[0]}-{one[1]}" for one in MISFITS])
@pytest.mark.parametrize("bridge", ["inprocess", "venv"])
def test_a_value_that_its_dtype_cannot_hold_is_refused(bridge, dtype, value, message):
    high = 100 if dtype == "int8" else 200
    made = {"kwargs": {"dtype": dtype, "value": value, "high": high}}
    one, several = make(bridge, "Giver", **made), make_vec(bridge, 2, "Giver", num_workers=1, **made)
    for env, action in ((one, 0), (several, np.zeros(2, int))):
        env.reset()
        with pytest.raises(EnvironmentFailure, match=f"observation holds {message}"):
            env.step(action)
        env.close()


@pytest.mark.parametrize("bridge", ["inprocess", "venv"])
@pytest.mark.parametrize(("dtype", "value"), [("uint8", 44.0), ("float32", 0.1), ("float32", 7), ("uint8", True)])
def test_a_value_that_fits_another_dtype_arrives(bridge, dtype, value):
    env = make(bridge, "Giver", kwargs={"dtype": dtype, "value": value})
    env.reset()
    observation = env.step(0)[0]
    assert observation.dtype == dtype and observation == np.dtype(dtype).type(value)
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_last_observation_outside_its_space_is_counted(mode):
    envs = make_vec("venv", 2, "Giver", mode, num_workers=1, kwargs={"dtype": "float32", "value": 201.0})
    envs.reset()
    observations, *_, info = envs.step(np.zeros(2, int))
    last = np.stack(info["final_obs"]) if mode is AutoresetMode.SAME_STEP else observations
    assert last.tolist() == [201, 201] and envs.diagnostics()["observations_outside_space"] == 2
    envs.close()
