"""What data must be: each lie is told consistently, hashes and all, and is refused with file and row."""

import itertools
import json
import shutil
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from conftest import CARTPOLE, CLIFF, PENDULUM, run_ldm_here
from ldm_hf.dataset_builder.format.checks import ValueChecks
from ldm_hf.dataset_builder.format.reader import open_dataset, open_datasets
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files
from ldm_hf.dataset_builder.format.schema import BY_STREAM, METADATA_KEY, RunInfo
from ldm_hf.dataset_builder.format.writer import plan_chunks, write_dataset
from ldm_hf.dataset_builder.repository.replay import Replay, replay
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions
from ldm_hf.utils.files import sole_writer
from test_dataset_builder import some_info


@pytest.fixture
def corpus(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def chunk_starts(path):
    """The first row of each chunk of a file, and the number of its rows."""
    file = pq.read_metadata(path)
    return np.cumsum([0, *(file.row_group(group).num_rows for group in range(file.num_row_groups))]).tolist()


def rewrite_file(path, change):
    """Change the rows of a file, and leave its chunks as they are."""
    starts, table = chunk_starts(path), change(pq.read_table(path))
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, stop in itertools.pairwise(starts):
            writer.write_table(table.slice(start, stop - start), row_group_size=8192)


def rewrite(folder, change, name="train-00000-of-00001.parquet"):
    """Change a file of a run as somebody would who makes everything fit: chunks, hashes and manifest."""
    rewrite_file(folder / name, change)
    describe(folder)


def describe(folder):
    replace(RunRecord.read(folder), files=describe_files(folder)).write(folder)
    update_repository(folder.parent.parent)


def setting(column, row, value, slot=None):
    """A change of one value of a column."""

    def change(table):
        values = table[column].combine_chunks()
        array = np.array(values.flatten() if slot is not None else values)
        array[row if slot is None else row * values.type.list_size + slot] = value
        made = pa.array(array)
        if slot is not None:
            made = pa.FixedSizeListArray.from_arrays(made, values.type.list_size)
        position = table.schema.get_field_index(column)
        return table.set_column(position, table.schema.field(column), made.cast(table.schema.field(column).type))

    return change


def check(data, *arguments):
    return run_ldm_here("check", data, *arguments)


def refused(data, *parts, number=1):
    done = check(data)
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if "rows are right" not in line]
    assert done.returncode == 1 and len(wrong) == number, done.stdout + done.stderr
    assert f"error: {data} has {number} defects in 3 runs" in done.stderr and "Traceback" not in done.stderr
    for part in parts:
        assert part in wrong[0], wrong[0]


def test_right_data_are_right(data):
    done = check(data)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [(CARTPOLE, "PPO-0"), (CLIFF, "DQN-0"), (PENDULUM, "PPO-0")]
    rows = [pq.read_metadata(next((data / environment / run).glob("train-*"))).num_rows for environment, run in runs]
    expected = [
        f"{environment}, run {run}: {each:,} rows are right"
        for (environment, run), each in zip(runs, rows, strict=True)
    ]
    assert done.stdout.splitlines() == expected
    with sole_writer(data):  # which blocks no reader
        assert check(data, "--environment", CLIFF).stdout.count("rows are right") == 1
    assert "has no data of gymnasium/Nothing-v0" in check(data, "--environment", "gymnasium/Nothing-v0").stderr


TRAIN = "train-00000-of-00001.parquet, row 700"


@pytest.mark.parametrize(
    ("environment", "change", "reason"),
    [
        (CARTPOLE, setting("observation", 700, np.nan, slot=2), "observation holds nan in slot 2"),
        (CARTPOLE, setting("observation", 700, np.inf, slot=1), "observation holds inf in slot 1"),
        (CARTPOLE, setting("reward", 700, -np.inf), "the reward is -inf"),
        (CARTPOLE, setting("action", 700, 2, slot=0), "action holds 2 in slot 0, which takes 0 to 1"),
        (CARTPOLE, setting("reference_action", 700, 0.5, slot=0), "reference_action holds 0.5 in slot 0"),
        (CARTPOLE, setting("reference_action", 700, -1, slot=0), "reference_action holds -1 in slot 0"),
        (CLIFF, setting("observation", 700, 1.5, slot=0), "observation holds 1.5 in slot 0"),
        (PENDULUM, setting("reference_action", 700, 2.1, slot=0), "reference_action holds 2.1 in slot 0"),
    ],
)
def test_a_value_that_cannot_be_right_names_file_and_row(corpus, environment, change, reason):
    [run] = (corpus / "gymnasium" / environment.partition("/")[2]).glob("*-0")
    rewrite(run, change)
    refused(corpus, str(run), TRAIN, reason)


