"""Conversion from and to LeRobot's format, version 3.0: files that its loader reads, and nothing lost on the way back."""

import io
import json
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import CARTPOLE, CLIFF, PENDULUM, run_ldm_here
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.dataset_builder.format.writer import Terminals
from ldm_hf.dataset_builder.repository import lerobot_writing
from ldm_hf.dataset_builder.repository.lerobot_reading import from_lerobot
from ldm_hf.dataset_builder.repository.lerobot_writing import to_lerobot
from ldm_hf.errors import ConfigError, DatasetFormatError, UnknownEnvironmentError
from ldm_hf.finetuning.episodes import write_run
from ldm_hf.modeling.spaces_ldm import Transitions

MINIGRID = "minigrid/MiniGrid-Empty-5x5-v0"


def columns(dataset):
    """Everything of a dataset in time order, stream by stream, images too."""
    order = sorted(range(dataset.num_chunks), key=lambda index: dataset.places()[index])
    chunks = [dataset.chunk(index) for index in order]
    parts = {name: [getattr(chunk, name) for chunk in chunks] for name in vars(chunks[0])}
    return {name: np.concatenate(values) for name, values in parts.items() if values[0] is not None}


def read(folder):
    """The frames as `datasets` reads them with the features that LeRobot's loader derives from info.json."""
    info = json.loads((folder / "meta/info.json").read_text())
    features = {}
    for name, feature in info["features"].items():
        shape, value = tuple(feature["shape"]), datasets.Value("float32")
        if feature["dtype"] != "image":
            value = datasets.Value(feature["dtype"])
        features[name] = (
            datasets.Image()
            if feature["dtype"] == "image"
            else value
            if shape == (1,)
            else datasets.Sequence(value, length=shape[0])
        )
    files = sorted(map(str, folder.glob("data/*/*.parquet")))
    return info, datasets.Dataset.from_parquet(files, features=datasets.Features(features), cache_dir=str(folder / "c"))


@pytest.mark.parametrize("environment", [CARTPOLE, CLIFF, PENDULUM])
def test_there_and_back(data, tmp_path, environment, monkeypatch):
    monkeypatch.setattr(lerobot_writing, "_FILE_BYTES", 20_000)  # several files
    folder = to_lerobot(data, environment, tmp_path / "there")
    assert len(list(folder.glob("data/*/*.parquet"))) > 1
    record = from_lerobot(folder, tmp_path / "back")
    assert (record.environment, record.run) == (environment, "lerobot-there")
    [dataset], [source] = open_datasets(tmp_path / "back"), open_datasets(data, [environment])
    assert (dataset.info.first10, dataset.info.last10) == (source.info.first10, source.info.last10)
    old, new = columns(source), columns(dataset)
    for name, values in old.items():
        np.testing.assert_array_equal(new[name], values, name)
    before, after = source.terminals(), dataset.terminals()
    order = np.lexsort((before.steps, before.streams))
    np.testing.assert_array_equal(after.observations, before.observations[order])


def test_the_files_are_those_of_the_format(data, tmp_path):
    folder = to_lerobot(data, CARTPOLE, tmp_path / "there", fps=50)
    info, frames = read(folder)
    assert (
        info["codebase_version"] == "v3.0"
        and info["fps"] == 50
        and info["splits"] == {"train": f"0:{info['total_episodes']}"}
    )
    assert len(frames) == info["total_frames"]
    episodes = pd.concat(map(pd.read_parquet, sorted(folder.glob("meta/episodes/*/*.parquet"))))
    assert len(episodes) == info["total_episodes"]
    assert episodes["dataset_to_index"].iloc[-1] == info["total_frames"]
    assert (episodes["dataset_to_index"] - episodes["dataset_from_index"] == episodes["length"]).all()
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.index.tolist() == [CARTPOLE] and tasks["task_index"].tolist() == [0]
    table = frames.with_format("numpy")[:]
    assert table["index"].tolist() == list(range(len(frames)))
    for episode in episodes.itertuples():
        rows = slice(episode.dataset_from_index, episode.dataset_to_index)
        assert (table["episode_index"][rows] == episode.episode_index).all()
        assert table["frame_index"][rows].tolist() == list(range(episode.length))
        np.testing.assert_allclose(table["timestamp"][rows], np.arange(episode.length) / 50, rtol=1e-6)
        assert table["next.done"][rows].tolist() == [False] * (episode.length - 1) + [True]
    stats = json.loads((folder / "meta/stats.json").read_text())
    state = np.stack(table["observation.state"])
    for name, value in (("mean", state.mean(0)), ("std", state.std(0)), ("min", state.min(0)), ("max", state.max(0))):
        np.testing.assert_allclose(stats["observation.state"][name], value, rtol=1e-3, atol=1e-4)
    assert stats["action"]["count"] == [len(frames)] and set(stats) == set(info["features"])
    # A policy reads what begins with observation, and every image: nothing of the future may be among them.
    assert [name for name in info["features"] if "observation" in name] == ["observation.state"]
    first = episodes.iloc[0]
    np.testing.assert_allclose(first["stats/observation.state/max"], state[: first["length"]].max(0))


