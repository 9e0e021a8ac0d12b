"""Candidates, recording, reference policies, and runs of all three."""

import resource
import subprocess
import sys

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from conftest import CARTPOLE, CLIFF, PENDULUM
from ldm_hf.dataset_builder.candidates import Candidate
from ldm_hf.dataset_builder.reader import open_dataset
from ldm_hf.dataset_builder.recorder import RecorderVecEnv, Recording, first_and_last10
from ldm_hf.dataset_builder.reference import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.run import _relabelled, build_run
from ldm_hf.dataset_builder.writer import ChunkRange
from ldm_hf.errors import ConfigError, EnvironmentFailure, StorageError
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_to_json


class Counter(gymnasium.Env):
    """Counts up to its length: the observation is (copy, episode, step), the reward 100 x episode + step."""

    observation_space = spaces.Box(0, 1000, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, copy: int, lengths: list[int]):
        self.copy, self.lengths, self.episode, self.count = copy, lengths, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        assert np.abs(action).max() <= 1  # what reaches the environment is clipped
        reward = 100 * self.episode + self.count
        self.count += 1
        length = self.lengths[self.episode % len(self.lengths)]
        # Odd episodes are cut off, even ones end by themselves.
        over = self.count == length
        return self._observation(), reward, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}

    def _observation(self):
        return np.array([self.copy, self.episode, self.count], np.float32)


@pytest.mark.parametrize("normalize", [False, True])
def test_rows_hold_what_was_seen_done_and_received(tmp_path, normalize):
    lengths = {0: [3, 2], 1: [1, 4]}
    venv = DummyVecEnv([lambda copy=copy: Counter(copy, lengths[copy]) for copy in lengths])
    recording = Recording(tmp_path / "r", 50, venv)
    recorder = RecorderVecEnv(venv, recording)
    PPO("MlpPolicy", VecNormalize(recorder) if normalize else recorder, n_steps=64, batch_size=32, seed=0).learn(128)
    assert recording.length == 50  # the capacity; the algorithm went on
    for copy, cycle in lengths.items():
        row = 0
        for episode in range(6):
            length = cycle[episode % 2]
            for step in range(length):
                assert recording.observations["observation"][row, copy].tolist() == [copy, episode, step]
                assert recording.rewards[row, copy] == 100 * episode + step
                last = step == length - 1
                assert recording.terminated[row, copy] == (last and episode % 2 == 0)
                assert recording.truncated[row, copy] == (last and episode % 2 == 1)
                assert abs(recording.actions[row, copy, 0]) <= 1
                row += 1
    # Episode e of a copy returns 100 e length + (0 + ... + length-1); the first four to end, by hand, ties by copy.
    assert recording.episode_returns()[:4].tolist() == [0, 3, 201, 406]


def test_resets_within_an_episode_truncate_it(tmp_path):
    """ARS resets all copies when one of them has finished."""
    venv = DummyVecEnv([lambda copy=copy: Counter(copy, [5 - copy]) for copy in range(3)])
    recording = Recording(tmp_path / "r", 60, venv)
    train_policy(
        RecorderVecEnv(venv, recording),
        Candidate("ARS", {"n_delta": 2}, 3),
        timesteps=180,
        seed=0,
        progress=lambda _: None,
    )
    seen = recording.observations["observation"][:60]
    done = recording.terminated | recording.truncated
    for copy in range(3):
        for (_, episode, count), (_, next_episode, next_count), over in zip(
            seen[:-1, copy], seen[1:, copy], done[:-1, copy], strict=True
        ):
            assert (next_episode > episode and next_count == 0) if over else next_episode == episode
            assert over or next_count == count + 1
    # Every evaluation lasts three steps, copy 2's episodes; those of the others never end by themselves.
    returns = recording.episode_returns()
    assert len(returns) == done[:, 2].sum() and done[:, 0].sum() == done[:, 2].sum() - 1
    assert set(returns % 100) == {0 + 1 + 2}


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_return_that_is_not_finite_spoils_no_other(tmp_path, bad):
    venv = DummyVecEnv([lambda: Counter(0, [2])])
    recording = Recording(tmp_path / "r", 6, venv)
    for reward, over in [(1, False), (2, True), (bad, False), (2, True), (3, False), (4, True)]:
        recording.append(np.zeros(3), np.zeros(1), np.array([reward]), np.array([over]), np.array([False]))
    np.testing.assert_array_equal(recording.episode_returns(), [3, bad, 7])
    with pytest.raises(EnvironmentFailure, match="1 of 12 episodes have no finite return"):
        first_and_last10(np.tile(recording.episode_returns(), 4)[np.r_[0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2]])


def test_first_and_last_tenth():
    assert first_and_last10(np.arange(10.0)) == (0, 9)
    assert first_and_last10(np.arange(39.0)) == (1, 37)  # three episodes each: 0 1 2 and 36 37 38
    with pytest.raises(EnvironmentFailure, match="only 9 episodes"):
        first_and_last10(np.zeros(9))


