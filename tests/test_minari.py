"""Conversion from and to Minari, with its real storages."""

import json
from dataclasses import replace

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from conftest import CARTPOLE, CLIFF, PENDULUM, run_ldm_here
from ldm_hf.dataset_builder.format.reader import open_dataset, open_datasets
from ldm_hf.dataset_builder.format.schema import environment_folder
from ldm_hf.dataset_builder.format.writer import Terminals
from ldm_hf.dataset_builder.repository.minari_reading import from_minari
from ldm_hf.dataset_builder.repository.minari_writing import to_minari
from ldm_hf.errors import ConfigError, DatasetFormatError, UnknownEnvironmentError
from ldm_hf.finetuning.episodes import write_run


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def columns(dataset):
    """Everything of a dataset in time order, stream by stream."""
    order = sorted(range(dataset.num_chunks), key=lambda index: dataset.places()[index])
    chunks = [dataset.chunk(index) for index in order]
    return {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in vars(chunks[0]) if name != "images"
    }


@pytest.mark.parametrize("environment", [CARTPOLE, CLIFF, PENDULUM])
def test_there_and_back(data, tmp_path, environment):
    path = to_minari(data, environment, "test/there-v0")
    converted = minari.MinariDataset(path)
    assert converted.env_spec.id == environment.split("/")[1]
    record = from_minari(path, tmp_path / "back")
    [dataset], [source] = open_datasets(tmp_path / "back"), open_datasets(data, [environment])
    assert (record.environment, record.run) == (environment, "minari-test-there-v0")
    assert (dataset.info.first10, dataset.info.last10) == (source.info.first10, source.info.last10)
    old, new = columns(source), columns(dataset)
    for name, values in old.items():
        np.testing.assert_array_equal(new[name], values, name)


def test_an_episode_whose_last_observation_is_unknown_is_a_step_shorter_there(data, tmp_path):
    """As where a recording of format version 2 ended, or an algorithm reset its environments."""
    [source] = open_datasets(data, [CARTPOLE])
    cut = 100
    while source.chunk(0).terminated[cut - 1]:
        cut += 1
    whole, ends = source.chunk(0)[:cut], source.terminals()
    stream = source.places()[0][0]
    inside = (ends.streams == stream) & (ends.steps < cut)
    kept = Terminals(np.zeros(inside.sum(), int), ends.steps[inside], ends.observations[inside], None)
    write_run(tmp_path, replace(source.info, num_transitions=cut, num_streams=1), [whole], [kept])
    from_minari(to_minari(tmp_path, CARTPOLE, "test/cut-v0"), tmp_path / "back")
    [dataset] = open_datasets(tmp_path / "back")
    new = columns(dataset)
    assert len(new["rewards"]) == cut - 1 and new["truncated"][-1] and not new["terminated"][-1]
    np.testing.assert_array_equal(new["observations"], whole.observations[:-1])
    np.testing.assert_array_equal(new["truncated"][:-1], whole.truncated[:-2])


def test_minari_gets_the_observation_that_an_episode_ended_on(data):
    """CartPole terminates outside its bounds: only the last observation of an episode is there."""
    converted = minari.MinariDataset(to_minari(data, CARTPOLE, "test/ends-v0"))
    terminated = [episode for episode in converted.iterate_episodes() if episode.terminations[-1]]
    assert len(terminated) > 20
    for episode in terminated:
        outside = (np.abs(episode.observations[:, 0]) > 2.4) | (np.abs(episode.observations[:, 2]) > 12 * np.pi / 180)
        assert outside[-1] and not outside[:-1].any() and len(episode.observations) == len(episode.rewards) + 1
        assert not episode.truncations.any() and not episode.terminations[:-1].any()


def buffer(number: int, steps: int, terminated: bool, truncated: bool) -> EpisodeBuffer:
    flags = [False] * (steps - 1)
    return EpisodeBuffer(
        id=number,
        observations=[np.array([number, step], np.float32) for step in range(steps + 1)],
        actions=[step % 3 for step in range(steps)],
        rewards=[1.0] * steps,
        terminations=[*flags, terminated],
        truncations=[*flags, truncated],
        infos={},
    )


def make(name, buffers, **arguments):
    made = {"observation_space": spaces.Box(-99, 99, (2,)), "action_space": spaces.Discrete(3), **arguments}
    return minari.create_dataset_from_buffers(name, buffers, **made)


