"""Policies from elsewhere: read without unpickling, rolled out with noise, labelled, judged."""

import hashlib
import json
import os
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sb3_contrib import ARS, QRDQN, TQC
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from conftest import CARTPOLE, CLIFF, PENDULUM
from ldm_hf.dataset_builder.bank.pickled import array, read_pickle
from ldm_hf.dataset_builder.bank.policies import ScriptedPolicy, load_policy
from ldm_hf.dataset_builder.bank.rollout_jobs import RolloutJob, run_rollouts
from ldm_hf.dataset_builder.bank.rollout_request import RolloutRequest
from ldm_hf.dataset_builder.bank.rollouts import Noise, build_rollouts
from ldm_hf.dataset_builder.bank.sb3_zip import read_normalizer
from ldm_hf.dataset_builder.bank.sources import open_source
from ldm_hf.dataset_builder.curves import BY_POLICY
from ldm_hf.dataset_builder.format.reader import open_dataset
from ldm_hf.dataset_builder.repository.replay import replay
from ldm_hf.env_registry import registry
from ldm_hf.env_registry.experts import Expert
from ldm_hf.env_registry.library.manifest import load_manifests
from ldm_hf.env_registry.remote.vector_env import RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.env_registry.worker import compatibility
from ldm_hf.errors import CheckpointError, ConfigError, EnvironmentFailure
from ldm_hf.executors.base import JobResult
from ldm_hf.modeling import LDMPolicy
from test_remote_env import ODD, Here

LEAN = "def act(observation):\n    return int(observation[2] + 0.3 * observation[3] > 0)\n"
"""Keeps CartPole upright: push to the side that the pole falls to."""


class Isolated(Here):
    """A worker of this interpreter stands in for an installation."""

    def build(self):
        pass

    def provenance(self):
        return {"provider": "venv", "python": "", "build": ""}


@pytest.fixture
def isolated(monkeypatch):
    """Experts of gymnasium's environments run in workers of this interpreter."""
    choose = registry.choose

    def instead(manifest, entry_point, asked, *, isolated_only=False):
        return Isolated(manifest) if isolated_only else choose(manifest, entry_point, asked)

    monkeypatch.setattr(registry, "choose", instead)


def spec(environment) -> EnvironmentSpec:
    return registry.spec(environment)


def saved(kind, path: Path, environment: str, **arguments) -> tuple[Path, np.ndarray, np.ndarray]:
    """A zip of an untrained policy, observations, and what Stable-Baselines3 does there."""
    model = kind(arguments.pop("policy", "MlpPolicy"), environment, seed=1, **arguments)
    model.save(path)
    space = model.observation_space
    seen = np.random.default_rng(0).uniform(-1, 1, (50, *space.shape)).astype(np.float32)
    return path.with_suffix(".zip"), seen, model.predict(seen, deterministic=True)[0]


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        (PPO, "CartPole-v1", {"policy_kwargs": {"net_arch": [16, 8], "activation_fn": torch.nn.ReLU}}),
        (A2C, "CartPole-v1", {}),
        (ARS, "CartPole-v1", {"policy": "LinearPolicy"}),
        (DQN, "CartPole-v1", {"policy_kwargs": {"net_arch": [8]}}),
        (QRDQN, "CartPole-v1", {"policy_kwargs": {"n_quantiles": 7}}),
        (PPO, "Pendulum-v1", {"use_sde": True}),
        (SAC, "Pendulum-v1", {"policy_kwargs": {"net_arch": {"pi": [9, 7], "qf": [5]}}, "buffer_size": 9}),
        (SAC, "Pendulum-v1", {"use_sde": True, "buffer_size": 9}),
        (TD3, "Pendulum-v1", {"policy_kwargs": {"net_arch": [9, 9]}, "buffer_size": 9}),
        (TQC, "Pendulum-v1", {"policy_kwargs": {"net_arch": [9], "n_critics": 3}, "buffer_size": 9}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_zip_acts_as_it_does_in_stable_baselines(tmp_path, kind, name, arguments):
    path, seen, actions = saved(kind, tmp_path / "policy", name, **arguments)
    policy, origin = open_source(str(path), spec(f"gymnasium/{name}"))
    np.testing.assert_array_equal(policy.act(None, seen), actions)
    assert origin is None
    policy.reference.save(tmp_path / "small", policy.reference.acting_weights())  # without critics and targets
    again = load_policy(tmp_path / "small", spec(f"gymnasium/{name}"))
    np.testing.assert_array_equal(again.act(None, seen), actions)
    assert not any("critic" in one or "target" in one for one in load_file(tmp_path / "small" / "policy.safetensors"))


def test_statistics_of_observations_are_read_from_their_pickle(tmp_path):
    envs = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), clip_obs=3.0)
    model = PPO("MlpPolicy", envs, n_steps=64)
    model.learn(128)
    model.save(tmp_path / "policy")
    envs.save(tmp_path / "normalizer.pkl")
    statistics, clip, epsilon = read_normalizer(tmp_path / "normalizer.pkl")
    assert (clip, epsilon) == (3.0, 1e-8)
    np.testing.assert_array_equal(statistics["observation"], [envs.obs_rms.mean, envs.obs_rms.var])
    raw = np.random.default_rng(0).uniform(-8, 8, (30, 3)).astype(np.float32)
    described = spec(PENDULUM)
    policy, _ = open_source(str(tmp_path / "policy.zip"), described, str(tmp_path / "normalizer.pkl"))
    wanted = model.predict(envs.normalize_obs(raw), deterministic=True)[0]
    np.testing.assert_allclose(policy.act(None, raw), wanted, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"trained behind VecNormalize: name the file .* by --normalizer"):
        open_source(str(tmp_path / "policy.zip"), described)
    for wrong in (b"", pickle.dumps([1, 2]), (tmp_path / "normalizer.pkl").read_bytes()[:-200]):
        (tmp_path / "wrong.pkl").write_bytes(wrong)
        with pytest.raises(CheckpointError, match=r"wrong\.pkl is not a readable file of VecNormalize"):
            read_normalizer(tmp_path / "wrong.pkl")