class Camera(gymnasium.Env):
    """Random pictures, or pictures and numbers."""

    action_space = spaces.Discrete(3)

    def __init__(self, with_numbers: bool):
        picture = spaces.Box(0, 255, (40, 40, 3), np.uint8)
        self.observation_space = (
            spaces.Dict({"picture": picture, "numbers": spaces.Box(-1, 1, (2,))}) if with_numbers else picture
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, self.np_random.random() < 0.2, {}


@pytest.mark.parametrize(
    ("make", "candidate"),
    [
        (lambda: gymnasium.make("Pendulum-v1"), Candidate("PPO", {"n_steps": 32, "use_sde": True}, 2, normalize=True)),
        (lambda: gymnasium.make("CliffWalking-v1"), Candidate("PPO", {"n_steps": 32}, 2)),
        (lambda: gymnasium.make("CartPole-v1"), Candidate("DQN", {"learning_starts": 10}, 2)),
        (lambda: gymnasium.make("CartPole-v1"), Candidate("QRDQN", {"learning_starts": 10}, 2)),
        (lambda: gymnasium.make("Pendulum-v1"), Candidate("SAC", {"learning_starts": 10}, 2)),
        (lambda: gymnasium.make("Pendulum-v1"), Candidate("TD3", {"learning_starts": 10}, 2)),
        (lambda: gymnasium.make("Pendulum-v1"), Candidate("DDPG", {"learning_starts": 10}, 2)),
        (lambda: gymnasium.make("Pendulum-v1"), Candidate("TQC", {"learning_starts": 10}, 2)),
        (lambda: gymnasium.make("CartPole-v1"), Candidate("TRPO", {"n_steps": 32}, 2)),
        (lambda: gymnasium.make("CartPole-v1"), Candidate("ARS", {"n_delta": 2}, 2)),
        (
            lambda: gymnasium.make("CartPole-v1"),
            Candidate("A2C", {"policy_kwargs": {"net_arch": [16], "activation_fn": "ReLU"}}, 2),
        ),
        (lambda: Camera(False), Candidate("PPO", {"n_steps": 32}, 2)),
        (lambda: Camera(True), Candidate("PPO", {"n_steps": 32}, 2, normalize=False)),
    ],
    ids=lambda value: getattr(value, "algorithm", ""),
)
def test_a_reloaded_policy_acts_as_the_trained_one(tmp_path, make, candidate):
    venv = DummyVecEnv([make] * candidate.num_envs)
    policy = train_policy(venv, candidate, timesteps=64, seed=0, progress=lambda done: None)
    policy.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = ReferencePolicy.load(tmp_path)
    venv.observation_space.seed(3)
    samples = [venv.observation_space.sample() for _ in range(50)]
    keys = getattr(venv.observation_space, "spaces", {})
    batch = {key: np.stack([sample[key] for sample in samples]) for key in keys} or np.stack(samples)
    np.testing.assert_array_equal(again.act(batch), policy.act(batch))


def test_normalised_observations_reach_the_policy(tmp_path):
    """What Stable-Baselines3 itself computes for the same raw observations."""
    venv = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    model = PPO("MlpPolicy", venv, n_steps=64, seed=0).learn(256)
    reference = ReferencePolicy.of(model, Candidate("PPO"), venv)
    raw = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    expected, _ = model.predict(venv.normalize_obs(raw), deterministic=True)
    np.testing.assert_allclose(reference.act(raw), expected, atol=1e-5)


def test_labels_are_the_final_policy_s_deterministic_actions(data):
    for environment in ("CartPole-v1", "CliffWalking-v1", "Pendulum-v1"):
        folder = data / "gymnasium" / environment
        policy, dataset = ReferencePolicy.load(folder / "policy"), open_dataset(folder)
        chunk = dataset.chunk(0)
        observations = (
            chunk.observations.astype(np.int64)[:, 0] if environment.startswith("Cliff") else chunk.observations
        )
        acted = policy.act(observations).reshape(len(chunk), -1)
        np.testing.assert_allclose(chunk.reference_actions, acted, atol=1e-6)
        assert (chunk.actions != chunk.reference_actions).any()  # the training policy explored


def test_labels_do_not_depend_on_how_many_are_made_at_once(tmp_path, monkeypatch):
    venv = DummyVecEnv([lambda: Camera(True)] * 2)
    recording = Recording(tmp_path / "r", 40, venv)
    policy = train_policy(
        RecorderVecEnv(venv, recording),
        Candidate("PPO", {"n_steps": 16}, 2),
        timesteps=80,
        seed=0,
        progress=lambda _: None,
    )
    layouts = SlotLayout.of(venv.observation_space), SlotLayout.of(venv.action_space, role="action")
    at_once = _relabelled(recording, ChunkRange(1, 3, 31), policy, *layouts)
    assert recording.observation_bytes == 40 * 40 * 3 + 2 * 4
    monkeypatch.setattr("ldm_hf.dataset_builder.run._BATCH_BYTES", 5 * recording.observation_bytes)
    piecewise = _relabelled(recording, ChunkRange(1, 3, 31), policy, *layouts)
    assert len(at_once) == 28 and at_once.images.shape == (28, 64, 64, 3)
    for name, values in vars(at_once).items():
        np.testing.assert_array_equal(getattr(piecewise, name), values, name)


def test_a_run_says_where_it_comes_from(data):
    info = open_dataset(data / "gymnasium" / "Pendulum-v1").info
    assert (info.environment, info.algorithm, info.seed, info.num_streams) == (PENDULUM, "PPO", 0, 4)
    assert info.hyperparameters == {"n_steps": 64, "use_sde": True, "num_envs": 4, "normalize": True}
    assert info.num_transitions == 4096 and info.num_episodes == 20  # 1024 steps of each copy, 200 an episode
    assert len(info.deterministic_returns) == 20 and info.library_version == gymnasium.__version__
    assert set(info.packages) >= {"python", "torch", "stable_baselines3", "gymnasium"}


def test_the_same_seed_gives_the_same_data(data, tmp_path):
    build_run(CARTPOLE, Candidate("PPO", {"n_steps": 64}, num_envs=4), timesteps=2048, seed=0, root=tmp_path)
    name = "gymnasium/CartPole-v1/train-00000-of-00001.parquet"
    assert pq.read_table(tmp_path / name).equals(pq.read_table(data / name))


def test_a_candidate_that_cannot_act_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"DQN cannot act in gymnasium/Pendulum-v1"):
        build_run(PENDULUM, Candidate("DQN"), timesteps=100, seed=0, root=tmp_path)
    with pytest.raises(ConfigError, match="no algorithm is called 'PPG'"):
        Candidate("PPG")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_loses_nothing(data, tmp_path):
    """The largest file that the process may write stands in for the space that is left."""
    program = f"""
import resource
from pathlib import Path
from ldm_hf.dataset_builder.candidates import Candidate
from ldm_hf.dataset_builder.run import build_run
from ldm_hf.errors import StorageError
import ldm_hf.dataset_builder.run as run
write = run.write_dataset
def full(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return write(*arguments)
run.write_dataset = full
try:
    build_run({CARTPOLE!r}, Candidate("PPO", {{"n_steps": 64}}, 4), timesteps=2048, seed=1, root=Path({str(tmp_path)!r}))
except StorageError as error:
    print(error)
"""
    folder = tmp_path / "gymnasium/CartPole-v1"
    folder.mkdir(parents=True)
    (folder / "old").write_text("kept")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "cannot be written: " in done.stdout and "untouched" in done.stdout, done.stderr
    assert (folder / "old").read_text() == "kept"
    assert [path.name for path in folder.parent.iterdir()] == ["CartPole-v1"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_what_an_algorithm_cannot_train_on_is_one_line(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"^A2C on gymnasium/Blackjack-v1 failed: .*not supported$"):
        build_run("gymnasium/Blackjack-v1", Candidate("A2C"), timesteps=100, seed=0, root=tmp_path)
    with pytest.raises(EnvironmentFailure, match=r"only supports `gym.spaces.Box`"):
        build_run(CLIFF, Candidate("PPO", normalize=True), timesteps=100, seed=0, root=tmp_path)
    with pytest.raises(EnvironmentFailure, match=r"only . episodes ended"):
        build_run(PENDULUM, Candidate("PPO", {"n_steps": 100}), timesteps=1000, seed=0, root=tmp_path)
    assert not list((tmp_path / "gymnasium").iterdir())


def test_space_for_a_recording_is_taken_before_training(tmp_path):
    """Writing to a mapped page that finds no space would kill the process, so all of it must be there at once."""
    venv = DummyVecEnv([lambda: Camera(False)])
    Recording(tmp_path / "r", 1000, venv)
    for path in (tmp_path / "r").iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size > 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot hold a recording of 1000 transitions: .*; nothing was lost"):
            Recording(tmp_path / "s", 1000, venv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_models_of_stable_baselines_are_what_the_table_says():
    box, discrete, several = spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3])
    bits, nested = spaces.MultiBinary(3), spaces.Dict({"a": spaces.Discrete(2)})
    taken = {
        **dict.fromkeys(("A2C", "PPO", "TRPO"), (box, discrete, several, bits)),
        **dict.fromkeys(("DQN", "QRDQN"), (discrete,)),
        **dict.fromkeys(("DDPG", "SAC", "TD3", "TQC"), (box,)),
        "ARS": (box, discrete),
    }
    for algorithm, expected in taken.items():
        for space in (box, discrete, several, bits, nested):
            assert Candidate(algorithm).takes(space_to_json(space)) == (space in expected), (algorithm, space)
    for space in (
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.array([0, -np.inf]), np.array([1, 1])),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        spaces.MultiDiscrete([[2, 3], [2, 2]]),
        spaces.MultiBinary([2, 2]),
    ):
        assert not Candidate("PPO").takes(space_to_json(space)), space
    for algorithm, cls in (("SAC", SAC), ("DQN", DQN), ("PPO", PPO)):
        venv = DummyVecEnv([lambda: gymnasium.make("Blackjack-v1")])
        venv.action_space = spaces.Tuple([spaces.Discrete(2)])
        with pytest.raises(AssertionError):
            cls("MlpPolicy", venv)
        assert not Candidate(algorithm).takes(space_to_json(venv.action_space))
