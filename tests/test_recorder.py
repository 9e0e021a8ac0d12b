"""Candidates, recording, reference policies, and runs of all three."""

import contextlib

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from conftest import CARTPOLE, PENDULUM, small_disk
from ldm_hf.dataset_builder.format.reader import open_dataset
from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.dataset_builder.format.writer import ChunkRange
from ldm_hf.dataset_builder.reference import run as run_module
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.reference.recorder import EpisodeLog, Recorder
from ldm_hf.dataset_builder.reference.recording import BlockFile, Recording
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.reference.run import build_run
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.errors import ConfigError, EnvironmentFailure, StorageError
from ldm_hf.modeling.spaces_ldm import SlotLayout


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


def vector(makes, **options):
    return SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP, **options)


def recorded(folder, makes, steps: int, limit: int) -> tuple[Recorder, Recording]:
    envs = vector(makes)
    recording = Recording(folder / "recording", steps, envs)
    return Recorder(envs, steps, limit, recording), recording


@pytest.mark.parametrize("normalize", [False, True])
def test_rows_hold_what_was_seen_done_and_received(tmp_path, normalize):
    lengths = {0: [3, 2], 1: [1, 4]}
    recorder, recording = recorded(
        tmp_path, [lambda copy=copy: Counter(copy, lengths[copy]) for copy in lengths], 50, 4
    )
    venv = Sb3VecEnv(recorder)
    PPO("MlpPolicy", VecNormalize(venv) if normalize else venv, n_steps=64, batch_size=32, seed=0).learn(128)
    # 50 steps are the last of copy 0's tenth pair of episodes, and of copy 1's too: nothing is left to be finished.
    assert recording.lengths.tolist() == [50, 50] and not recorder.is_recording  # the algorithm continued
    for copy, cycle in lengths.items():
        seen, acted = recording.observation_batch(copy, 0, 50), recording.action_batch(copy, 0, 50)
        row = 0
        for episode in range(6):
            length = cycle[episode % 2]
            for step in range(length):
                assert seen[row].tolist() == [copy, episode, step]
                assert recording.rewards[row, copy] == 100 * episode + step
                last = step == length - 1
                assert recording.terminated[row, copy] == (last and episode % 2 == 0)
                assert recording.truncated[row, copy] == (last and episode % 2 == 1)
                assert abs(acted[row, 0]) <= 1
                row += 1
    # Episode e of a copy returns 100 e length + (0 + ... + length-1). By their starts, 0 0 1 3 5 5 ..., ties by copy: those
    # of copy 0 and 1, copy 1's second, copy 0's second, and so on. There are 40; the first window has ten of them.
    curve = recorder.curve()
    assert curve.returns[:6] == [3, 0, 406, 201, 603, 200] and curve.transitions[:6] == [0, 0, 2, 6, 10, 10]
    first = [3, 0, 406, 201, 603, 200, 1206, 601, 1203, 400]  # begun at 0 0 1 3 5 5 6 8 10 10
    assert len(curve.returns) == 40 and curve.first.mean == pytest.approx(sum(first) / 10)
    # What each episode ended on: copy 1's first after 1 step, copy 0's first after 3, both seconds at step 5 of each copy.
    assert recording.terminals[:4] == [(1, 0), (0, 2), (0, 4), (1, 4)]
    assert recording.terminal_batch(0, 4).tolist() == [[1, 0, 1], [0, 0, 3], [0, 1, 2], [1, 1, 4]]


@pytest.mark.parametrize("item", [(), (3,), (20, 20, 3)])
def test_blocks_on_disk_are_what_was_appended(tmp_path, item, monkeypatch):
    monkeypatch.setattr("ldm_hf.dataset_builder.reference.recording._BLOCK_BYTES", 2 * 7 * 8 * int(np.prod(item)))
    rows = np.random.default_rng(0).integers(0, 255, (25, 2, *item)).astype(np.int64)
    file = BlockFile(tmp_path / "b", np.int64, 2, item)
    for row in rows:
        file.put(np.zeros_like(row))  # what is put again before it is added counts
        file.put(row)
        file.advance()
    for start, stop in [(0, 25), (0, 7), (6, 8), (20, 25), (13, 14), (5, 5)]:
        np.testing.assert_array_equal(file.read(1, start, stop), rows[start:stop, 1])
    assert 0 < (tmp_path / "b").stat().st_size < rows.nbytes
    file.close()