@pytest.mark.parametrize("protocol", range(6))
@given(data=st.data())
@settings(max_examples=10)
def test_pickles_say_the_same_without_being_done(protocol, data):
    """Plain values and arrays, in every protocol of Python."""
    plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=3)
    nested = st.recursive(plain, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3))
    value = data.draw(nested)
    assert read_pickle(pickle.dumps(value, protocol)) == value
    kind = data.draw(st.sampled_from(["<f8", ">f4", "i8", "u1", "?"]))
    values = np.arange(6).reshape(2, 3).astype(kind)
    for order in (values, np.asfortranarray(values)):
        np.testing.assert_array_equal(array(read_pickle(pickle.dumps(order, protocol))), values)
    assert array(read_pickle(pickle.dumps(np.float32(0.5), protocol))) == 0.5


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_nothing_that_is_read_is_done(tmp_path):
    described = spec(CARTPOLE)
    path, seen, actions = saved(PPO, tmp_path / "policy", "CartPole-v1")
    harm = tmp_path / "harm"
    evil = pickle.dumps(Hostile(harm))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}

    def written(name, **changed):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for part, content in {**parts, **changed}.items():
                archive.writestr(part, content)
        return str(tmp_path / name)

    data = json.loads(parts["data"])
    for words in data.values():
        if isinstance(words, dict) and ":serialized:" in words:
            words[":serialized:"] = __import__("base64").b64encode(evil).decode()
    policy, _ = open_source(written("pickles.zip", data=json.dumps(data)), described)
    np.testing.assert_array_equal(policy.act(None, seen), actions)
    for name in ("tensors.zip", "twice.zip"):
        with pytest.raises(CheckpointError, match=f"{name} is not a zip that Stable-Baselines3 saved"):
            open_source(written(name, **{"policy.pth": evil}), described)
    (tmp_path / "normalizer.pkl").write_bytes(evil)
    with pytest.raises(CheckpointError, match="it is not a VecNormalize"):
        read_normalizer(tmp_path / "normalizer.pkl")
    assert not harm.exists()
    pickle.loads(evil)
    assert harm.exists()  # it would have been


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 3)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, values):
        return self.linear(values)