def test_images_survive(tmp_path, data):
    """PNG keeps pixels as they are; the image that an episode led to travels too."""
    from ldm_hf.env_registry.registry import spec

    [source] = open_datasets(data, [CARTPOLE])
    known, steps = spec(MINIGRID), 50
    rng = np.random.default_rng(0)
    info = replace(
        source.info, environment=MINIGRID, observation_space=known.observation_space, action_space=known.action_space
    )
    info = replace(info, num_transitions=steps, num_streams=1, num_episodes=2)
    ended = np.isin(np.arange(steps), [19, 49])
    actions = rng.integers(0, 7, (steps, 1)).astype(np.float32)
    images = rng.integers(0, 256, (steps, 64, 64, 3), dtype=np.uint8)
    observed = rng.integers(0, 4, (steps, 1)).astype(np.float32)
    rewards = rng.normal(size=steps).astype(np.float32)
    whole = Transitions(observed, images, actions, rewards, ended, ~ended & ended, actions[::-1].copy())
    final = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    write_run(tmp_path / "data", info, [whole], [Terminals(np.zeros(2, int), np.array([19, 49]), observed[:2], final)])
    folder = to_lerobot(tmp_path / "data", MINIGRID, tmp_path / "there")
    _, frames = read(folder)
    assert np.array_equal(np.asarray(frames[7]["observation.image"]), images[7])
    stats = json.loads((folder / "meta/stats.json").read_text())["observation.image"]
    np.testing.assert_allclose(np.ravel(stats["mean"]), images.mean((0, 1, 2)) / 255, rtol=1e-6)
    assert np.shape(stats["std"]) == (3, 1, 1)
    from_lerobot(folder, tmp_path / "back")
    [dataset] = open_datasets(tmp_path / "back")
    for name, values in columns(dataset).items():
        np.testing.assert_array_equal(values, getattr(whole, name), name)
    assert np.array_equal(dataset.terminals().images, final)


def foreign(folder, *, version="v3.0", state=3, dtype="float32"):
    """A dataset as somebody else's robot has it: states and actions, no rewards, no ends."""
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    features = {
        "observation.state": {"dtype": dtype, "shape": [state], "names": None},
        "action": {"dtype": "float32", "shape": [1], "names": None},
    }
    info = {"codebase_version": version, "features": features, "total_episodes": 2, "fps": 10}
    (folder / "meta/info.json").write_text(json.dumps(info))
    frames = {
        "observation.state": [[float(row), 0.0, 1.0] for row in range(5)],
        "action": [0.5, -0.5, 1.0, 2.0, -2.0],
        "episode_index": [1, 1, 0, 0, 0],
        "frame_index": [1, 0, 0, 1, 2],
    }
    pq.write_table(pa.table(frames), folder / "data/chunk-000/file-000.parquet")
    return folder


def test_data_of_others_are_read(tmp_path):
    """By hand: frames in order, the last of an episode truncates it, and stands for what it led to."""
    record = from_lerobot(foreign(tmp_path / "robot"), tmp_path / "data", environment=PENDULUM)
    [dataset] = open_datasets(tmp_path / "data")
    found = columns(dataset)
    assert (record.run, dataset.info.num_episodes) == ("lerobot-robot", 2)
    assert found["actions"].ravel().tolist() == [-0.5, 0.5, 1.0, 2.0, -2.0]
    assert found["observations"][:, 0].tolist() == [1, 0, 2, 3, 4]
    assert found["truncated"].tolist() == [False, True, False, False, True] and not found["terminated"].any()
    assert not found["rewards"].any()
    assert np.array_equal(found["reference_actions"], found["actions"])
    assert dataset.terminals().observations[:, 0].tolist() == [0, 4]


def test_what_cannot_be_converted_is_one_line(data, tmp_path):
    with pytest.raises(DatasetFormatError, match="is not a LeRobot dataset"):
        from_lerobot(tmp_path, tmp_path / "data", environment=PENDULUM)
    with pytest.raises(DatasetFormatError, match=r"version v2\.1 of LeRobot's format"):
        from_lerobot(foreign(tmp_path / "old", version="v2.1"), tmp_path / "data", environment=PENDULUM)
    with pytest.raises(DatasetFormatError, match="does not say which environment"):
        from_lerobot(foreign(tmp_path / "robot"), tmp_path / "data")
    with pytest.raises(
        DatasetFormatError, match=r"observation\.state has 3 numbers, and the environment's space takes 4"
    ):
        from_lerobot(tmp_path / "robot", tmp_path / "data", environment=CARTPOLE)
    with pytest.raises(DatasetFormatError, match="holds videos"):
        from_lerobot(foreign(tmp_path / "video", dtype="video"), tmp_path / "data", environment=PENDULUM)
    with pytest.raises(UnknownEnvironmentError):
        from_lerobot(tmp_path / "robot", tmp_path / "data", environment="gymnasium/Pendulun-v1")
    with pytest.raises(ConfigError, match="is there already"):
        to_lerobot(data, CARTPOLE, tmp_path / "robot")
    (tmp_path / "robot/data/chunk-000/file-000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DatasetFormatError, match="cannot be read as data of LeRobot"):
        from_lerobot(tmp_path / "robot", tmp_path / "data", environment=PENDULUM)
    assert not list((tmp_path / "data").rglob("run.json"))


def test_the_command(data, tmp_path):
    made = run_ldm_here("convert", CARTPOLE, "--to", "lerobot", "--output", data, "--name", tmp_path / "cartpole")
    assert made.returncode == 0 and made.stdout.strip() == str(tmp_path / "cartpole"), made.stderr
    back = run_ldm_here("convert", tmp_path / "cartpole", "--from", "lerobot", "--output", tmp_path / "data")
    assert back.returncode == 0 and "gymnasium/CartPole-v1, run lerobot-cartpole" in back.stdout, back.stderr
    assert run_ldm_here("check", tmp_path / "data").returncode == 0


def test_a_png_is_one():
    image = np.zeros((64, 64, 3), np.uint8)
    assert Image.open(io.BytesIO(lerobot_writing._png(image))).format == "PNG"