def test_resets_within_an_episode_truncate_it(tmp_path):
    """ARS resets all copies when one of them has finished."""
    recorder, recording = recorded(tmp_path, [lambda copy=copy: Counter(copy, [5 - copy]) for copy in range(3)], 60, 5)
    train_policy(
        Sb3VecEnv(recorder),
        Candidate("ARS", {"n_delta": 2}, 3),
        timesteps=180,
        seed=0,
        progress=lambda _: None,
        recorder=recorder,
    )
    assert recording.lengths.tolist() == [60] * 3 and not recorder.is_recording
    seen = np.stack([recording.observation_batch(copy, 0, 60) for copy in range(3)], 1)
    done = (recording.terminated | recording.truncated)[:60]
    for copy in range(3):
        for (_, episode, count), (_, next_episode, next_count), over in zip(
            seen[:-1, copy], seen[1:, copy], done[:-1, copy], strict=True
        ):
            assert (next_episode > episode and next_count == 0) if over else next_episode == episode
            assert over or next_count == count + 1
    # Every evaluation lasts three steps, copy 2's episodes; those of the others never end by themselves.
    returns = np.array(recorder.curve().returns)
    assert len(returns) == done[:, 2].sum() == 20 and (done[:, 0] == done[:, 2]).all()
    assert set(returns % 100) == {0 + 1 + 2}


CANDIDATES = [
    (Candidate("PPO", {"n_steps": 20, "use_sde": True}, 3, normalize=True), spaces.Box(-1, 1, (1,))),
    (Candidate("A2C", {"n_steps": 5}, 3), spaces.Box(-1, 1, (1,))),
    (Candidate("DQN", {"learning_starts": 10, "train_freq": 7}, 1), spaces.Discrete(2)),
    (Candidate("SAC", {"learning_starts": 10}, 3), spaces.Box(-1, 1, (1,))),
    (Candidate("TD3", {"learning_starts": 10, "action_noise": 0.3}, 1), spaces.Box(-1, 1, (1,))),
    (Candidate("ARS", {"n_delta": 2}, 1, policy="LinearPolicy"), spaces.Discrete(2)),
]


@pytest.mark.parametrize(("candidate", "actions"), CANDIDATES, ids=[candidate.algorithm for candidate, _ in CANDIDATES])
def test_episodes_that_were_begun_are_played_to_their_ends_and_nothing_is_learned_from_them(
    tmp_path, candidate, actions, monkeypatch
):
    """Episodes last 7, 8 and 9 steps; 50 steps of each of 3 copies are trained on, or 50 of one."""
    monkeypatch.setattr(Counter, "action_space", actions)
    policies = {}
    for finished in (True, False):
        makes = [lambda copy=copy: Counter(copy, [7 + copy]) for copy in range(candidate.num_envs)]
        recorder, recording = recorded(tmp_path / str(finished), makes, 50, 10)
        policies[finished] = train_policy(
            Sb3VecEnv(recorder),
            candidate,
            timesteps=50 * candidate.num_envs,
            seed=0,
            progress=lambda _: None,
            recorder=recorder if finished else None,
        )
        if finished:
            assert recorder.training_steps >= 50 and not recorder.is_recording
            # The eighth episode of 7 steps ends with step 56, the seventh of 8 does too, the sixth of 9 with step 54.
            assert recording.lengths.tolist() == [56, 56, 54][: candidate.num_envs]
            for copy, length in enumerate(recording.lengths):
                over = recording.terminated[:length, copy] | recording.truncated[:length, copy]
                assert np.flatnonzero(over).tolist() == list(range(6 + copy, length, 7 + copy))
            assert recording.num_episodes == sum([8, 7, 6][: candidate.num_envs])
    observations = np.random.default_rng(0).uniform(0, 9, (40, 3)).astype(np.float32)
    np.testing.assert_array_equal(policies[True].act(observations), policies[False].act(observations))