def test_what_cannot_be_rebuilt_is_refused_in_one_line(tmp_path):
    described = spec(CARTPOLE)
    own, *_ = saved(PPO, tmp_path / "own", "CartPole-v1", policy_kwargs={"features_extractor_class": OwnExtractor})
    with pytest.raises(CheckpointError, match=r"own\.zip holds no policy .*OwnExtractor'>, a class of its own"):
        open_source(str(own), described)
    pendulum, *_ = saved(PPO, tmp_path / "pendulum", "Pendulum-v1")
    with pytest.raises(ConfigError, match=r"observation space is Box\(3, .*that of gymnasium/CartPole-v1 is Box\(4"):
        open_source(str(pendulum), described)
    stretched = replace(spec(PENDULUM), action_space={**spec(PENDULUM).action_space, "high": 3.0})
    with pytest.raises(ConfigError, match=r"action space is Box\(1, -2 to 2\), that of .* is Box\(1, -2 to 3\)"):
        open_source(str(pendulum), stretched)
    for source, error in (("nothing.zip", "no such file"), ("nothing", "a policy is a folder with policy.json")):
        with pytest.raises((CheckpointError, ConfigError), match=error):
            open_source(str(tmp_path / source), described)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(CheckpointError, match=r"text\.zip is not a zip that Stable-Baselines3 saved"):
        open_source(str(tmp_path / "text.zip"), described)
    with pytest.raises(ConfigError, match="--normalizer belongs to a zip"):
        open_source("experts:babyai", described, "normalizer.pkl")


def test_a_bot_without_a_plan_is_done_until_it_has_one(monkeypatch):
    """BabyAI's bot asserts that there is a way; after random actions there may be none for a while."""
    sys.modules.setdefault("compatibility", compatibility)
    from ldm_hf.env_registry.worker.experts import babyai

    class Bot:
        made, blocked = 0, True

        def __init__(self, env):
            Bot.made += 1

        def replan(self, last=None):
            assert not Bot.blocked
            return 2

    monkeypatch.setitem(sys.modules, "minigrid.utils.baby_ai_bot", SimpleNamespace(BabyAIBot=Bot))
    env = SimpleNamespace(unwrapped=SimpleNamespace(actions=SimpleNamespace(done=6)))
    act = babyai(env)
    assert (
        act(None, None) == 6 and Bot.made == 3
    )  # a new one tried, and one that knows nothing of the failure for later
    Bot.blocked = False
    assert act(None, 6) == 2 and Bot.made == 3


