"""The dataset format: writing, reading, and what a damaged or foreign file says."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CARTPOLE, CLIFF, PENDULUM
from ldm_hf.dataset_builder.curves import LearningCurve
from ldm_hf.dataset_builder.format import data_file
from ldm_hf.dataset_builder.format.reader import open_dataset, open_datasets
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files
from ldm_hf.dataset_builder.format.schema import METADATA_KEY, RunInfo
from ldm_hf.dataset_builder.format.writer import ChunkRange, plan_chunks, write_dataset
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.run import RunRequest, build_run
from ldm_hf.dataset_builder.repository.card import hub_licences
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.errors import DatasetFormatError, UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import Transitions, space_to_json


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
        *("test/Some-v0", "PPO-0", space_to_json(observation_space), space_to_json(action_space)),
        *(
            LearningCurve.of(range(20), range(0, 200, 10)),
            [1.0],
            1,
            rows,
            2,
            None,
            "PPO",
            {},
            "",
            0,
            None,
            None,
            None,
            "MIT",
            {},
            {},
        ),
    )


def some_transitions(rows: int, slots: int, actions: int, image: bool) -> Transitions:
    generator = np.random.default_rng(rows)
    ends = generator.integers(0, 6, rows)
    return Transitions(
        generator.normal(size=(rows, slots)).astype(np.float32),
        generator.integers(0, 256, (rows, 64, 64, 3), np.uint8) if image else None,
        generator.normal(size=(rows, actions)).astype(np.float32),
        generator.normal(size=rows).astype(np.float32),
        ends == 1,
        ends == 2,
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
    ids=["numbers", "image", "both"],
)
@settings(max_examples=15)
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


def recorded(data) -> int:
    """Transitions of CartPole: 512 steps of each of 4 copies, and the ends of the episodes that ran then."""
    rows = open_dataset(data / "gymnasium/CartPole-v1/PPO-0").info.num_transitions
    assert 2048 < rows <= 2048 + 4 * 499
    return rows


def test_plain_datasets_streams_it(data):
    program = f"""
from datasets import load_dataset
rows = list(load_dataset({str(data / "gymnasium")!r}, "CartPole-v1", split="train", streaming=True))
print(len(rows), sorted(rows[0]), sum(len(row["observation"]) for row in rows))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    columns = (
        "['action', 'observation', 'reference_action', 'reward', 'run', 'step', 'stream', 'terminated', 'truncated']"
    )
    rows = recorded(data)
    assert done.stdout.strip() == f"{rows} {columns} {4 * rows}", done.stderr