def test_episodes_that_outlast_the_limit_are_broken_off_and_their_environment_is_in_no_curve(tmp_path):
    recorder, recording = recorded(tmp_path, [lambda: Counter(0, [10**9]), lambda: Counter(1, [2])], 25, 4)
    recorder.reset()
    for _ in range(40):
        recorder.step(np.zeros((2, 1), np.float32))
    assert not recorder.is_recording and recording.lengths.tolist() == [29, 26]
    assert np.flatnonzero(recording.truncated[:, 0]).tolist() == [28] and not recording.terminated[:, 0].any()
    assert recorder.curve().returns == [1 + 200 * episode for episode in range(13)]  # of the other only


def test_training_that_ends_early_ends_the_recording(tmp_path):
    recorder, recording = recorded(tmp_path, [lambda copy=copy: Counter(copy, [3 + copy]) for copy in range(2)], 100, 4)
    recorder.reset()
    for _ in range(3):
        recorder.step(np.zeros((2, 1), np.float32))
    recorder.end_training()
    assert recorder.is_recording and recorder.training_steps == 3
    recorder.step(np.zeros((2, 1), np.float32))
    assert not recorder.is_recording and recording.lengths.tolist() == [3, 4]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_return_that_is_not_finite_spoils_no_other(bad):
    log = EpisodeLog(1)
    for reward, over in [(1, False), (2, True), (bad, False), (2, True), *[(3, False), (4, True)] * 9]:
        log.step(np.array([reward], float), np.array([over]))
    with pytest.raises(EnvironmentFailure, match="1 of 11 episodes have no finite return"):
        log.curve()