def test_an_mlp_acts_as_its_layers_do(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    mean, variance = torch.arange(4.0), torch.full((4,), 4.0)
    save_file(
        {**network.state_dict(), "observation.mean": mean, "observation.variance": variance}, tmp_path / "a.safetensors"
    )
    (tmp_path / "a.json").write_text('{"activation": "Tanh"}')
    policy, _ = open_source(str(tmp_path / "a.safetensors"), spec(CARTPOLE))
    seen = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    with torch.no_grad():
        logits = network((torch.from_numpy(seen) - mean) / 2)
    np.testing.assert_array_equal(policy.act(None, seen), logits.argmax(1))

    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1), torch.nn.Tanh())
    save_file(network.state_dict(), tmp_path / "b.safetensors")
    (tmp_path / "b.json").write_text('{"activation": "ReLU", "output": "tanh"}')
    policy, _ = open_source(str(tmp_path / "b.safetensors"), spec(PENDULUM))
    with torch.no_grad():
        wanted = 2 * network(torch.from_numpy(seen[:, :3]))  # the bounds are -2 and 2
    np.testing.assert_allclose(policy.act(None, seen[:, :3]), wanted, atol=1e-5)

    for environment, text, error in (
        (CARTPOLE, '{"activation": "ReLU", "output": "tanh"}', "takes Discrete actions"),
        (PENDULUM, '{"activation": "Tan"}', "activation is one of Tanh, ReLU.* got 'Tan'"),
        (PENDULUM, '{"layers": 3}', "must hold activation"),
        ("gymnasium/MountainCarContinuous-v0", '{"activation": "ReLU"}', "is not a policy of gymnasium/MountainCar"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises((ConfigError, CheckpointError), match=error):
            open_source(str(tmp_path / "b.safetensors"), spec(environment))
    network[0].weight.data[0, 0] = float("nan")
    save_file(network.state_dict(), tmp_path / "b.safetensors")
    (tmp_path / "b.json").write_text('{"activation": "ReLU"}')
    with pytest.raises(ConfigError, match="not finite"):
        open_source(str(tmp_path / "b.safetensors"), spec(PENDULUM))


PLANNED = """
def follow(env):
    steps = [0]
    def act(observation, last):
        steps[0] += 1
        return 0 if last is None else (last + steps[0]) % 2
    return act
"""


def test_experts_are_asked_where_the_environments_are():
    settings = RemoteSettings(Here(ODD), "CartPole-v1", max_episode_steps=5, expert=Expert("lean:act", LEAN))
    envs = RemoteVectorEnv(settings, 3, autoreset_mode=AutoresetMode.SAME_STEP)
    observations, _ = envs.reset(seed=4)
    for _ in range(12):
        wanted = (observations[:, 2] + 0.3 * observations[:, 3] > 0).astype(int)
        np.testing.assert_array_equal(envs.expert_actions(), wanted)
        observations, *_ = envs.step(envs.expert_actions())
    envs.close()
    settings = replace(settings, expert=Expert("plan:follow", PLANNED))
    envs = RemoteVectorEnv(settings, 2, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=4)
    before = None
    for step, taken in enumerate([(1, 0), (0, 0), (1, 1), (0, 1), (1, 0), (1, 1)]):
        # An episode has 5 steps. The function begins again with each: nothing was done before its first step.
        expected = [0, 0] if before is None or step == 5 else [(last + step + 1) % 2 for last in before]
        np.testing.assert_array_equal(envs.expert_actions(), expected)
        envs.step(np.array(taken))
        before = taken
    envs.close()


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("def act(observation):\n    raise KeyError('no way')", "expert failed: KeyError: 'no way'"),
        ("def act(observation):\n    return 2", "the expert's action 2 is outside the action space"),
        ("def act(observation):\n    return float('nan')", "the expert's action holds nan, which int64 cannot hold"),
        ("def act(observation):\n    return 'left'", "the expert's action holds 'left', which is not a number"),
        ("def other(observation):\n    return 0", "make failed: AttributeError"),
        ("raise OSError('at once')", "make failed: OSError: at once"),
        ("import os\ndef act(observation):\n    os._exit(3)", "the worker exited with status 3 during expert"),
    ],
)
def test_what_an_expert_does_wrong_is_one_line(function, error):
    settings = RemoteSettings(Here(ODD), "CartPole-v1", expert=Expert("bad:act", function))
    with pytest.raises(EnvironmentFailure, match=error):
        envs = RemoteVectorEnv(settings, 2, autoreset_mode=AutoresetMode.SAME_STEP)
        try:
            envs.reset(seed=0)
            envs.expert_actions()
        finally:
            envs.close()


def test_experts_need_isolation(tmp_path):
    with pytest.raises(ConfigError, match="experts run in isolation"):
        registry.make_vec(CARTPOLE, 1, provider="inprocess", expert=Expert("lean:act", LEAN))
    policy = ScriptedPolicy(Expert("lean:act", LEAN))
    policy.save(tmp_path)
    assert load_policy(tmp_path, spec(CARTPOLE)).expert == policy.expert


def test_noise_is_what_it_is_said_to_be():
    levels = (0.0, 0.25, 1.0)
    discrete = Noise(levels, {"type": "Discrete", "n": 4, "start": 3}, 0)
    actions = np.array([discrete.add(np.full(3, 5)) for _ in range(4000)])
    assert (actions[:, 0] == 5).all() and actions.min() == 3 and actions.max() == 6
    # A random action is another one in 3 of 4 cases: standard errors are 0.006 and 0.007.
    np.testing.assert_allclose((actions != 5).mean(0), [0, 0.25 * 0.75, 0.75], atol=0.03)
    box = {"type": "Box", "shape": [2], "dtype": "float32", "low": [-1.0, -10.0], "high": 1.0}
    real = Noise((0.0, 0.1), {**box, "high": [1.0, 30.0]}, 0)
    middle = np.array([[0.0, 10.0]] * 2, np.float32)
    noisy = np.array([real.add(middle) for _ in range(4000)])
    assert (noisy[:, 0] == middle[0]).all() and noisy.dtype == np.float32
    np.testing.assert_allclose(noisy[:, 1].std(0), [0.1, 2.0], rtol=0.05)  # 10 % of half of 2 and of half of 40
    assert (np.abs(Noise((1.0,), {**box, "low": -1.0}, 0).add(np.ones((1, 2), np.float32))) <= 1).all()
    both = {"type": "Dict", "spaces": {"a": {"type": "Discrete", "n": 2, "start": 0}, "b": {**box, "low": -1.0}}}
    mixed = Noise((0.0, 1.0), both, 0).add({"a": np.array([1, 1]), "b": np.zeros((2, 2), np.float32)})
    assert mixed["a"][0] == 1 and (mixed["b"][0] == 0).all() and (mixed["b"][1] != 0).all()


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"  # which says how long it took
    }