def test_places_that_cannot_be_right_name_file_and_row(corpus):
    run = corpus / "gymnasium/CartPole-v1/PPO-0"
    whole = shutil.copytree(run, corpus.parent / "whole")

    def again(change, *parts):
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        rewrite(run, change)
        refused(corpus, str(run), *parts)

    table = pq.read_table(run / "train-00000-of-00001.parquet")
    steps, streams = table["step"].to_pylist(), table["stream"].to_pylist()
    _, second, third, *_ = chunk_starts(run / "train-00000-of-00001.parquet")
    again(setting("step", 700, steps[701]), "row 700", f"step {steps[701]}, but steps are consecutive")
    rows = third - second
    again(
        setting("step", second, 9999),
        f"row {second}: the {rows} rows from there are no consecutive steps of one stream",
    )
    again(setting("stream", slice(second, third), 9), f"row {second}", "stream 9, step 0, but streams are 0 to 3")
    again(setting("run", 3, "PPO-1"), "row 3", "run PPO-1", "but the run is PPO-0")
    lie = setting("stream", slice(0, second), streams[second])
    again(lie, f" of stream {streams[second]} are there twice")
    for column in ("terminated", "truncated"):
        rewrite(run, setting(column, 5, True))
    # Both are told in the same row, so that the index of episodes is not asked any more.
    refused(corpus, "row 5: it is both terminated and truncated")


def test_what_lies_beside_the_transitions_is_checked(corpus):
    run = corpus / "gymnasium/CartPole-v1/PPO-0"
    terminal = pq.read_table(run / "terminal.parquet")
    rewrite(run, setting("step", 3, terminal["step"][3].as_py() + 1), "terminal.parquet")
    refused(corpus, "terminal.parquet, row 3", "is not the end of an episode")
    rewrite(run, lambda table: terminal, "terminal.parquet")
    rewrite(run, setting("return", 4, 1000.0), "episodes.parquet")
    refused(corpus, "episodes.parquet, row 4: the data have another return")
    rewrite(run, setting("length", 4, 1000), "episodes.parquet")
    refused(corpus, "episodes.parquet, row 4: it is not the episode that the data have")


def test_an_exchanged_policy_and_a_stray_file_are_found(corpus):
    policy = corpus / "gymnasium/CartPole-v1/PPO-0/policy/policy.safetensors"
    content = bytearray(policy.read_bytes())
    content[-1] ^= 1
    policy.write_bytes(content)
    assert open_datasets(corpus, [CARTPOLE])  # of the same size: opening does not read it
    refused(corpus, str(policy), "has the SHA-256", "it was exchanged or damaged")
    policy.write_bytes(content + b"x")
    with pytest.raises(DatasetFormatError, match=r"policy\.safetensors has .* it is truncated or foreign"):
        open_datasets(corpus, [CARTPOLE])
    content[-1] ^= 1
    policy.write_bytes(content)
    shutil.copyfile(policy, policy.parent.parent / "train-00001-of-00002.parquet")
    (policy.parent.parent / "NOTES.md").write_text("mine")
    refused(corpus, "train-00001-of-00002.parquet is in no manifest")


def change_manifest(corpus, change):
    path = corpus / "gymnasium/manifest.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize(
    "path", ["../../secret.parquet", "/etc/hostname", "CartPole-v1/../../secret", "a\\b", "", "a//b"]
)
def test_a_manifest_cannot_name_what_lies_outside(corpus, path):
    def change(row):
        next(entry for entry in row["files"] if entry["chunks"])["path"] = path

    change_manifest(corpus, change)
    with pytest.raises(DatasetFormatError, match=r"lists .*, which is not a path within the repository"):
        open_datasets(corpus, [CARTPOLE])
    refused(
        corpus, f"lists {path!r}, which is not a path within the repository", number=2
    )  # and whose file is in no manifest


