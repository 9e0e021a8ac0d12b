"""Recording, relabelling, writing and reading."""

import json
import resource
import subprocess
import sys

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from conftest import CARTPOLE, CLIFF, PENDULUM
from ldm_hf.dataset_builder.candidates import Candidate
from ldm_hf.dataset_builder.reader import open_dataset, open_datasets
from ldm_hf.dataset_builder.recorder import RecorderVecEnv, Recording, first_and_last10
from ldm_hf.dataset_builder.reference import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.run import build_run
from ldm_hf.dataset_builder.schema import METADATA_KEY, RunInfo
from ldm_hf.dataset_builder.writer import plan_chunks, write_dataset
from ldm_hf.errors import ConfigError, DatasetFormatError, EnvironmentFailure, UnknownEnvironmentError
from ldm_hf.modeling.processing_ldm import Transitions
from ldm_hf.modeling.spaces_ldm import space_to_json


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


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5), st.integers(1, 40))
def test_chunks_cover_every_transition_once(lengths, chunk_length):
    chunks = plan_chunks(lengths, seed=0, chunk_length=chunk_length)
    rows = [(chunk.stream, row) for chunk in chunks for row in range(chunk.start, chunk.stop)]
    assert sorted(rows) == [(stream, row) for stream, length in enumerate(lengths) for row in range(length)]
    for stream in range(len(lengths)):
        sizes = [chunk.stop - chunk.start for chunk in chunks if chunk.stream == stream]
        assert not sizes or (max(sizes) <= chunk_length and max(sizes) - min(sizes) <= 1)


def some_info(observation_space: spaces.Space, action_space: spaces.Space, rows: int) -> RunInfo:
    return RunInfo(
        *("test/Some-v0", space_to_json(observation_space), space_to_json(action_space)),
        *(0.0, 1.0, 1.0, [1.0], 1, rows, 2, "PPO", {}, 0, None, {}),
    )


def some_transitions(rows: int, slots: int, actions: int, image: bool) -> Transitions:
    generator = np.random.default_rng(rows)
    return Transitions(
        generator.normal(size=(rows, slots)).astype(np.float32),
        generator.integers(0, 256, (rows, 64, 64, 3), np.uint8) if image else None,
        generator.normal(size=(rows, actions)).astype(np.float32),
        generator.normal(size=rows).astype(np.float32),
        generator.random(rows) < 0.3,
        generator.random(rows) < 0.3,
        generator.normal(size=(rows, actions)).astype(np.float32),
    )


PICTURE = spaces.Box(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "slots", "image"),
    [
        (spaces.Box(-1, 1, (5,)), 5, False),
        (PICTURE, 0, True),
        (spaces.Dict({"camera": PICTURE, "speed": spaces.Box(-1, 1, (2,))}), 2, True),
    ],
    ids=["numbers", "picture", "both"],
)
def test_what_is_written_is_read(tmp_path, space, slots, image):
    streams = [some_transitions(30, slots, 2, image), some_transitions(17, slots, 2, image)]
    chunks = plan_chunks([30, 17], seed=1, chunk_length=8)
    write_dataset(
        tmp_path,
        some_info(space, spaces.Box(-9, 9, (2,)), 47),
        chunks,
        lambda chunk: streams[chunk.stream][chunk.start : chunk.stop],
    )
    dataset = open_dataset(tmp_path)
    assert dataset.num_chunks == len(chunks) == 7 and dataset.num_transitions == 47
    for index, chunk in enumerate(chunks):
        found, expected = dataset.chunk(index), streams[chunk.stream][chunk.start : chunk.stop]
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(found, name), value, name)


def test_plain_datasets_streams_it(data):
    program = f"""
from datasets import load_dataset
rows = list(load_dataset({str(data / "gymnasium")!r}, "CartPole-v1", split="train", streaming=True))
print(len(rows), sorted(rows[0]), sum(len(row["observation"]) for row in rows))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    columns = "['action', 'observation', 'reference_action', 'reward', 'step', 'stream', 'terminated', 'truncated']"
    assert done.stdout.strip() == f"2048 {columns} {4 * 2048}", done.stderr


def test_manifest_and_card_list_the_environments(data):
    rows = pq.read_table(data / "gymnasium" / "manifest.parquet").to_pylist()
    assert [row["environment"] for row in rows] == [CARTPOLE, CLIFF, PENDULUM]
    assert rows[0]["files"][0]["bytes"] == (data / "gymnasium" / rows[0]["files"][0]["path"]).stat().st_size
    card = (data / "gymnasium" / "README.md").read_text()
    assert "- config_name: CliffWalking-v1\n  data_files: CliffWalking-v1/train-*.parquet\n" in card
    assert [dataset.environment for dataset in open_datasets(data, [PENDULUM, CARTPOLE])] == [CARTPOLE, PENDULUM]
    with pytest.raises(UnknownEnvironmentError, match="no data of gymnasium/Nothing-v0"):
        open_datasets(data, ["gymnasium/Nothing-v0"])


@pytest.fixture
def copy(data, tmp_path):
    """A file of its own to damage."""
    folder = tmp_path / "CartPole-v1"
    folder.mkdir()
    path = folder / "train-00000-of-00001.parquet"
    path.write_bytes((data / "gymnasium/CartPole-v1" / path.name).read_bytes())
    return path


def refused(path, reason):
    with pytest.raises(DatasetFormatError, match=reason) as caught:
        dataset = open_dataset(path.parent)
        for index in range(dataset.num_chunks):
            dataset.chunk(index)
    message = str(caught.value)
    assert str(path.parent) in message and "\n" not in message


def test_truncated_and_foreign_files_are_refused(copy):
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2])
    refused(copy, "no whole Parquet file")
    copy.write_bytes(b"")
    refused(copy, "no whole Parquet file")
    copy.write_text("a,b\n1,2\n")
    refused(copy, "no whole Parquet file")
    copy.unlink()
    refused(copy, "holds no dataset")


def test_a_flipped_byte_is_noticed(copy):
    whole = bytearray(copy.read_bytes())
    whole[len(whole) // 3] ^= 0xFF
    copy.write_bytes(whole)
    refused(copy, "is damaged in chunk|cannot")


def test_other_parquet_files_and_versions_are_refused(copy):
    table = pq.read_table(copy)
    pq.write_table(table.replace_schema_metadata({}), copy)
    refused(copy, "no ldm_hf dataset")
    info = json.loads(table.schema.metadata[METADATA_KEY])
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps({**info, "version": 99}).encode()}), copy)
    refused(copy, "format version 99; this version of ldm_hf reads 1")
    pq.write_table(table.drop_columns(["reward"]), copy)
    refused(copy, "columns that do not fit")
    pq.write_table(table.slice(0, 1000), copy)
    refused(copy, "does not hold the 2048 transitions")


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


def test_models_of_stable_baselines_are_what_the_table_says():
    assert Candidate("SAC").takes({"type": "Box"}) and not Candidate("SAC").takes({"type": "Discrete"})
    assert Candidate("DQN").takes({"type": "Discrete"}) and not Candidate("DQN").takes({"type": "MultiDiscrete"})
    assert not Candidate("PPO").takes({"type": "Dict"})
    for algorithm, cls in (("SAC", SAC), ("DQN", DQN), ("PPO", PPO)):
        venv = DummyVecEnv([lambda: gymnasium.make("Blackjack-v1")])
        venv.action_space = spaces.Tuple([spaces.Discrete(2)])
        with pytest.raises(AssertionError):
            cls("MlpPolicy", venv)
        assert not Candidate(algorithm).takes(space_to_json(venv.action_space))