def test_rollouts_are_data_like_any_other(data, tmp_path):
    """Of a run: its own 0 % and 100 %; actions with noise, labels without; replayed; the same when they are made again."""
    source = data / "gymnasium/CartPole-v1/PPO-0"
    request = RolloutRequest(CARTPOLE, str(source), 1500, 3, (0.0, 0.5, 0.0), "all")
    job = RolloutJob(request, tmp_path)
    assert request.run == "PPO-0-rollouts-3" and not job.is_done
    record = build_rollouts(request, tmp_path)
    assert job.is_done and not RolloutJob(replace(request, noise=(0.0,)), tmp_path).is_done
    RolloutJob(replace(request, noise=(0.0,)), tmp_path).refuse_to_replace()  # which the same policy may
    other = replace(request, source=str(data / "gymnasium/CliffWalking-v1/DQN-0"))
    with pytest.raises(ConfigError, match=r"PPO-0-rollouts-3 is a run of another policy: give this one .* by --run"):
        RolloutJob(other, tmp_path).refuse_to_replace()
    dataset = open_dataset(request.folder(tmp_path))
    origin = open_dataset(source).info
    assert record.info is not None and record.info.curve == origin.curve and record.info.training_steps == 0
    assert record.info.hyperparameters["noise"] == [0.0, 0.5, 0.0] and record.info.algorithm == "PPO"
    assert dataset.num_transitions == record.info.num_transitions >= 1500
    again = replay(dataset)
    assert again.rows == dataset.num_transitions and not again.different
    policy, _ = open_source(str(source), spec(CARTPOLE))
    for index, (stream, _) in enumerate(dataset.places()):
        chunk = dataset.chunk(index)
        wanted = policy.act(None, chunk.observations)
        np.testing.assert_array_equal(chunk.reference_actions[:, 0], wanted)
        share = (chunk.actions != chunk.reference_actions).mean()
        assert share == 0 if stream != 1 else 0.1 < share < 0.4  # half of them are drawn, half of these are others
    first = hashes(request.folder(tmp_path))
    job.execute()
    assert hashes(request.folder(tmp_path)) == first


def test_a_model_acts_and_the_policy_says_what_it_would_do(data, tmp_path, model, processor):
    """Fed what was recorded, episode after episode, the model acts as recorded, and the policy as the labels say."""
    for part in (model, processor):
        part.save_pretrained(tmp_path / "acting")
    source = data / "gymnasium/CartPole-v1/PPO-0"
    request = RolloutRequest(CARTPOLE, str(source), 900, 3, keep="all", actor=str(tmp_path / "acting"))
    assert request.run == "PPO-0-rollouts-3-acting" and request.noise == (0.0,) * 16
    record, job = build_rollouts(request, tmp_path), RolloutJob(request, tmp_path)
    assert record.info is not None and job.is_done and not replay(open_dataset(request.folder(tmp_path))).different
    assert not RolloutJob(replace(request, actor=None), tmp_path).is_done
    dataset = open_dataset(request.folder(tmp_path))
    places = list(dataset.places())
    recorded = [dataset.chunk(places.index(place)) for place in sorted(places) if place[0] == 5]
    rows = [(part, row) for part in recorded for row in range(len(part))]
    assert len(rows) > 50 and sum(part.terminated[row] for part, row in rows) >= 2
    acting, outcome = LDMPolicy(model, processor, [spec(CARTPOLE)]), ()
    wanted, _ = open_source(str(source), spec(CARTPOLE))
    for part, row in rows:
        assert acting.act([part.observations[row]], *outcome) == [part.actions[row, 0]]
        outcome = tuple([values[row]] for values in (part.rewards, part.terminated, part.truncated))
    differ = 0
    for part in recorded:
        np.testing.assert_array_equal(part.reference_actions[:, 0], wanted.act(None, part.observations))
        differ += (part.actions != part.reference_actions).sum()
    assert differ > 0
    save_file({"changed": torch.zeros(1)}, tmp_path / "acting" / "other.safetensors")
    assert not job.is_done  # what another model saw is something else