def test_spaces_and_chunks_that_cannot_be_are_refused_at_no_cost(corpus):
    huge = {"type": "Box", "shape": [10**9], "dtype": "float32", "low": "-inf", "high": "inf"}

    def enlarge(row):
        row["info"] = json.dumps({**json.loads(row["info"]), "observation_space": huge})

    change_manifest(corpus, enlarge)
    tracemalloc.start()
    with pytest.raises(DatasetFormatError, match="takes 1000000000 slots; the limit is 128"):
        open_datasets(corpus, [CARTPOLE])
    refused(corpus, "takes 1000000000 slots; the limit is 128")
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()

    def lengthen(row):
        next(entry for entry in row["files"] if entry["chunks"])["chunks"] = [2**31 - 1]

    update_repository(corpus / "gymnasium")
    change_manifest(corpus, lengthen)
    with pytest.raises(DatasetFormatError, match=r"that cannot be its \d+ transitions"):
        open_datasets(corpus, [CARTPOLE])
    refused(corpus, f"gives {CARTPOLE}, run PPO-0, ", " in its metadata and 2147483647 in its files")


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Box", "shape": [10**9], "dtype": "bool", "low": False, "high": True},
        {"type": "MultiBinary", "n": 10**9},
        {"type": "Discrete", "n": 10**30, "start": 0},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Box", "shape": [-100, -100], "dtype": "float32", "low": 0.0, "high": 1.0},
    ],
)
def test_impossible_spaces_are_refused_before_they_are_unfolded(space):
    tracemalloc.start()
    for role in ("observation", "action"):
        with pytest.raises(ValueError, match=r"takes \d+ slots|choices"):
            SlotLayout.of(space, role=role)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_is_written_is_checked(tmp_path):
    rows = 20
    labels = np.zeros((rows, 1), np.float32)
    labels[13] = 3
    zeros, never = np.zeros(rows, np.float32), np.zeros(rows, bool)
    stream = Transitions(
        np.zeros((rows, 2), np.float32), None, np.zeros((rows, 1), np.float32), zeros, never, never, labels
    )
    info = some_info(spaces.Box(-1, 1, (2,)), spaces.Discrete(3), rows)
    chunks = plan_chunks([rows], 0, 10)
    expected = 3 if chunks[0].start else 13
    with pytest.raises(
        DatasetFormatError, match=rf"row {expected}: reference_action holds 3 in slot 0, which takes 0 to 2"
    ):
        write_dataset(tmp_path, info, chunks, lambda chunk: stream[chunk.start : chunk.stop])


def test_observations_outside_their_space_are_counted():
    """Environments leave the bounds that they declare; what they gave is what happened."""
    checks = ValueChecks(
        SlotLayout.of(spaces.Dict({"a": spaces.Box(-1, 1, (1,)), "b": spaces.Discrete(4)})),
        SlotLayout.of(spaces.Box(np.float32(-0.1), np.float32(0.1), (1,)), role="action"),
    )
    observations = np.array([[0, 0], [1 + 1e-7, 3], [1.1, 0], [0, 4]], np.float32)
    actions = np.array([[0.1], [-0.1], [0], [0]], np.float32)
    zeros, never = np.zeros(4, np.float32), np.zeros(4, bool)
    transitions = Transitions(observations, None, actions, zeros, never, never, actions)
    assert checks.defects(transitions) == [] and checks.outside(observations).tolist() == [False, False, True, True]
    observations[1, 1] = 1024  # more than any table holds
    assert [defect.row for defect in checks.defects(transitions)] == [1]


def test_recorded_actions_do_the_same_again(data, corpus):
    """CliffWalking has no time limit of its own: without the 1000 steps of the metadata, 12,000 rows have differences."""
    done = check(data, "--replay")
    assert done.returncode == 0 and done.stdout.count("rows are right; replayed, the environment does the same") == 3
    info = open_dataset(data / "gymnasium/CliffWalking-v1/DQN-0").info
    assert info.max_episode_steps == 1000 and "seed + i at first" in str(info.seeding)

    def relimit(limit):
        def change(table):
            values = json.loads(table.schema.metadata[METADATA_KEY])
            info = RunInfo.from_json(json.dumps({**values, "max_episode_steps": limit}), "")
            return table.replace_schema_metadata({METADATA_KEY: info.to_json().encode()})

        return change

    folder = corpus / "gymnasium/CliffWalking-v1/DQN-0"
    rewrite(folder, relimit(999))
    assert open_dataset(folder).info.max_episode_steps == 999
    again = replay(open_dataset(folder))
    assert again.different > 0 and "recorded that it" in again.first
    # A reward that was never given, and one action that was never taken.
    shutil.copytree(data / "gymnasium/CartPole-v1/PPO-0", corpus / "one")
    path = next((corpus / "one").glob("train-*"))
    table = pq.read_table(path)
    rewrite_file(path, setting("reward", 700, 2.0))
    stream, step = table["stream"][700].as_py(), table["step"][700].as_py()
    again = replay(open_dataset(corpus / "one"))
    assert (again.rows, again.different) == (table.num_rows, 1)
    assert again.first == f"stream {stream}, step {step}: the reward is 1, recorded 2"
    rewrite_file(path, lambda _: setting("action", 700, 1 - table["action"][700].as_py()[0], slot=0)(table))
    again = replay(open_dataset(corpus / "one"))
    assert again.different > 0 and again.first.startswith(f"stream {stream}, step {step + 1}: slot ")


