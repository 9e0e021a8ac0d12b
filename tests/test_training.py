"""The mixture, the settings, the loop and its checkpoints."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel

from conftest import CARTPOLE, CLIFF, PENDULUM, TOY_MODEL, run_ldm_here, small_disk
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.datasets import training_datasets
from ldm_hf.training.loop import learning_rate, train
from ldm_hf.training.mixture import Mixture, SequenceNumbers
from ldm_hf.training.model import load_model

FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors")


def toy_settings(data: Path, output: Path, **changes) -> dict:
    toy = {"model": "nano", "model_overrides": TOY_MODEL, "max_steps": 6, "train_batch_size": 4, "save_steps": 2}
    toy["environments"] = [CARTPOLE, CLIFF, PENDULUM]  # by name: their runs are too short to be worth imitating
    return {"data": str(data), "output_dir": str(output), **toy, "logging_steps": 1, "report_to": "none", **changes}


def write_settings(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def same_checkpoint(first: Path, second: Path) -> None:
    for name in FILES:
        found, expected = load_file(first / name), load_file(second / name)
        assert set(found) == set(expected)
        for key in found:
            assert torch.equal(found[key], expected[key]), f"{name}: {key}"


class FakeDataset:
    """Chunks of known lengths: all that the order of sequences depends on."""

    observation_space = {"type": "Discrete", "n": 2, "start": 0}
    action_space = {"type": "Discrete", "n": 2, "start": 0}

    def __init__(self, name: str, lengths: list[int]):
        self.environment, self.chunk_lengths = name, np.array(lengths)
        self.num_chunks, self.num_transitions = len(lengths), sum(lengths)


def made_mixture(processor, lengths, context_length=8, **options) -> Mixture:
    datasets = [FakeDataset(f"test/{index}", part) for index, part in enumerate(lengths)]
    return Mixture(datasets, processor, context_length=context_length, **options)


LENGTHS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=5)


@given(LENGTHS, st.integers(0, 9), st.randoms())
def test_a_sequence_depends_on_seed_and_number_alone(processor, lengths, seed, random):
    in_order = [made_mixture(processor, lengths, seed=seed).locate(number) for number in range(60)]
    numbers = list(range(60))
    random.shuffle(numbers)
    again = made_mixture(processor, lengths, seed=seed)
    assert {number: again.locate(number) for number in numbers} == dict(enumerate(in_order))
    for environment, chunk, start in in_order:
        assert 0 <= start <= max(0, lengths[environment][chunk] - 8)


@given(LENGTHS)
def test_environments_take_turns_and_chunks_come_once_an_epoch(processor, lengths):
    mixture = made_mixture(processor, lengths)
    located = [mixture.locate(number) for number in range(len(lengths) * 12)]
    for round_ in range(12):
        turns = located[round_ * len(lengths) : (round_ + 1) * len(lengths)]
        assert sorted(environment for environment, *_ in turns) == list(range(len(lengths)))
    for environment, chunks in enumerate(lengths):
        visits = [chunk for index, chunk, _ in located if index == environment]
        for epoch in range(12 // len(chunks)):
            assert sorted(visits[epoch * len(chunks) : (epoch + 1) * len(chunks)]) == list(range(len(chunks)))


def test_weights_are_shares(processor):
    mixture = made_mixture(processor, [[9], [9], [9]], weights={"test/0": 6.0, "test/1": 3.0, "test/2": 1.0})
    counts = np.bincount([mixture.locate(number)[0] for number in range(1920)])
    # A round has 64 turns an environment: 192, of which 115, 58 and 19 are nearest to 60, 30 and 10 %.
    assert counts.tolist() == [1150, 580, 190]
    by_size = made_mixture(processor, [[30], [10]], weights="size")
    assert np.bincount([by_size.locate(number)[0] for number in range(128)]).tolist() == [96, 32]
    with pytest.raises(ConfigError, match="test/1"):
        made_mixture(processor, [[9], [9]], weights={"test/0": 1.0})


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4), per_chunk=st.integers(1, 5), seed=st.integers(0, 9)
)
def test_a_visit_takes_its_sequences_from_one_chunk(processor, lengths, per_chunk, seed):
    mixture = made_mixture(processor, [lengths], sequences_per_chunk=per_chunk, seed=seed)
    for visit in range(2 * len(lengths)):
        places = [mixture.locate(visit * per_chunk + place) for place in range(per_chunk)]
        [chunk] = {chunk for _, chunk, _ in places}
        starts = [start for _, _, start in places]
        assert all(0 <= start <= max(0, lengths[chunk] - 8) for start in starts)
        if lengths[chunk] >= 8 * per_chunk:  # side by side: nothing is read for nothing, and nothing twice
            assert starts == list(range(starts[0], starts[0] + 8 * per_chunk, 8))
    # The same as a pure function: asked for in another order.
    numbers = list(range(2 * len(lengths) * per_chunk))
    again = made_mixture(processor, [lengths], sequences_per_chunk=per_chunk, seed=seed)
    backwards = [again.locate(number) for number in reversed(numbers)]
    assert backwards[::-1] == [mixture.locate(number) for number in numbers]


@settings(max_examples=50)
@given(st.integers(1, 3), st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(0, 5))
def test_processes_share_every_step_without_overlap(share, world, accumulation, first):
    batch = share * world * accumulation
    ranks = [list(SequenceNumbers(range(first, first + 3), batch, accumulation, rank, world)) for rank in range(world)]
    for step in range(3):
        pieces = [piece for rank in ranks for piece in rank[step * accumulation : (step + 1) * accumulation]]
        start = (first + step) * batch
        assert sorted(number for piece in pieces for number in piece) == list(range(start, start + batch))


def test_a_step_is_cut_into_pieces():
    config = TrainingConfig("d", "o", train_batch_size=24, per_device_train_batch_size=2)
    assert [config.accumulation_steps(processes) for processes in (1, 2, 3, 4, 6, 12)] == [12, 6, 4, 3, 2, 1]
    assert TrainingConfig("d", "o", train_batch_size=24).accumulation_steps(8) == 1
    with pytest.raises(ConfigError, match=r"batch_size 24 cannot be shared by 5 processes .* a multiple of 10"):
        config.accumulation_steps(5)
    with pytest.raises(ConfigError, match="per_device_train_batch_size unset: it must be a multiple of 7"):
        TrainingConfig("d", "o", train_batch_size=24).accumulation_steps(7)


@given(LENGTHS, st.integers(1, 3))
def test_lengths_are_known_without_reading(processor, lengths, per_chunk):
    mixture = made_mixture(processor, lengths, sequences_per_chunk=per_chunk)
    for number in range(60):
        environment, chunk, start = mixture.locate(number)
        assert mixture.length(number) == len(range(lengths[environment][chunk])[start : start + 8])


def test_loader_workers_change_nothing(data, processor):
    numbers = SequenceNumbers(range(3, 6), 4, 1, 0, 1)

    def batches(workers: int):
        mixture = Mixture(open_datasets(data), processor, context_length=16)
        return list(DataLoader(mixture, batch_sampler=numbers, collate_fn=processor.collate, num_workers=workers))

    for alone, shared in zip(batches(0), batches(2), strict=True):
        for name in alone:
            assert torch.equal(alone[name], shared[name]), name


def test_a_sequence_is_a_piece_of_a_stream(data, processor):
    (dataset,) = open_datasets(data, [CLIFF])
    mixture = Mixture([dataset], processor, context_length=16, seed=3)
    _, chunk, start = mixture.locate(5)
    expected, found = dataset.chunk(chunk)[start : start + 16], mixture[5]
    np.testing.assert_array_equal(found.observations, expected.observations)
    np.testing.assert_array_equal(found.previous_actions[1:], expected.actions[:-1])
    np.testing.assert_array_equal(found.reference_actions, expected.reference_actions)


def test_learning_rate_by_hand():
    config = TrainingConfig("d", "o", max_steps=10, learning_rate=1.0, warmup_steps=3, decay_fraction=0.4)
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert [learning_rate(config, step) for step in range(10)] == pytest.approx(expected)
    assert learning_rate(TrainingConfig("d", "o"), 999) == 2.5e-4  # the paper's: constant


def test_settings_are_checked(tmp_path):
    path = write_settings(tmp_path / "s.yaml", {"data": "d", "output_dir": "o", "learning_rate": "1e-3"})
    loaded = TrainingConfig.load(path, {"train_batch_size": 8, "adam_beta2": 0.95, "environments": ["a/B-v0"]})
    assert (loaded.learning_rate, loaded.train_batch_size) == (1e-3, 8)
    assert (loaded.adam_beta1, loaded.adam_beta2, loaded.environments) == (0.9, 0.95, ["a/B-v0"])
    loaded.save(tmp_path / "again.yaml")
    assert TrainingConfig.load(tmp_path / "again.yaml") == loaded
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        TrainingConfig.load(path, {"learning_rte": 1})
    with pytest.raises(ConfigError, match="must set data and output_dir"):
        TrainingConfig.from_mapping({})


def test_models_that_are_none_are_refused(tmp_path):
    for changes, message in (
        ({"model": "huge"}, "neither a preset"),
        ({"model_overrides": {"hidden_sise": 3}}, "hidden_sise, which LDMConfig does not have"),
        ({"model_overrides": {"hidden_size": 33}}, "model_overrides cannot be used"),
        ({"model_overrides": {"hidden_size": "wide"}}, "model_overrides cannot be used"),
        ({"reinitialize": ["backbone"]}, "reinitialize is for trained models"),
        ({"reinitialize": ["head"]}, "reinitialize.* cannot be used"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_model(TrainingConfig("d", "o", **changes))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_model(TrainingConfig("d", "o", model=str(tmp_path)))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """A run that was never interrupted."""
    output = tmp_path_factory.mktemp("straight")
    config = write_settings(
        output / "s.yaml", toy_settings(data, output / "run", save_total_limit=9, report_to="tensorboard")
    )
    done = run_ldm_here("train", "--config", config)
    assert done.returncode == 0, done.stderr
    return output / "run"


def test_training_learns_writes_and_logs(straight, data):
    assert {path.name for path in straight.glob("checkpoint-*")} == {f"checkpoint-{step:08d}" for step in (2, 4, 6)}
    assert list(straight.glob("ldm/events.out.tfevents.*"))
    before, after = (load_file(straight / f"checkpoint-{step:08d}/model.safetensors") for step in (2, 6))
    assert all(
        not torch.equal(before[name], after[name]) for name in before if "image" not in name and "scalar" not in name
    )
    assert yaml.safe_load((straight / "training.yaml").read_text())["data"] == str(data)
    assert AutoConfig.from_pretrained(straight / "model").environments == [CARTPOLE, CLIFF, PENDULUM]


def test_training_continues_from_a_model_and_remembers_what_that_had_seen(straight, data, tmp_path):
    settings_of = toy_settings(data, tmp_path / "run", environments=[CARTPOLE], max_steps=1)
    settings_of.update(model=str(straight / "model"), model_overrides={})
    before = load_file(straight / "model/model.safetensors")
    train(TrainingConfig(**{**settings_of, "learning_rate": 1e-9}))
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert AutoConfig.from_pretrained(tmp_path / "run/model").environments == [CARTPOLE, CLIFF, PENDULUM]


def test_parts_of_a_trained_model_start_at_random_again(straight):
    folder = str(straight / "model")
    before = load_file(straight / "model/model.safetensors")
    for part in ("embedding", "backbone", "action_head"):
        model, _ = load_model(TrainingConfig("d", "o", model=folder, reinitialize=[part]))
        after = model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all(name.startswith(f"{part}.") for name in changed)


def test_a_killed_run_continues_bit_for_bit(straight, data, tmp_path):
    config = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", max_steps=100_000))
    command = [sys.executable, "-m", "ldm_hf", "train", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        while not (tmp_path / "run/checkpoint-00000004").exists():
            assert running.poll() is None and time.sleep(0.01) is None
        os.kill(running.pid, signal.SIGKILL)
    # What was written after step 4 is taken away, so that the run resumes from the middle of the other one.
    for path in (tmp_path / "run").glob("checkpoint-*"):
        if path.name != "checkpoint-00000004":
            shutil.rmtree(path)
    same_checkpoint(tmp_path / "run/checkpoint-00000004", straight / "checkpoint-00000004")
    done = run_ldm_here("train", "--config", config, "--max_steps", "6")
    assert done.returncode == 0, done.stderr
    same_checkpoint(tmp_path / "run/checkpoint-00000006", straight / "checkpoint-00000006")


def test_a_finished_run_repeats_nothing(straight, data, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in straight.glob("checkpoint-*/*")}
    settings_ = toy_settings(data, straight, save_total_limit=9)
    done = run_ldm_here("train", "--config", write_settings(tmp_path / "s.yaml", settings_))
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in straight.glob("checkpoint-*/*")} == before


def test_what_an_attempt_without_a_checkpoint_found_best_is_forgotten(data, tmp_path):
    """It ends before its first checkpoint; another one in its folder, which learns nothing, does not get its weights."""
    settings = toy_settings(
        data, tmp_path / "run", save_steps=500, max_steps=8, validation_data=str(data), validation_steps=2
    )

    def interrupt(done):
        if done == 6:
            raise KeyboardInterrupt

    def best_step():
        [best] = (tmp_path / "run/best").iterdir()
        return json.loads((best / "training.json").read_text())["step"]

    with pytest.raises(KeyboardInterrupt):
        train(TrainingConfig(**settings, seed=1), progress=interrupt)
    assert best_step() > 2 and not list((tmp_path / "run").glob("checkpoint-*"))
    train(TrainingConfig(**{**settings, "learning_rate": 1e-9, "max_steps": 2}, seed=2))
    assert best_step() <= 2


def test_a_finished_model_can_be_saved_at_half_the_size(straight, data, tmp_path):
    """A finished run is finished again, as the settings now say: rounded in the file, and float32 for who loads it."""
    shutil.copytree(straight, tmp_path / "run")
    folder = train(TrainingConfig(**toy_settings(data, tmp_path / "run", save_total_limit=9, save_precision="fp16")))
    whole, half = (load_file(path / "model/model.safetensors") for path in (straight, folder.parent))
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in whole.items()) and half.keys() == whole.keys()
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[name], tensor.half().float()) for name, tensor in whole.items())


def test_a_full_disk_keeps_the_old_checkpoint(straight, data, tmp_path):
    first = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", max_steps=2))
    assert run_ldm_here("train", "--config", first).returncode == 0
    with small_disk(100_000):
        done = run_ldm_here("train", "--config", first, "--max_steps", "4")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "cannot be written" in last and "earlier checkpoints are untouched" in last
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-00000002"]
    assert run_ldm_here("train", "--config", first, "--max_steps", "4").returncode == 0
    same_checkpoint(tmp_path / "run/checkpoint-00000004", straight / "checkpoint-00000004")


def test_damaged_checkpoints_are_named(straight, data, tmp_path):
    shutil.copytree(straight / "checkpoint-00000002", tmp_path / "run/checkpoint-00000002")
    weights = tmp_path / "run/checkpoint-00000002/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = run_ldm_here("train", "--config", write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run")))
    assert done.returncode == 1
    assert "checkpoint-00000002 cannot be continued from" in done.stderr.strip().splitlines()[-1]


def test_training_on_chosen_environments(data, tmp_path):
    changes = {
        "environments": [CARTPOLE, PENDULUM],
        "weights": {CARTPOLE: 1, PENDULUM: 3},
        "per_device_train_batch_size": 2,
    }
    config = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", max_steps=2, **changes))
    done = run_ldm_here("train", "--config", config)
    assert done.returncode == 0, done.stderr
    done = run_ldm_here("train", "--config", config, "--environments", "[gymnasium/Nothing-v0]")
    assert done.returncode == 1 and "has no data of gymnasium/Nothing-v0" in done.stderr.splitlines()[-1]


def test_degenerate_references_are_left_out_unless_they_are_named(data, tmp_path):
    said: list[str] = []
    settings = toy_settings(data, tmp_path / "run")
    flagged = {each.environment: each.info.flags for each in open_datasets(data) if each.info.flags}
    assert CLIFF in flagged and CARTPOLE not in flagged  # every episode beside the cliff begins alike
    kept = training_datasets(TrainingConfig(**{**settings, "environments": None}), said.append)
    assert [each.environment for each in kept] == [name for name in settings["environments"] if name not in flagged]
    assert [line.split(":")[1].strip() for line in said] == sorted(flagged)
    assert all(flag in line for line, name in zip(said, sorted(flagged), strict=True) for flag in flagged[name])
    assert len(training_datasets(TrainingConfig(**settings))) == 3
    weights = dict.fromkeys(settings["environments"], 1.0)
    assert len(training_datasets(TrainingConfig(**{**settings, "environments": None, "weights": weights}))) == 3


def test_nothing_but_degenerate_references_is_one_line(data, tmp_path):
    (only,) = (each for each in open_datasets(data, [CLIFF]))
    shutil.copytree(data / "gymnasium", tmp_path / "data/gymnasium")
    for folder in (tmp_path / "data/gymnasium").glob("*/*/run.json"):
        if "CliffWalking" not in str(folder):
            shutil.rmtree(folder.parent)
    update_repository(tmp_path / "data/gymnasium")
    settings = TrainingConfig(**{**toy_settings(tmp_path / "data", tmp_path / "run"), "environments": None})
    with pytest.raises(ConfigError, match=re.escape(only.info.flags[0])):
        training_datasets(settings)