def test_a_heuristic_becomes_data_and_a_bad_policy_none(isolated, tmp_path):
    (tmp_path / "lean.py").write_text(LEAN)
    good = build_rollouts(RolloutRequest(CARTPOLE, f"{tmp_path}/lean.py:act", 1000, 0, (0.0, 0.0, 1.0)), tmp_path)
    assert good.dropped is None and good.info is not None
    assert good.info.last10 == good.info.deterministic_return > 400 > 40 > good.info.first10 > 10
    assert good.info.flags == [] and good.info.assessment.anchors.random.mean == good.info.first10
    assert good.info.curve.order == BY_POLICY and good.info.provenance["provider"] == "venv"
    dataset = open_dataset(tmp_path / "gymnasium/CartPole-v1/act-rollouts-0")
    assert not replay(dataset).different
    chunk = dataset.chunk(0)
    np.testing.assert_array_equal(
        chunk.reference_actions[:, 0], (chunk.observations[:, 2] + 0.3 * chunk.observations[:, 3] > 0)
    )
    (tmp_path / "lean.py").write_text("def act(observation):\n    return 1\n")
    bad = build_rollouts(RolloutRequest(CARTPOLE, f"{tmp_path}/lean.py:act", 300), tmp_path)
    folder = tmp_path / "gymnasium/CartPole-v1/act-rollouts-0"
    assert bad.dropped is not None and "no better than random" in bad.dropped
    assert bad.info is not None and "always does the same: 1" in bad.info.flags
    assert not list(folder.glob("*.parquet")) and (folder / "policy" / "expert.py").exists()
    again = RolloutRequest(CARTPOLE, f"{tmp_path}/lean.py:act", 300)
    assert RolloutJob(again, tmp_path).is_done and not RolloutJob(replace(again, keep="all"), tmp_path).is_done
    settings = []
    for content in (b"one", b"other"):
        (tmp_path / "statistics.pkl").write_bytes(content)
        settings.append(replace(again, normalizer=str(tmp_path / "statistics.pkl")).settings)
    assert settings[0] != settings[1]  # so that rollouts with the right statistics replace those with wrong ones


class AtOnce:
    """An executor that runs a job in this process, when it is handed over."""

    def __init__(self):
        self._ended = []

    def has_room(self, job):
        return True

    def submit(self, job):
        job.execute()
        self._ended.append(JobResult(job))

    def wait(self, seconds):
        ended, self._ended = self._ended, []
        return ended


def test_what_an_expert_failed_of_is_recorded_and_it_is_not_tried_twice(isolated, tmp_path):
    (tmp_path / "broken.py").write_text("def act(observation):\n    raise ValueError('no plan from here')\n")
    job = RolloutJob(RolloutRequest(CARTPOLE, f"{tmp_path}/broken.py:act", 100), tmp_path)
    said: list[str] = []
    (record,) = run_rollouts([job], AtOnce(), tmp_path, said.append)
    assert record.dropped is not None and "ValueError: no plan from here" in record.dropped
    assert len(said) == 1 and "no plan from here" in said[0]
    assert not job.is_done  # the same command tries it again


def test_requests_are_checked_at_once():
    for changes, error in (
        ({"noise": (1.5,)}, "levels from 0 to 1"),
        ({"timesteps": 0}, "at least 1"),
        ({"run": "../up"}, "the name of a run"),
        ({"source": "a/.b:c", "run": ".b"}, "the name of a run"),
    ):
        with pytest.raises(ConfigError, match=error):
            RolloutRequest(**{"environment": CLIFF, "source": "a:b", "timesteps": 1, **changes})
    for source, name in (
        ("x/PPO-3/policy", "PPO-3"),
        ("x/best.zip", "best"),
        ("x/lean.py:act", "act"),
        ("policy", "policy"),
    ):
        assert RolloutRequest(CLIFF, source, 1, 2).run == f"{name}-rollouts-2"


def test_shipped_experts_are_named_by_manifests_of_their_libraries():
    """What `experts.py` names must be there in the installations that the locks describe; they run in `docs/bank.md`."""
    assert any("metaworld" in line for line in load_manifests()["metaworld"].lock)
    assert any("minigrid" in line for line in load_manifests()["minigrid"].lock)
