"""The dataset format: writing, reading, and what a damaged or foreign file says."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CARTPOLE, CLIFF, PENDULUM
from ldm_hf.dataset_builder.reader import open_dataset, open_datasets
from ldm_hf.dataset_builder.schema import METADATA_KEY, RunInfo
from ldm_hf.dataset_builder.writer import plan_chunks, update_repository, write_dataset
from ldm_hf.errors import DatasetFormatError, UnknownEnvironmentError
from ldm_hf.modeling.processing_ldm import Transitions
from ldm_hf.modeling.spaces_ldm import space_to_json


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
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    actions=st.integers(1, 3),
    chunk_length=st.integers(1, 50),
)
def test_what_is_written_is_read(tmp_path_factory, space, slots, image, lengths, actions, chunk_length):
    folder = tmp_path_factory.mktemp("written")
    streams = [some_transitions(length, slots, actions, image) for length in lengths]
    chunks = plan_chunks(lengths, seed=1, chunk_length=chunk_length)
    write_dataset(
        folder,
        some_info(space, spaces.Box(-9, 9, (actions,)), sum(lengths)),
        chunks,
        lambda chunk: streams[chunk.stream][chunk.start : chunk.stop],
    )
    dataset = open_dataset(folder)
    assert dataset.num_chunks == len(chunks) and dataset.num_transitions == sum(lengths)
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
    assert "| `gymnasium/CartPole-v1` | Box(4) | Discrete(2) | PPO | 2,048 |" in card
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


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path):
    """Page checksums guard the data, what is checked on opening the rest; nothing else than the typed error comes."""
    streams = [some_transitions(30, 3, 2, False)]
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (1,))})
    info = some_info(space, spaces.Box(-9, 9, (2,)), 30)
    [path] = write_dataset(tmp_path, info, plan_chunks([30], 1, 16), lambda chunk: streams[0][chunk.start : chunk.stop])
    whole = path.read_bytes()

    def read() -> list[Transitions]:
        dataset = open_dataset(tmp_path)
        return [dataset.chunk(index) for index in range(dataset.num_chunks)]

    expected, refusals = read(), 0
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read()
        except DatasetFormatError as error:
            refusals += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            for one, other in itertools.zip_longest(expected, found):
                for name, values in vars(one).items():
                    np.testing.assert_array_equal(getattr(other, name), values, f"{name} at byte {position}")
    assert refusals > len(whole) / 11 / 2


def test_a_file_that_its_manifest_does_not_describe_is_refused(data, copy):
    repository = copy.parent.parent
    update_repository(repository)
    assert open_datasets(repository.parent, [CARTPOLE])[0].num_transitions == 2048
    table = pq.read_table(copy)
    info = {**json.loads(table.schema.metadata[METADATA_KEY]), "last10": 1e9}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(info).encode()}), copy)
    with pytest.raises(DatasetFormatError, match="other things of its run than the manifest"):
        open_datasets(repository.parent, [CARTPOLE])
    copy.unlink()
    with pytest.raises(DatasetFormatError, match="is missing"):
        open_datasets(repository.parent, [CARTPOLE])
    with pytest.raises(DatasetFormatError, match="holds no datasets"):
        update_repository(repository)


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
