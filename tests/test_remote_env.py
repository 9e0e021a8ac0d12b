"""Workers and their clients, without an installation of their own: this interpreter runs the worker."""

import ast
import contextlib
import dataclasses
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from ldm_hf.dataset_builder.anchors.playing import play
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.env_registry.library.manifest import EntryPoint, Manifest, RewardWeights, Texts
from ldm_hf.env_registry.providers.inprocess import TranslatedEnv
from ldm_hf.env_registry.providers.venv import VenvProvider
from ldm_hf.env_registry.remote.infos import row_info, vector_info
from ldm_hf.env_registry.remote.vector_env import RemoteEnv, RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from ldm_hf.env_registry.remote.worker_process import discover
from ldm_hf.env_registry.worker import compatibility, protocol
from ldm_hf.env_registry.worker.space_tree import describe
from ldm_hf.errors import ConfigError, EnvironmentFailure, InvalidValueError
from ldm_hf.modeling.spaces_ldm import space_to_json

SAME_STEP = AutoresetMode.SAME_STEP
TESTS = Path(__file__).parent
KINDS = ("old", "cut", "cost", "vector", "outside", "column", "lists", "endless", "three")
ODD = Manifest(
    slug="odd",
    requirements=("odd",),
    python="",
    modules=("odd_environments", "ldm_hostile", "ldm_behaved"),
    packages=("odd_environments", "ldm_hostile"),
    licence="Apache-2.0",
    homepage="",
    environment={"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'hostile'}"},
    entry_points=(
        *(EntryPoint(kind, "odd_environments:Counting", (kind,)) for kind in KINDS),
        EntryPoint("deaf", "odd_environments:Deaf"),
        EntryPoint("around", "odd_environments:Around"),
        EntryPoint("nested", "odd_environments:Nested"),
        EntryPoint("meeting", "odd_environments:Meeting"),
        EntryPoint("gated", "odd_environments:Gated"),
        EntryPoint("speaking", "odd_environments:Speaking"),
        EntryPoint("silent", "odd_environments:Deaf"),
        EntryPoint(
            "called", "odd_environments:Counting", kwargs={"length": {"call": "builtins:len", "args": [[1, 1]]}}
        ),
    ),
    reward_weights=(RewardWeights("vector", (1.0, 0.5, 0.01)),),
    texts=(Texts(("speak*", "silent"), ("said", "task"), (",", "ball", "go", "open", "red", "the", "to"), 5),),
    default_max_episode_steps=7,
)


_HERE = tempfile.TemporaryDirectory(prefix="ldm-here-")
(Path(_HERE.name) / "home").mkdir()


class Here(VenvProvider):
    """An installation that is this process's own."""

    folder = Path(_HERE.name)  # which stays as long as workers run: PyTorch fails in a folder that is gone
    python = Path(sys.executable)


def settings(name, **changes):
    return RemoteSettings(Here(ODD), name, **changes)


def remote(name, **changes):
    return RemoteEnv(settings(name, **changes))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Blackjack-v1"])
def test_remote_environments_pass_the_checks_of_gymnasium_and_stable_baselines(name):
    env = remote(name)
    check_env(env, skip_render_check=True)
    if name != "Blackjack-v1":  # Stable-Baselines3 has no policy for tuples.
        sb3_check_env(env)
    env.close()


@pytest.mark.parametrize("isolated", [True, False])
def test_texts_that_the_manifest_has_words_for_are_symbols(isolated):
    env = remote("speaking") if isolated else TranslatedEnv({**ODD.recipe("speaking"), "kwargs": {}})
    task = env.observation_space["said"]["task"]
    assert task == gymnasium.spaces.MultiDiscrete([9] * 5) and env.observation_space["place"].n == 4
    seen = [env.reset(seed=0)[0]] + [env.step(0)[0] for _ in range(3)]
    assert all(env.observation_space.contains(each) for each in seen) and [each["place"] for each in seen] == [
        0,
        1,
        2,
        3,
    ]
    # Symbols from 2 on, in the order of the list: "," 2, ball 3, go 4, open 5, red 6, the 7, to 8.
    words = [each["said"]["task"].tolist() for each in seen]
    assert words[:2] == [[4, 8, 7, 6, 3], [5, 2, 1, 4, 0]]  # "then" is not listed
    assert words[2:] == [[0] * 5, [7] * 5]  # nothing said, and more than is read
    env.close()