@pytest.mark.filterwarnings("ignore")
def test_episodes_of_minari_by_hand(tmp_path):
    made = make("hand/made-v3", [buffer(0, 2, True, False), buffer(1, 3, False, True), buffer(2, 1, False, False)])
    record = from_minari(made.storage.data_path, tmp_path / "data")
    assert record.environment == "minari/hand/made-v3" and record.info.deterministic_returns == [2, 3, 1]
    folder = environment_folder(tmp_path / "data", record.environment) / record.run
    found = columns(open_dataset(folder))
    assert found["observations"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert found["actions"].ravel().tolist() == [0, 1, 0, 1, 2, 0] == found["reference_actions"].ravel().tolist()
    assert np.flatnonzero(found["terminated"]).tolist() == [1]
    assert np.flatnonzero(found["truncated"]).tolist() == [4, 5]  # the last neither ended nor was cut off
    import pyarrow.parquet as pq

    terminals = pq.read_table(folder / "terminal.parquet").to_pylist()
    assert [(row["step"], row["observation"]) for row in terminals] == [(1, [0, 2]), (4, [1, 3]), (5, [2, 1])]
    assert (record.info.first10, record.info.last10) == (2, 1)  # one episode each
    scored = make("hand/scored-v0", [buffer(0, 2, True, False)])
    scored.storage.update_metadata({"ref_min_score": -5.0, "ref_max_score": 7.0})
    record = from_minari("hand/scored-v0", tmp_path / "data", environment=CARTPOLE)
    assert (record.info.first10, record.info.last10, record.environment) == (-5, 7, CARTPOLE)


@pytest.mark.filterwarnings("ignore")
def test_collected_data_are_converted_by_the_command(tmp_path):
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    episodes = []
    for seed in range(12):
        observations, rows, over = [env.reset(seed=seed)[0]], [], False
        while not over:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            rows.append((action, reward, terminated, truncated))
            over = terminated or truncated
        actions, rewards, terminations, truncations = map(list, zip(*rows, strict=True))
        episodes.append(EpisodeBuffer(seed, seed, None, observations, actions, rewards, terminations, truncations, {}))
    minari.create_dataset_from_buffers("cartpole/random-v0", episodes, env=env, algorithm_name="random")
    done = run_ldm_here("convert", "cartpole/random-v0", "--from", "minari", "--output", tmp_path / "data")
    assert done.returncode == 0 and "gymnasium/CartPole-v1, run minari-cartpole-random-v0" in done.stdout, done.stderr
    [dataset] = open_datasets(tmp_path / "data")
    assert dataset.info.num_episodes == 12 and dataset.info.algorithm == "random"
    done = run_ldm_here(
        "convert", CARTPOLE, "--to", "minari", "--output", tmp_path / "data", "--name", "cartpole/back-v0"
    )
    assert done.returncode == 0, done.stderr
    one, two = minari.load_dataset("cartpole/random-v0"), minari.load_dataset("cartpole/back-v0")
    for first, second in zip(one.iterate_episodes(), two.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(first.observations, second.observations)
        np.testing.assert_array_equal(first.terminations, second.terminations)
        np.testing.assert_array_equal(first.truncations, second.truncations)
        np.testing.assert_array_equal(first.actions, second.actions)


def test_what_cannot_be_converted_is_one_line(data, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metadata.json").write_text(json.dumps({"data_format": "hdf5"}))
    with pytest.raises(DatasetFormatError, match="broken cannot be read as a Minari dataset"):
        from_minari(tmp_path / "broken", tmp_path / "data")
    with pytest.raises(UnknownEnvironmentError, match="has no run A2C-0 of gymnasium/CartPole-v1; it has PPO-0"):
        to_minari(data, CARTPOLE, "test/a-v0", run="A2C-0")
    with pytest.raises(UnknownEnvironmentError, match="no run that is kept of gymnasium/Acrobot-v1"):
        to_minari(data, "gymnasium/Acrobot-v1", "test/a-v0")
    with pytest.raises(ConfigError, match="Minari refuses not an id"):
        to_minari(data, CARTPOLE, "not an id")
    for arguments in (["x"], ["x", "--to", "minari"]):
        done = run_ldm_here("convert", *arguments)
        assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