class Camera(gymnasium.Env):
    """Random images, or images and numbers."""

    action_space = spaces.Discrete(3)

    def __init__(self, with_numbers: bool):
        image = spaces.Box(0, 255, (40, 40, 3), np.uint8)
        self.observation_space = (
            spaces.Dict({"image": image, "numbers": spaces.Box(-1, 1, (2,))}) if with_numbers else image
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
        [folder] = (data / "gymnasium" / environment).iterdir()
        policy, dataset = ReferencePolicy.load(folder / "policy"), open_dataset(folder)
        chunk = dataset.chunk(0)
        observations = (
            chunk.observations.astype(np.int64)[:, 0] if environment.startswith("Cliff") else chunk.observations
        )
        acted = policy.act(observations).reshape(len(chunk), -1)
        np.testing.assert_allclose(chunk.reference_actions, acted, atol=1e-6)
        assert (chunk.actions != chunk.reference_actions).any()  # the training policy explored


def test_labels_do_not_depend_on_how_many_are_made_at_once(tmp_path):
    recorder, recording = recorded(tmp_path, [lambda: Camera(True)] * 2, 40, 0)
    venv = Sb3VecEnv(recorder)
    policy = train_policy(
        venv,
        Candidate("PPO", {"n_steps": 16}, 2),
        timesteps=80,
        seed=0,
        progress=lambda _: None,
    )
    layouts = SlotLayout.of(venv.observation_space), SlotLayout.of(venv.action_space, role="action")
    at_once = RecordedRows(recording, *layouts, policy.act).transitions(ChunkRange(1, 3, 31))
    piecewise = RecordedRows(recording, *layouts, policy.act, batch=5).transitions(ChunkRange(1, 3, 31))
    assert len(at_once) == 28 and at_once.images.shape == (28, 64, 64, 3)
    for name, values in vars(at_once).items():
        np.testing.assert_array_equal(getattr(piecewise, name), values, name)


def test_a_run_says_where_it_comes_from(data):
    info = open_dataset(data / "gymnasium/Pendulum-v1/PPO-0").info
    assert (info.environment, info.algorithm, info.seed, info.num_streams) == (PENDULUM, "PPO", 0, 4)
    assert info.hyperparameters == {"n_steps": 64, "use_sde": True, "num_envs": 4, "normalize": True}
    # 1024 steps of each of 4 copies, 200 an episode: five have ended, the sixth of each is played to its end.
    assert (info.num_transitions, info.num_episodes, info.training_steps) == (4 * 1200, 24, 1024)
    assert len(info.deterministic_returns) == 10 and info.library_version == gymnasium.__version__
    assert info.provenance["provider"] == "inprocess" and info.licence == "MIT" and info.max_episode_steps == 200
    assert info.curve.transitions[-1] == 4 * 1000 and len(info.curve.returns) == 24 and info.curve.order == "start"
    assert set(info.packages) >= {"python", "torch", "stable_baselines3", "gymnasium"}


def test_the_same_seed_gives_the_same_data(data, tmp_path):
    build_run(RunRequest(CARTPOLE, Candidate("PPO", {"n_steps": 64}, num_envs=4), 2048, 0, keep="all"), tmp_path)
    update_repository(tmp_path / "gymnasium")
    run = "gymnasium/CartPole-v1/PPO-0"
    found, expected = (RunRecord.read(root / run) for root in (tmp_path, data))
    assert found.files == expected.files  # to the byte: how long it took stands in the record only
    assert found.seconds > 0 and found.info == expected.info
    [row, *_] = pq.read_table(data / "gymnasium/manifest.parquet").to_pylist()
    assert pq.read_table(tmp_path / "gymnasium/manifest.parquet").to_pylist() == [row]


def test_a_run_that_is_not_fit_leaves_its_record_and_its_policy_but_no_data(tmp_path):
    candidate = Candidate("PPO", {"n_steps": 64, "learning_rate": 0.0}, num_envs=4)
    record = build_run(RunRequest(CARTPOLE, candidate, 4096, 0), tmp_path)
    assert record.dropped.startswith("no significant improvement")
    folder = tmp_path / "gymnasium/CartPole-v1/PPO-0"
    assert RunRecord.read(folder) == record and not record.failed
    assert {path.name for path in folder.iterdir()} == {"run.json", "policy"}


def test_a_candidate_that_cannot_act_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"DQN cannot be trained on gymnasium/Pendulum-v1: DQN does not act in Box"):
        build_run(RunRequest(PENDULUM, Candidate("DQN"), 100, 0), tmp_path)
    with pytest.raises(ConfigError, match="no algorithm is called 'PPG'"):
        Candidate("PPG")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_loses_nothing(tmp_path, monkeypatch):
    write = run_module.write_dataset

    def full(*arguments, **named):
        stack.enter_context(small_disk(20_000))
        return write(*arguments, **named)

    monkeypatch.setattr(run_module, "write_dataset", full)
    folder = tmp_path / "gymnasium/CartPole-v1/PPO-1"
    folder.mkdir(parents=True)
    (folder / "old").write_text("kept")
    request = RunRequest(CARTPOLE, Candidate("PPO", {"n_steps": 64}, 4), 2048, 1, keep="all")
    with contextlib.ExitStack() as stack, pytest.raises(StorageError, match=r"cannot be written: .*untouched"):
        build_run(request, tmp_path)
    assert (folder / "old").read_text() == "kept"
    assert [path.name for path in folder.parent.iterdir()] == ["PPO-1"]


def test_too_few_episodes_are_one_line(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"only 5 episodes; at least 10 are needed"):
        build_run(RunRequest(PENDULUM, Candidate("PPO", {"n_steps": 100}), 1000, 0), tmp_path)
    assert not list((tmp_path / "gymnasium/Pendulum-v1").iterdir())


def test_a_disk_that_is_full_for_a_recording_is_one_line(tmp_path, monkeypatch):
    envs = vector([lambda: Camera(False)])
    with pytest.raises(StorageError, match=r"needs room for [0-9,]+ bytes at least, and has"):
        Recording(tmp_path / "r", 10**15, envs)
    monkeypatch.setattr("ldm_hf.dataset_builder.reference.recording._BLOCK_BYTES", 50_000)
    recording = Recording(tmp_path / "s", 1000, envs)
    images = np.random.default_rng(0).integers(0, 255, (1, 40, 40, 3), np.uint8)
    failure = pytest.raises(StorageError, match=r"cannot hold the recording: File too large; free some space")
    with failure, small_disk(10_000):
        for _ in range(100):
            recording.observe(images)
            recording.act(np.zeros(1, np.int64))
            recording.append(np.zeros(1), *np.zeros((2, 1), bool), ())