def test_a_text_that_is_not_there_is_named():
    with pytest.raises(EnvironmentFailure, match=r"odd/silent.* the observation has no text at said/task"):
        remote("silent")


def comparable(step):
    """A step whose object arrays, which numpy does not compare, are lists."""
    *numbers, info = step
    return [*numbers, {key: list(part) if key == "final_obs" else part for key, part in info.items()}]


def make_cartpole():
    return gymnasium.make("CartPole-v1", max_episode_steps=9)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_remote_vectors_are_what_gymnasium_s_are(mode, num_workers):
    ours = RemoteVectorEnv(
        settings("CartPole-v1", max_episode_steps=9), 3, num_workers=num_workers, autoreset_mode=mode
    )
    theirs = SyncVectorEnv([make_cartpole] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    np.testing.assert_equal(ours.reset(seed=[4, 5, 6]), theirs.reset(seed=[4, 5, 6]))
    generator = np.random.default_rng(0)
    for _ in range(60):
        actions = generator.integers(0, 2, 3)
        np.testing.assert_equal(comparable(ours.step(actions)), comparable(theirs.step(actions)))
    ours.close()


def test_environments_are_reset_by_a_mask():
    envs = RemoteVectorEnv(settings("old"), 3, num_workers=2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(3, int))
    observations, _ = envs.reset(options={"reset_mask": np.array([False, True, True])})
    assert observations[:, 0] == pytest.approx([0.2, 0, 0])
    with pytest.raises(ConfigError, match="reset_mask"):
        envs.reset(options={"reset_mask": [True]})
    with pytest.raises(ConfigError, match="3 of them, got 2"):
        envs.reset(seed=[1, 2])
    envs.close()


def steps(env, number):
    env.reset(seed=11)
    return [env.step(1) for _ in range(number)]


@pytest.mark.parametrize(
    ("name", "reward", "ends", "info"),
    [
        ("old", 3.0, (True, False), {"action": 1}),
        ("cut", 1.0, (False, True), {"TimeLimit.truncated": True}),
        ("cost", 1.0, (True, False), {"cost": 2.5}),
        ("vector", 1 + 5 + 1.0, (True, False), {"vector_reward": np.array([1.0, 10.0, 100.0])}),
        ("column", 1.5, (True, False), {}),
        ("lists", 2.0, (True, False), {}),
        ("outside", float("inf"), (True, False), {}),
    ],
)
def test_every_form_of_step_becomes_gymnasium_s(name, reward, ends, info):
    env = remote(name)
    observation, given, *rest = steps(env, 3)[-1]
    assert observation == pytest.approx([30, 30] if name == "outside" else [0.3, 0.3])
    assert observation.dtype == np.float32 and (given, *rest[:2]) == (reward, *ends)
    np.testing.assert_equal(rest[2], info)
    counts = env.diagnostics()
    assert counts["steps"] == 3 and counts["nonfinite_rewards"] == (3 if name == "outside" else 0)
    assert counts["observations_outside_space"] == (3 if name in ("outside", "column") else 0)
    assert env.describe()["render_fps"] == 12 and env.render().shape == (4, 6, 3) and env.render().max() == 3
    env.close()


def test_a_step_of_three_values_is_refused():
    env = remote("three")
    with pytest.raises(EnvironmentFailure, match="a step gave 3 values; 4, 5 or 6 are known"):
        steps(env, 1)
    env.close()


def test_what_has_no_time_limit_gets_the_manifest_s():
    env = remote("endless")
    assert [step[3] for step in steps(env, 7)] == [False] * 6 + [True]
    assert env.describe()["time_limit_is_default"] and env.describe()["max_episode_steps"] == 7
    env.close()
    short = remote("CartPole-v1", max_episode_steps=2)
    assert [step[3] for step in steps(short, 2)] == [False, True] and not short.describe()["time_limit_is_default"]
    short.close()
    with pytest.raises(ConfigError, match="max_episode_steps"):
        settings("endless", max_episode_steps=0)


def test_seeds_count_where_reset_ignores_them():
    envs = RemoteVectorEnv(settings("deaf"), 2, autoreset_mode=SAME_STEP)
    first = [envs.reset(seed=[8, 9])[0], envs.step(np.zeros(2, int))[0]]  # the second is that of the next episode
    assert not np.array_equal(first[0][0], first[0][1]) and not np.array_equal(*first)
    again = [envs.reset(seed=[8, 9])[0], envs.step(np.zeros(2, int))[0]]
    np.testing.assert_array_equal(first, again)
    envs.reset()
    other = RemoteVectorEnv(settings("deaf"), 2, autoreset_mode=SAME_STEP)
    np.testing.assert_array_equal(other.reset(seed=[9, 8])[0], first[0][::-1])
    for one in (envs, other):
        one.close()


def test_what_early_gym_registers_is_found():
    found = discover(Here(dataclasses.replace(ODD, modules=("old_gym",))))["environments"]
    old = next(one for one in found if one["registry"] == "gym")
    assert (old["id"], old["entry_point"]) == ("Counting-v0", "odd_environments:Counting")
    assert old["max_episode_steps"] == 50


def test_a_method_seed_that_fails_leaves_the_seed_to_reset():
    env = remote("around")
    first = env.reset(seed=5)[0]
    assert first.any() and not np.array_equal(env.reset(seed=6)[0], first)
    np.testing.assert_array_equal(env.reset(seed=5)[0], first)
    env.close()


def test_old_environments_are_seeded_and_calls_in_arguments_made():
    envs = RemoteVectorEnv(settings("called"), 2, autoreset_mode=SAME_STEP)
    envs.reset(seed=[8, 9])
    assert envs.get_attr("seeds") == ([8], [9])
    envs.step(np.ones(2, int))
    assert envs.step(np.ones(2, int))[2].all()  # `length` is the result of a call: 2
    envs.set_attr("length", [5, 1])
    assert envs.step(np.ones(2, int))[2].tolist() == [False, True]
    assert envs.call("seed", 3) == ([3], [3])
    with pytest.raises(EnvironmentFailure, match="AttributeError"):
        envs.get_attr("nothing")
    envs.reset()
    envs.close()


def test_values_of_every_space_cross():
    env = remote("nested")
    observation, info = env.reset(seed=0, options={"level": 3})
    assert info == {"options": {"level": 3}, "nested": {"depth": 1}}
    assert env.observation_space.contains(observation) and observation["mission"] == "go0"
    env.action_space.seed(0)
    for _ in range(10):
        action = env.action_space.sample()
        total = int(action["move"].sum() + action["jump"])
        observation, reward, _, _, info = env.step(action)
        assert env.observation_space.contains(observation) and reward == pytest.approx(action["push"].sum())
        assert observation["mission"] == f"go{total}" and (observation["image"] == total).all()
        assert observation["parts"][0] == 2 + total % 5 and len(observation["seen"]) == total % 4
        assert info == {"total": total, "name": "step"}
    env.close()
    envs = RemoteVectorEnv(settings("nested"), 3, num_workers=2)
    observations, _ = envs.reset(seed=0)
    assert observations["mission"] == ("go0",) * 3 and observations["image"].shape == (3, 8, 8, 3)
    assert envs.observation_space.contains(observations)
    envs.action_space.seed(0)
    observations, _, _, _, info = envs.step(envs.action_space.sample())
    assert observations["mission"] == tuple(f"go{total}" for total in info["total"])
    assert info["name"].tolist() == ["step"] * 3
    envs.close()


def test_actions_of_another_shape_or_kind_are_refused_and_nothing_is_lost():
    envs = RemoteVectorEnv(settings("old"), 2)
    envs.reset(seed=0)
    with pytest.raises(InvalidValueError, match=r"shape \(3,\), but there are 2"):
        envs.step(np.zeros(3, int))
    with pytest.raises(InvalidValueError, match="another kind"):
        envs.step(np.zeros(2))
    assert envs.step(np.zeros(2, int))[0][0, 0] == pytest.approx(0.1)
    envs.close()


def test_copies_by_pickle_are_new_environments():
    env = remote("CartPole-v1", max_episode_steps=4)
    first, _ = env.reset(seed=3)
    copy = pickle.loads(pickle.dumps(env))
    np.testing.assert_equal(copy.reset(seed=3)[0], first)
    assert [copy.step(0)[3] for _ in range(4)][-1] is True
    envs = RemoteVectorEnv(settings("CartPole-v1"), 2, num_workers=2, autoreset_mode=AutoresetMode.NEXT_STEP)
    twin = pickle.loads(pickle.dumps(envs))
    assert (twin.num_envs, twin.num_workers, twin.autoreset_mode) == (2, 2, AutoresetMode.NEXT_STEP)
    for one in (env, copy, envs, twin):
        one.close()


def test_stable_baselines_sees_what_its_own_vector_environment_shows():
    made = settings("CartPole-v1", max_episode_steps=9)
    ours = Sb3VecEnv(RemoteVectorEnv(made, 3, num_workers=2, autoreset_mode=SAME_STEP))
    theirs = DummyVecEnv([make_cartpole] * 3)
    for one in (ours, theirs):
        one.seed(2)
    np.testing.assert_equal(ours.reset(), theirs.reset())
    generator = np.random.default_rng(1)
    truncations = 0
    for _ in range(60):
        actions = generator.integers(0, 2, 3)
        step, expected = ours.step(actions), theirs.step(actions)
        np.testing.assert_equal(step, expected)
        assert step[1].dtype == np.float32
        truncations += sum(info["TimeLimit.truncated"] for info in step[3])
    assert truncations > 5 and ours.get_attr("render_mode") == [None] * 3 and not ours.has_attr("action_masks")
    ours.close()
    later = RemoteVectorEnv(settings("CartPole-v1"), 1, autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigError, match="SameStep"):
        Sb3VecEnv(later)
    later.close()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("exit", "exited with status 7, its last output 'leaving early'"),
        ("segfault", "killed by signal 11"),
        ("hang_in_c", "gave no answer within 1 s"),
        ("garbage", "answered by garbage"),
        ("false_message", "answered by garbage"),
        ("wrong_shape", "has shape"),
    ],
)
def test_a_failing_worker_is_an_error_and_then_replaced(harm, reason):
    env = remote(f"Hostile/{harm}-v0", step_timeout=1.0 if "1 s" in reason else 60.0)
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    with pytest.raises(EnvironmentFailure, match=reason):
        env.step(0)
    with pytest.raises(EnvironmentFailure, match=r"call reset\(\)"):
        env.step(0)
    assert (env.reset(seed=0)[0] == 0).all()
    env.close()