def test_data_of_unknown_seeding_are_not_replayed(corpus):
    def unknown(table):
        values = json.loads(table.schema.metadata[METADATA_KEY])
        return table.replace_schema_metadata({METADATA_KEY: json.dumps({**values, "seeding": None}).encode()})

    folder = corpus / "gymnasium/CartPole-v1/PPO-0"
    for name in ("train-00000-of-00001.parquet", "terminal.parquet", "episodes.parquet"):
        rewrite(folder, unknown, name)
    record = RunRecord.read(folder)
    replace(record, info=replace(record.info, seeding=None)).write(folder)
    update_repository(corpus / "gymnasium")
    done = check(corpus, "--replay", "--environment", CARTPOLE)
    assert done.returncode == 0 and "not replayed: its metadata do not say" in done.stdout


class Noise(gymnasium.Env):
    """Frames, rewards and ends from its own generator, so that every reset and every step shows."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._frame(), {}

    def step(self, action):
        return self._frame(), float(action) + self.np_random.random(), self.np_random.random() < 0.1, False, {}

    def _frame(self):
        return self.np_random.integers(0, 256, (64, 64, 3), np.uint8)


def make_noise(environment, num_envs, *, autoreset_mode, max_episode_steps):
    def one():
        return gymnasium.wrappers.TimeLimit(Noise(), max_episode_steps)

    return gymnasium.vector.SyncVectorEnv([one] * num_envs, autoreset_mode=autoreset_mode)


def test_images_resets_and_streams_of_unequal_lengths_are_replayed(tmp_path, monkeypatch):
    """Recorded by hand: the algorithm resets before step 17, twice, and the second stream ends before the first."""
    envs = make_noise("", 2, autoreset_mode=AutoresetMode.SAME_STEP, max_episode_steps=8)
    actions = np.random.default_rng(0).integers(0, 3, (30, 2))
    observations, _ = envs.reset(seed=[5, 6])
    columns = {name: [] for name in ("images", "rewards", "terminated", "truncated")}
    for step in range(30):
        if step == 17:
            columns["truncated"][-1] |= ~columns["terminated"][-1]
            envs.reset()
            observations, _ = envs.reset()
        after, rewards, terminated, truncated, _ = envs.step(actions[step])
        for name, value in zip(columns, (observations, rewards, terminated, truncated & ~terminated), strict=True):
            columns[name].append(value.copy())
        observations = after
    lengths = [30, 22]
    columns = {name: np.stack(values) for name, values in columns.items()}
    columns["truncated"][21, 1] = not columns["terminated"][21, 1]
    labels = actions.astype(np.float32)[..., None]
    streams = [
        Transitions(
            np.empty((length, 0), np.float32),
            columns["images"][:length, index],
            labels[:length, index],
            columns["rewards"][:length, index].astype(np.float32),
            columns["terminated"][:length, index],
            columns["truncated"][:length, index],
            labels[:length, index],
        )
        for index, length in enumerate(lengths)
    ]
    info = some_info(Noise.observation_space, Noise.action_space, sum(lengths))
    info = replace(info, seed=5, max_episode_steps=8, seeding=BY_STREAM)
    monkeypatch.setattr("ldm_hf.dataset_builder.repository.replay.make_vec", make_noise)
    monkeypatch.setattr(
        "ldm_hf.dataset_builder.repository.replay.spec", lambda environment: SimpleNamespace(nondeterministic=False)
    )

    def again(resets, index=0, **changes):
        changed = [replace(stream, **changes) if number == index else stream for number, stream in enumerate(streams)]
        chunks = plan_chunks(lengths, 0, 7)
        write_dataset(
            tmp_path, info, chunks, lambda chunk: changed[chunk.stream][chunk.start : chunk.stop], resets=resets
        )
        return replay(open_dataset(tmp_path))

    assert again([0, 17, 17]) == Replay(52, 0, "")
    once = again([0, 17])
    assert once.first.startswith("stream 0, step 17: the image is another one") and once.different > 0
    other = streams[1].images.copy()
    other[3, 60, 2, 1] ^= 1
    assert again([0, 17, 17], 1, images=other) == Replay(52, 1, "stream 1, step 3: the image is another one")
    terminated = streams[1].terminated.copy()
    goes_on = int(np.flatnonzero(~terminated & ~streams[1].truncated)[0])
    terminated[goes_on] = True
    lied = again([0, 17, 17], 1, terminated=terminated)
    assert lied.first == f"stream 1, step {goes_on}: the episode continues, recorded that it terminates"
    table = pq.read_table(tmp_path / "episodes.parquet")
    assert table["resets"].to_pylist().count(2) == 2 and table["resets"].to_pylist().count(1) == 2
    assert sum(table["length"].to_pylist()) == 52