def test_plain_datasets_shows_images(tmp_path):
    """The Hub's viewer knows the column by the same metadata; what PIL decodes is what the reader gives."""
    space, stream = spaces.Dict({"camera": PICTURE, "speed": spaces.Box(-9, 9, (2,))}), some_transitions(20, 2, 1, True)
    info = some_info(space, spaces.Box(-9, 9, (1,)), 20)
    write_dataset(tmp_path, info, plan_chunks([20], 1), lambda chunk: stream[chunk.start : chunk.stop])
    program = f"""
import hashlib
from datasets import Image, load_dataset
rows = load_dataset("parquet", data_files={str(tmp_path / "train-*")!r}, split="train", streaming=True)
assert rows.features["image"] == Image(), rows.features
for row in rows:
    print(row["image"].mode, row["image"].size, hashlib.sha256(row["image"].tobytes()).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert stream.images is not None
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in stream.images]
    assert done.stdout.splitlines() == [f"RGB (64, 64) {digest}" for digest in hashes], done.stderr


def test_images_of_older_files_are_read_and_foreign_ones_refused(tmp_path):
    stream = some_transitions(20, 0, 1, True)
    info = some_info(PICTURE, spaces.Box(-9, 9, (1,)), 20)
    [path] = write_dataset(tmp_path, info, plan_chunks([20], 1), lambda chunk: stream[chunk.start : chunk.stop])
    table = pq.read_table(path)
    position = table.schema.get_field_index("image")
    raw = pa.array([image.tobytes() for image in stream.images])
    old = table.set_column(position, pa.field("image", pa.binary(), False), raw)
    pq.write_table(old, path, row_group_size=20)
    np.testing.assert_array_equal(open_dataset(tmp_path).chunk(0).images, stream.images)
    images = [row["bytes"] for row in table["image"].to_pylist()]
    shorter = [images[0][:-1], images[1] + b"x", *images[2:]]  # as long as they should be, together
    without = [*images[:7], bytes(len(images[0])), *images[8:]]
    none = [*images[:7], None, *images[8:]]
    for wrong in (shorter, without, none):
        column = pa.array([{"bytes": each, "path": None} for each in wrong], table.schema.field("image").type)
        pq.write_table(table.set_column(position, table.schema.field("image"), column), path, row_group_size=20)
        refused(path, "images that are not 64x64x3 bytes")


def test_folders_of_several_builds_are_read_as_one(data, tmp_path):
    """Of an environment that two builds made runs of the same name of, both are read, and the better one is the best."""
    shutil.copytree(data, tmp_path / "longer")
    build_run(RunRequest(CARTPOLE, Candidate("PPO", {"n_steps": 64}), 1024, 0, keep="all"), tmp_path / "a-short")
    update_repository(tmp_path / "a-short" / "gymnasium")
    assert [one.environment for one in open_datasets(tmp_path)] == [CARTPOLE, CLIFF, PENDULUM]
    (both,) = open_datasets(tmp_path, [CARTPOLE])
    (short,) = open_datasets(tmp_path / "a-short")
    lengths = [short.num_transitions, recorded(data)]
    assert [(run.run, run.num_transitions) for run in both.runs] == [("PPO-0", length) for length in lengths]
    assert both.num_transitions == sum(lengths) and both.best_run().num_transitions == both.info.num_transitions


def test_manifest_and_card_list_the_environments(data):
    rows = pq.read_table(data / "gymnasium" / "manifest.parquet").to_pylist()
    assert [row["environment"] for row in rows] == [CARTPOLE, CLIFF, PENDULUM]
    assert rows[0]["files"][0]["bytes"] == (data / "gymnasium" / rows[0]["files"][0]["path"]).stat().st_size
    card = (data / "gymnasium" / "README.md").read_text()
    assert f"| `gymnasium/CartPole-v1` | Box(4) | Discrete(2) | PPO-0 | {recorded(data):,} |" in card
    assert "- config_name: CliffWalking-v1\n  data_files: CliffWalking-v1/*/train-*.parquet\n" in card
    assert "under the licence of its library: MIT." in card and "provider inprocess" in card
    assert card.startswith("---\nlicense:\n- mit\ntask_categories:")
    assert hub_licences(["Apache-2.0", "MIT", "Free For Educational Use"]) == ["apache-2.0", "mit", "other"]
    assert hub_licences(["unknown"]) == hub_licences([]) == ["other"]
    assert [dataset.environment for dataset in open_datasets(data, [PENDULUM, CARTPOLE])] == [CARTPOLE, PENDULUM]
    with pytest.raises(UnknownEnvironmentError, match="no data of gymnasium/Nothing-v0"):
        open_datasets(data, ["gymnasium/Nothing-v0"])


@pytest.fixture
def copy(data, tmp_path):
    """A file of its own to damage."""
    folder = tmp_path / "gymnasium/CartPole-v1/PPO-0"
    shutil.copytree(data / "gymnasium/CartPole-v1/PPO-0", folder)
    return folder / "train-00000-of-00001.parquet"


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
    refused(copy, "not a whole Parquet file")
    copy.write_bytes(b"")
    refused(copy, "not a whole Parquet file")
    copy.write_text("a,b\n1,2\n")
    refused(copy, "not a whole Parquet file")
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


def test_a_file_that_its_manifest_does_not_describe_is_refused(copy, data):
    folder, repository = copy.parent, copy.parent.parent.parent
    update_repository(repository)
    assert open_datasets(repository.parent, [CARTPOLE])[0].num_transitions == recorded(data)
    assert open_datasets(repository, [CARTPOLE])[0].num_transitions == recorded(data)
    table = pq.read_table(copy)
    info = {**json.loads(table.schema.metadata[METADATA_KEY]), "seed": 7}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(info).encode()}), copy)
    with pytest.raises(
        DatasetFormatError, match=r"PPO-0/train-.* bytes, [0-9]+ in its manifest: it is truncated or foreign"
    ):
        open_datasets(repository, [CARTPOLE])
    record = RunRecord.read(folder)
    replace(record, files=describe_files(folder)).write(folder)
    update_repository(repository)
    with pytest.raises(DatasetFormatError, match="other things of its run than the manifest"):
        open_datasets(repository, [CARTPOLE])[0].chunk(0)
    copy.unlink()
    with pytest.raises(DatasetFormatError, match="is missing"):
        open_datasets(repository, [CARTPOLE])
    with pytest.raises(DatasetFormatError, match=r"train-.* is missing or has another size than the record"):
        update_repository(repository)  # no manifest lists what is not there
    (folder / "run.json").write_text("{")
    with pytest.raises(DatasetFormatError, match="is not a record of a run"):
        update_repository(repository)
    (folder / "run.json").unlink()
    with pytest.raises(DatasetFormatError, match="holds no runs"):
        update_repository(repository)


def test_runs_of_an_environment_are_read_as_one_dataset(data, tmp_path):
    repository = tmp_path / "gymnasium"
    for seed in (0, 1):
        folder = repository / f"CartPole-v1/PPO-{seed}"
        shutil.copytree(data / "gymnasium/CartPole-v1/PPO-0", folder)
    record = RunRecord.read(folder)
    curve = replace(record.info.curve, last=replace(record.info.curve.last, mean=999.0))
    info = replace(record.info, run="PPO-1", seed=1, curve=curve)
    source = open_dataset(data / "gymnasium/CartPole-v1/PPO-0")
    chunks = [
        ChunkRange(stream, first, first + int(length))
        for (stream, first), length in zip(source.places(), source.chunk_lengths, strict=True)
    ]
    write_dataset(folder, info, chunks, lambda chunk: source.chunk(chunks.index(chunk)))
    replace(record, run="PPO-1", info=info, files=describe_files(folder)).write(folder)
    dropped = replace(record, run="A2C-0", dropped="because")
    (repository / "CartPole-v1/A2C-0").mkdir()
    dropped.write(repository / "CartPole-v1/A2C-0")
    update_repository(repository)
    [dataset] = open_datasets(tmp_path)
    assert [info.run for info in dataset.runs] == ["PPO-0", "PPO-1"] and dataset.info.last10 == 999.0
    assert dataset.num_chunks == 8 and dataset.num_transitions == 2 * recorded(data)
    for index in range(4):
        np.testing.assert_array_equal(dataset.chunk(index).rewards, dataset.chunk(index + 4).rewards)
    runs = pq.read_table(repository / "runs.parquet").to_pylist()
    assert [(run["run"], run["kept"], run["reason"]) for run in runs] == [
        ("A2C-0", False, "because"),
        ("PPO-0", True, ""),
        ("PPO-1", True, ""),
    ]
    assert "| `gymnasium/CartPole-v1` | A2C-0 | because |" in (repository / "README.md").read_text()
    assert (repository / "learning_curves.png").read_bytes()[:4] == b"\x89PNG"


def test_data_of_version_2_are_read_and_say_that_their_curve_is_by_ends(data, tmp_path):
    shutil.copytree(data / "gymnasium/CartPole-v1/PPO-0", tmp_path / "gymnasium/CartPole-v1/PPO-0")
    folder = tmp_path / "gymnasium/CartPole-v1/PPO-0"
    for path in folder.glob("*.parquet"):
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
        info = as_version_2(json.loads(groups[0].schema.metadata[METADATA_KEY]))
        schema = groups[0].schema.with_metadata({METADATA_KEY: json.dumps(info).encode()})
        with pq.ParquetWriter(path, schema) as writer:
            for group in groups:
                writer.write_table(group.cast(schema))
    record = json.loads((folder / "run.json").read_text())
    files = [vars(file) for file in describe_files(folder)]
    (folder / "run.json").write_text(json.dumps({**record, "info": as_version_2(record["info"]), "files": files}))
    update_repository(tmp_path / "gymnasium")
    (dataset,) = open_datasets(tmp_path)
    assert dataset.info.curve.order == "end" and dataset.info.training_steps is None
    assert sum(len(dataset.chunk(index)) for index in range(dataset.num_chunks)) == recorded(data)
    assert len(dataset.terminals().steps) > 0
    assert dataset.info.first10 == open_dataset(data / "gymnasium/CartPole-v1/PPO-0").info.first10
    card = (tmp_path / "gymnasium" / "README.md").read_text()
    assert "Those of `gymnasium/CartPole-v1`, PPO-0 are of episodes in the order of their ends" in " ".join(
        card.split()
    )
    assert "in the order of their ends" not in " ".join((data / "gymnasium" / "README.md").read_text().split())


def as_version_2(info):
    curve = {name: value for name, value in info["curve"].items() if name != "order"}
    return {name: value for name, value in info.items() if name != "training_steps"} | {"version": 2, "curve": curve}


def test_thousands_of_environments_open_no_file_before_they_are_read(data, monkeypatch):
    def fail(*_):
        raise AssertionError("a footer was read")

    monkeypatch.setattr(data_file, "read_footer", fail)
    datasets = open_datasets(data)
    assert [dataset.num_chunks > 0 for dataset in datasets] == [True] * 3
    with pytest.raises(AssertionError, match="a footer was read"):
        datasets[0].chunk(0)


def test_other_parquet_files_and_versions_are_refused(copy):
    table = pq.read_table(copy)
    pq.write_table(table.replace_schema_metadata({}), copy)
    refused(copy, "no ldm_hf dataset")
    info = json.loads(table.schema.metadata[METADATA_KEY])
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps({**info, "version": 99}).encode()}), copy)
    refused(copy, "format version 99; this version of ldm_hf reads 2 and 3")
    pq.write_table(table.drop_columns(["reward"]), copy)
    refused(copy, "columns that do not fit")
    pq.write_table(table.slice(0, 1000), copy)  # of one stream and of the next
    refused(copy, "row 0: the 1000 rows from there are no consecutive steps of one stream")
    pq.write_table(table.slice(0, 512), copy)
    refused(copy, "holds? [0-9]+ transitions, but announced are [0-9]+")