def test_what_a_failing_worker_cut_off_is_in_no_return(tmp_path):
    """Environment 1 raises at its third step, once; each episode is worth 50, that of its neighbour in the worker too."""
    made = settings("Hostile/raise_error-v0", kwargs={"only": 1}, restart=True)
    with contextlib.closing(RemoteVectorEnv(made, 2, num_workers=1, autoreset_mode=AutoresetMode.SAME_STEP)) as envs:
        recorder = Recorder(envs, 12, 100, Recording(tmp_path / "recording", 100, envs))
        recorder.reset(seed=[0, 1])
        while recorder.is_recording:
            recorder.step(np.zeros(2, int))
        assert recorder.episodes()[1].tolist() == [50, 50]
    with contextlib.closing(RemoteVectorEnv(made, 2, num_workers=1, autoreset_mode=AutoresetMode.SAME_STEP)) as envs:
        played = play(envs, lambda envs, seed: lambda observations: np.zeros(2, int), 6, 0)
    assert played.returns == [50] * 6 and played.lengths == [50] * 6


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_replaced_worker_ends_its_episodes_as_truncated(mode):
    envs = RemoteVectorEnv(
        settings("Hostile/exit-v0", kwargs={"only": 1}, restart=True), 2, num_workers=2, autoreset_mode=mode
    )
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(2, int))
    observations, rewards, terminated, truncated, info = envs.step(np.zeros(2, int))
    assert truncated.tolist() == [False, True] and not terminated.any() and rewards.tolist() == [1, 0]
    last = info["final_obs"][1] if mode is AutoresetMode.SAME_STEP else observations[1]
    assert observations[0].tolist() == [3, 3, 3] and last.tolist() == [2, 2, 2]
    where = info["final_info"] if mode is AutoresetMode.SAME_STEP else info
    assert "status 7" in where["worker_failure"][1] and where["_worker_failure"].tolist() == [False, True]
    if mode is AutoresetMode.DISABLED:
        envs.reset(options={"reset_mask": truncated})
    observations = envs.step(np.zeros(2, int))[0]
    # The step after is the reset under NEXT_STEP, and the new episode's first step otherwise.
    assert observations[:, 0].tolist() == [4, 0 if mode is AutoresetMode.NEXT_STEP else 1]
    envs.close()


def test_a_worker_that_never_takes_a_step_is_not_replaced_for_ever():
    envs = RemoteVectorEnv(
        settings("Hostile/exit-v0", kwargs={"harmless": 0}, restart=True), 1, autoreset_mode=SAME_STEP
    )
    envs.reset(seed=0)
    for _ in range(3):
        assert envs.step(np.zeros(1, int))[3].all()
    with pytest.raises(EnvironmentFailure, match="status 7"):
        envs.step(np.zeros(1, int))
    envs.close()


def test_a_library_that_cannot_be_imported_is_told_with_its_reason():
    broken = Manifest("broken", ("x",), "", ("no_such_module",), (), "", "")
    with pytest.raises(EnvironmentFailure, match=r"broken/X-v0: load failed: ModuleNotFoundError.*no_such_module"):
        RemoteEnv(RemoteSettings(Here(broken), "X-v0"))
    with pytest.raises(EnvironmentFailure, match=r"odd/X-v0: make failed.*no registry knows 'X-v0'"):
        remote("X-v0")
    with pytest.raises(EnvironmentFailure, match="make takes plain data only"):
        remote("old", kwargs={"length": object()})


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_remote_env import *
envs = RemoteVectorEnv(settings("Hostile/hang_in_c-v0"), 2, num_workers=2)
envs.reset(seed=0)
for _ in range(2): envs.step(np.zeros(2, int))
print("ready", flush=True)
envs.step(np.zeros(2, int))
"""


def test_no_worker_outlives_a_killed_parent():
    code = PARENT.format(tests=str(TESTS))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) == 4  # two supervisors and their children
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "processes outlived their owner"


def test_closing_and_forgetting_leave_no_process():
    others = set(psutil.Process().children(recursive=True))
    env, forgotten = remote("old"), remote("old")
    workers = set(psutil.Process().children(recursive=True)) - others
    assert len(workers) == 4  # two supervisors and their children
    env.close()
    env.close()
    del forgotten
    gc.collect()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_messages_that_are_none_are_told_apart():
    ours, theirs = socket.socketpair()
    channel = protocol.Channel(ours)
    with pytest.raises(protocol.ChannelTimeout):
        channel.receive(0.01)
    theirs.sendall(b"\x03\x00\x00\x00\x81\xa1")
    with pytest.raises(protocol.ChannelTimeout):  # one byte is missing
        channel.receive(0.01)
    theirs.sendall(b"a" + b"\x01\x00\x00\x00\x07")
    with pytest.raises(protocol.ProtocolError):  # {"a": nothing
        channel.receive(0.01)
    with pytest.raises(protocol.ProtocolError, match="a message is a map, got int"):
        channel.receive(0.01)
    theirs.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(protocol.ProtocolError, match="4294967295 bytes"):
        channel.receive(0.01)
    theirs.close()
    with pytest.raises(protocol.ChannelClosed):
        protocol.Channel(ours).receive(0.01)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float64", "complex64"])
def test_arrays_cross_in_messages(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    ours, theirs = socket.socketpair()
    protocol.Channel(theirs).send({"array": array, "empty": np.zeros((0, 2), dtype)})
    received = protocol.Channel(ours).receive(1)
    np.testing.assert_array_equal(received["array"], array, strict=True)
    np.testing.assert_array_equal(received["empty"], np.zeros((0, 2), dtype), strict=True)
    with pytest.raises(TypeError, match="not plain data"):
        protocol.Channel(theirs).send({"array": np.array([object()])})


def test_infos_of_two_workers_become_one():
    first = {"x": [np.array([1.0, 2.0]), [True, True]], "s": [["a", None], [True, False]]}
    second = {"x": [np.array([3.0]), [True]], "d": [{"y": [np.array([7]), [True]]}, [True]]}
    info = vector_info([(first, 2), (None, 1), (second, 1)])
    assert info["x"].tolist() == [1, 2, 0, 3] and info["_x"].tolist() == [True, True, False, True]
    assert info["s"].tolist() == ["a", None, None, None] and info["_s"].tolist() == [True, False, False, False]
    assert info["d"]["y"].tolist() == [0, 0, 0, 7] and info["d"]["_y"].tolist() == [False, False, False, True]
    assert (
        row_info(second, 0) == {"x": 3.0, "d": {"y": 7}}
        and row_info(first, 1) == {"x": 2.0}
        and row_info(None, 0) == {}
    )


def test_what_runs_inside_is_written_for_python_3_7():
    folder = Path(protocol.__file__).parent
    allowed = sys.stdlib_module_names | {"numpy", "msgpack", *(path.stem for path in folder.glob("*.py"))}
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 7))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported -= {"ldm_hf.env_registry.worker.space_tree"}  # where none of this name lies beside it
        if path.stem == "experts":  # which are parts of their libraries
            imported -= {"metaworld.policies", "minigrid.utils.baby_ai_bot"}
        assert {name.partition(".")[0] for name in imported} <= allowed


def test_text_of_an_unknown_space_is_text():
    class Mission(gymnasium.Space):
        def sample(self, mask=None, probability=None):
            return "go there"

    assert describe(Mission())["type"] == "Text" == space_to_json(Mission())["type"]
    with pytest.raises(compatibility.TranslationError, match="none of Gymnasium's"):
        compatibility._described(type("Odd", (gymnasium.Space,), {"sample": lambda self: 3})())


def test_numbers_of_infos_travel_together():
    first, second = (
        {protocol.FLOATS: [["x", "y"], np.array([[1.0, 2.0], [3.0, 4.0]])]},
        {protocol.FLOATS: [["x", "y"], np.array([[5.0], [6.0]])]},
    )
    info = vector_info([(first, 2), (second, 1)])
    assert info["x"].tolist() == [1, 2, 5] and info["y"].tolist() == [3, 4, 6] and info["_x"].tolist() == [True] * 3
    # A worker that has no such numbers, or others, has zeros where there is none.
    other = {protocol.FLOATS: [["y"], np.array([[7.0]])]}
    mixed = vector_info([(first, 2), (other, 1), (None, 1)])
    assert mixed["x"].tolist() == [1, 2, 0, 0] and mixed["_x"].tolist() == [True, True, False, False]
    assert mixed["y"].tolist() == [3, 4, 7, 0] and mixed["_y"].tolist() == [True, True, True, False]
    assert row_info(first, 1) == {"x": 2.0, "y": 4.0}


def test_colours_that_are_shares_become_bytes():
    """MinAtar draws with floats from 0 to 1, which as bytes would all be black."""
    shares = np.array([[[0.0, 0.5, 1.0, 0.3]]], np.float32)
    assert compatibility.frame(shares).tolist() == [[[0, 128, 255]]]
    assert compatibility.frame(shares * 200).tolist() == [[[0, 100, 200]]]
    assert compatibility.frame(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[[1, 2, 3]]]
    assert compatibility.frame("a text") == "a text" and compatibility.frame(np.zeros(3)) is None
