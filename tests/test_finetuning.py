"""Fine-tuning: which episodes, own rollouts, adapters, and what is left of it all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ldm_hf.finetuning.choosing as choosing_module
import ldm_hf.finetuning.finetune as finetune_module
import ldm_hf.training.loop as loop_module
from conftest import CARTPOLE, CLIFF, PENDULUM, run_ldm_here
from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.dataset_builder.format.writer import Terminals
from ldm_hf.errors import ConfigError, LDMError, MissingDependencyError, UnknownEnvironmentError, UnsupportedSpaceError
from ldm_hf.evaluation.evaluate import evaluate
from ldm_hf.evaluation.lineage import training_data
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.results import NO_IMPROVEMENT, SEEN_SEED, TRAINED
from ldm_hf.finetuning.choosing import LAST
from ldm_hf.finetuning.collecting import collect
from ldm_hf.finetuning.episodes import (
    Episode,
    best_episodes,
    drawn_episodes,
    in_orders,
    read_episodes,
    recorded_episodes,
    write_run,
)
from ldm_hf.finetuning.finetune import FineTuning, OwnRollouts, finetune
from ldm_hf.hub.model_card import kept_metadata
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling.quantization_ldm import ActionCode
from ldm_hf.modeling.spaces_ldm import ABSENT, CONTINUOUS, DISCRETE, Transitions
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.validation import Validation, action_error

TOY = {"max_steps": 4, "train_batch_size": 4, "save_steps": 2, "report_to": "none"}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(model, processor, tmp_path_factory) -> str:
    """A model that was trained on CliffWalking, as far as it says."""
    folder = tmp_path_factory.mktemp("base")
    model.config.environments = [CLIFF]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.config.environments = None
    return str(folder)


def only(data: Path, environment: str) -> EnvironmentDataset:
    (dataset,) = open_datasets(data, [environment])
    return dataset


def loss_on(folder: Path | str, dataset: EnvironmentDataset, start: int = 0) -> float:
    """Mean loss on the transitions of a dataset from ``start`` on that fit into the context."""
    model, processor = load_pretrained(folder)
    layouts = processor.observation_layout(dataset.observation_space), processor.action_layout(dataset.action_space)
    transitions = dataset.chunk(0)[start : start + model.config.max_position_embeddings]
    sequence = processor.align(transitions, *layouts)
    with torch.no_grad():
        return float(model(**processor.collate([sequence])).loss)


def share_of_wrong_actions(folder: Path | str, dataset: EnvironmentDataset, start: int = 0) -> float:
    """How often the likeliest action is not the label, of the same transitions; actions are symbols."""
    model, processor = load_pretrained(folder)
    layouts = processor.observation_layout(dataset.observation_space), processor.action_layout(dataset.action_space)
    transitions = dataset.chunk(0)[start : start + model.config.max_position_embeddings]
    batch = processor.collate([processor.align(transitions, *layouts)])
    labels = batch.pop("labels")[0, :, 0]
    with torch.no_grad():
        likeliest = model(**batch).logits[0, :, 0].argmax(-1)
    return float((likeliest != labels).float().mean())


def test_the_error_of_actions_by_hand():
    """Bin 4 of 16 of [-1, 1] ends 3.5 bins before 0; a wrong symbol counts whole; what has no label, not at all."""
    code = ActionCode(100.0, 256.0, 16, "uniform")
    kinds = torch.tensor([[CONTINUOUS, DISCRETE], [CONTINUOUS, ABSENT]])
    bounds = torch.tensor([[[-1.0, 1.0], [0.0, 2.0]], [[-1.0, 1.0], [0.0, 0.0]]])
    logits = torch.zeros(2, 2, 2, 16)
    logits[:, :, 0, 4], logits[:, :, 1, 1] = 1.0, 1.0
    labels = torch.tensor([[[0.0, 2.0], [torch.nan, torch.nan]], [[-0.4375, 0.0], [1.0, 0.0]]])
    first, second = (3.5 / 16 + 1) / 2, 0 + 11.5 / 16  # 1 is the end of the last bin, and -0.4375 the middle of bin 4
    assert float(action_error(logits, labels, kinds, bounds, code)) == pytest.approx(first + second)


def test_the_best_episodes_by_hand():
    episodes = [Episode(0, 0, index, index + 1, total) for index, total in enumerate([3.0, 5.0, -1.0, 5.0, 4.0])]
    assert best_episodes(episodes, 1) == [episodes[3]]  # the later of two equal ones
    assert best_episodes(episodes, 3) == [episodes[1], episodes[3], episodes[4]]  # in the order of recording


def test_demonstrations_are_drawn_from_the_end_of_a_training():
    episodes = [Episode(0, 0, start, start + 1, 0.0) for start in range(40)]
    drawn = [drawn_episodes(episodes, 3, seed, 0.1) for seed in range(20)]
    assert {len(one) for one in drawn} == {3} and all(one == sorted(one, key=lambda e: e.start) for one in drawn)
    assert {episode.start for one in drawn for episode in one} == {36, 37, 38, 39}
    assert drawn_episodes(episodes, 3, 5, 0.1) == drawn[5]
    assert drawn_episodes(episodes, 8, 0, 0.1) == episodes[-8:]  # as many as are needed
    assert len({episode.start for seed in range(50) for episode in drawn_episodes(episodes, 3, seed, 1)}) > 30


def made_stream(rewards: list[float], ends: dict[int, str]) -> Transitions:
    steps = len(rewards)
    numbers = np.arange(steps, dtype=np.float32)[:, None]
    terminated, truncated = (np.array([ends.get(step) == kind for step in range(steps)]) for kind in ("term", "trunc"))
    actions = np.zeros((steps, 1), np.float32)
    return Transitions(numbers, None, actions, np.array(rewards, np.float32), terminated, truncated, actions)


def test_episodes_of_a_run_by_hand(data, tmp_path):
    # Two streams. Of the first, the second episode was broken off and the last one cut by the end of the recording; that of
    # the second began with the first and ended last: by its start, it is the second of the run.
    streams = [
        made_stream([1, 1, 9, 2, 2, 7], {1: "term", 2: "trunc", 4: "trunc"}),
        made_stream([4, 0, 0, 3, 0, 0], {5: "term"}),
    ]
    info = replace(only(data, CLIFF).info, run="hand", num_transitions=12)
    ends = Terminals(np.array([0, 0, 1]), np.array([1, 4, 5]), np.array([[10], [20], [40]], np.float32), None)
    write_run(tmp_path, info, streams, [ends])
    runs = [only(tmp_path, CLIFF)]
    episodes = recorded_episodes(runs)
    assert episodes == [Episode(0, 0, 0, 2, 2.0), Episode(0, 1, 0, 6, 7.0), Episode(0, 0, 3, 5, 4.0)]
    read, terminals = read_episodes(runs, best_episodes(episodes, 2))
    assert read.observations.ravel().tolist() == [0, 1, 2, 3, 4, 5, 3, 4]
    assert read.rewards.tolist() == [4, 0, 0, 3, 0, 0, 2, 2]
    assert np.flatnonzero(read.terminated | read.truncated).tolist() == [5, 7]
    assert [(ends.steps.tolist(), ends.observations.tolist()) for ends in terminals] == [
        ([5], [[40.0]]),
        ([7], [[20.0]]),
    ]


def test_episodes_in_other_orders(data):
    runs = [only(data, CARTPOLE)]
    chosen = recorded_episodes(runs)[:3]
    transitions, terminals = read_episodes(runs, chosen)
    streams, moved = in_orders(transitions, terminals, 6, seed=0)
    assert np.array_equal(streams[0].observations, transitions.observations)
    starts = np.cumsum([0, *map(len, chosen[:-1])])
    firsts = {tuple(transitions.observations[start]): index for index, start in enumerate(starts)}
    orders = set()
    for number, stream in enumerate(streams):
        ends = [one for one in moved if one.streams[0] == number]
        places = [0, *(int(one.steps[0]) + 1 for one in ends[:-1])]
        order = [firsts[tuple(stream.observations[place])] for place in places]
        assert sorted(order) == [0, 1, 2] and len(stream) == len(transitions)
        for index, one in zip(order, ends, strict=True):  # what each led to came along
            assert np.array_equal(one.observations, terminals[index].observations)
        orders.add(tuple(order))
    assert len(orders) > 1


@pytest.mark.parametrize("metric", ["loss", "action_error"])
def test_held_back_episodes_choose_the_weights(base, data, tmp_path, monkeypatch, metric):
    """Of a training that is bound to get worse, the best is kept; it stops; resumed anywhere, it is the same."""
    measured = []

    def spied(self, model):
        found = measure(self, model)
        measured.append(found[metric])
        return found

    measure = Validation.measure
    monkeypatch.setattr(Validation, "measure", spied)
    toy = {**TOY, "max_steps": 60, "learning_rate": 0.03, "warmup_steps": 0, "validation_steps": 2}
    toy |= {"early_stopping_patience": 3, "save_steps": 2, "metric_for_best_model": metric}
    tuning = FineTuning(base, CARTPOLE, 10, str(data))
    folder = finetune(tuning, tmp_path / "out", toy)
    held_back = only(tmp_path / "out/validation", CARTPOLE)
    both = [recorded_episodes([one]) for one in (held_back, only(tmp_path / "out/data", CARTPOLE))]
    both[1] = [episode for episode in both[1] if episode.stream == 0]
    drawn = drawn_episodes(recorded_episodes([only(data, CARTPOLE)]), 10, 0, LAST)
    assert len(both[0]) == 2 and sorted(one.total for one in both[0] + both[1]) == sorted(one.total for one in drawn)
    assert len(measured) < 30 and min(measured) <= min(measured[-3:])  # it stopped three measurements after the best
    assert len(measured) - 1 - int(np.argmin(measured)) == 3
    context = load_pretrained(folder)[0].config.max_position_embeddings
    total = len(held_back.chunk(0))
    windows = [(start, min(context, total - start)) for start in range(0, total, context)]
    of_window = loss_on if metric == "loss" else share_of_wrong_actions
    found = [of_window(folder, held_back, start) * length for start, length in windows]
    assert sum(found) / total == pytest.approx(min(measured), rel=1e-5)
    # Killed after the best, before the end: the best is known, and what follows is the same.
    again = tmp_path / "again"
    stop = 2 * (int(np.argmin(measured)) + 2)
    finetune(tuning, again, {**toy, "max_steps": stop})
    shutil.rmtree(again / "model")
    (again / "finetuning.json").unlink()
    other = "loss" if metric == "action_error" else "action_error"
    with pytest.raises(ConfigError, match=f"metric_for_best_model '?{metric}'? and is '?{other}"):
        finetune(tuning, again, {**toy, "metric_for_best_model": other})
    (again / "finetuning.json").unlink()
    resumed = finetune(tuning, again, toy)
    same = load_file(folder / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])


def test_training_that_only_harms_changes_nothing(base, data, tmp_path):
    toy = {**TOY, "max_steps": 6, "learning_rate": 10.0, "warmup_steps": 0, "validation_steps": 2}
    toy |= {"early_stopping_patience": 2, "metric_for_best_model": "loss"}
    folder = finetune(FineTuning(base, CARTPOLE, 5, str(data)), tmp_path, toy)
    same = load_file(folder / "model.safetensors"), load_file(Path(base) / "model.safetensors")
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert not (tmp_path / "checkpoint-00000006").exists()  # it stopped after four steps


def test_stopping_early_needs_something_to_measure(data, tmp_path):
    config = TrainingConfig(data=str(data), output_dir=str(tmp_path), early_stopping_patience=2, report_to="none")
    with pytest.raises(ConfigError, match="early_stopping_patience needs validation_data"):
        loop_module.train(config)


@pytest.mark.parametrize("environment", [CARTPOLE, CLIFF, PENDULUM])
def test_episodes_across_chunks(data, environment, monkeypatch):
    dataset = only(data, environment)
    episodes = recorded_episodes([dataset])
    assert len(episodes) == dataset.info.num_episodes
    read, _ = read_episodes([dataset], episodes)
    stops = np.cumsum([episode.stop - episode.start for episode in episodes])
    assert (np.flatnonzero(read.terminated | read.truncated) + 1).tolist() == stops.tolist()
    totals = np.add.reduceat(read.rewards.astype(float), [0, *stops[:-1]])
    np.testing.assert_allclose(totals, [episode.total for episode in episodes])


def test_own_rollouts_are_what_happened(model, processor, tmp_path):
    def made(name: str, **options) -> tuple[EnvironmentDataset, Transitions]:
        options = {"episodes": 6, "temperature": 1.0, **options}
        collect(model, processor, CARTPOLE, tmp_path / name, **options)
        dataset = only(tmp_path / name, CARTPOLE)
        return dataset, read_episodes([dataset], recorded_episodes([dataset]))[0]

    dataset, transitions = made("once")
    assert (dataset.info.num_episodes, dataset.info.num_streams) == (6, 6)
    by_start = sorted(recorded_episodes([dataset]), key=lambda episode: (episode.start, episode.stream))
    assert [episode.total for episode in by_start] == dataset.info.curve.returns
    np.testing.assert_array_equal(transitions.reference_actions, transitions.actions)
    assert set(np.unique(transitions.actions)) == {0.0, 1.0}
    assert dataset.info.first10 == dataset.info.last10 == np.mean(dataset.info.curve.returns)
    for name, options, same in (
        ("again", {}, True),
        ("seed", {"seed": 1}, False),
        ("round", {"round_number": 2}, False),
        ("cold", {"temperature": 1e-4}, False),
    ):
        _, other = made(name, **options)
        assert np.array_equal(other.observations, transitions.observations) == same, name


def test_fine_tuning_on_data(base, data, tmp_path):
    lines = []
    tuning = FineTuning(base, CARTPOLE, 3, str(data))
    folder = finetune(
        tuning, tmp_path / "out", {**TOY, "max_steps": 20, "learning_rate": 1e-2, "warmup_steps": 0}, lines.append
    )
    assert folder == tmp_path / "out/model"
    written, every = only(tmp_path / "out/data", CARTPOLE), recorded_episodes([only(data, CARTPOLE)])
    drawn = [episode.total for episode in drawn_episodes(every, 3, 0, LAST)]
    # In sixteen orders, so that what is before an episode in the context does not tell which one it is.
    assert sorted(episode.total for episode in recorded_episodes([written])) == sorted(drawn * 16)
    assert lines == [
        f"{CARTPOLE}: 3 episodes with returns from {min(drawn):g} to {max(drawn):g}, drawn from those of its end, of "
        f"{len(every)} episodes with returns from {min(e.total for e in every):g} to {max(e.total for e in every):g}"
    ]
    assert loss_on(folder, written) < loss_on(base, written) - 0.3
    assert load_pretrained(folder)[0].config.environments == [CARTPOLE, CLIFF]
    # The reference that scores are measured by is that of the whole run.
    assert (written.info.first10, written.info.last10) == (only(data, CARTPOLE).info.first10, written.info.last10)
    report = evaluate(folder, open_datasets(training_data(folder)), tmp_path / "report", Protocol(2, 1))
    assert report.environments[0].training == TRAINED and report.environments[0].failure is None


def test_adapters_leave_the_base_as_it_is(base, data, tmp_path, monkeypatch):
    from peft import PeftModel

    trained, save_finished = {}, loop_module.save_finished

    def spied(accelerator, model, *rest):
        trained.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return save_finished(accelerator, model, *rest)

    monkeypatch.setattr(loop_module, "save_finished", spied)
    settings = {**TOY, "lora_rank": 4, "learning_rate": 1e-2, "eval_steps": 4, "eval_episodes": 1}
    folder = finetune(FineTuning(base, CARTPOLE, 3, str(data)), tmp_path, settings)
    before, after = load_file(Path(base) / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(before) == set(after)
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in trained.items() if "lora_" not in name}
    assert set(kept) == set(before)
    for name, tensor in before.items():
        assert torch.equal(kept[name], tensor), name
        adapted = any(layer in name for layer in LAYERS)
        assert torch.equal(after[name], tensor) != adapted, name

    plain, processor = load_pretrained(base)
    dataset = only(tmp_path / "data", CARTPOLE)
    layouts = processor.observation_layout(dataset.observation_space), processor.action_layout(dataset.action_space)
    batch = processor.collate([processor.align(dataset.chunk(0)[:16], *layouts)])
    batch.pop("labels")
    with_adapter = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    with torch.no_grad():
        expected, found = with_adapter(**batch).logits, load_pretrained(folder)[0](**batch).logits
    allowed = expected > torch.finfo(torch.float32).min
    assert (expected[allowed] - found[allowed]).abs().max() <= 3e-6 * expected[allowed].abs().max()
    assert loss_on(tmp_path / "checkpoint-00000004", dataset) == loss_on(folder, dataset)


def test_adapters_continue_bit_for_bit(base, data, tmp_path):
    def trained(name: str, steps: int) -> Path:
        toy = {**TOY, "lora_rank": 4, "model": base, "environments": [CARTPOLE], "save_total_limit": 9}
        loop_module.train(
            TrainingConfig(data=str(data), output_dir=str(tmp_path / name), **{**toy, "max_steps": steps})
        )
        return tmp_path / name

    straight = trained("straight", 4)
    trained("resumed", 2)
    resumed = trained("resumed", 4)
    for name in ("model", "adapter", "optimizer", "random"):
        parts = [load_file(folder / f"checkpoint-00000004/{name}.safetensors") for folder in (straight, resumed)]
        assert set(parts[0]) == set(parts[1])
        assert all(torch.equal(parts[0][key], parts[1][key]) for key in parts[0]), name


def test_fine_tuning_on_own_rollouts_in_rounds(base, tmp_path, monkeypatch):
    tuning = FineTuning(base, CARTPOLE, 4, OwnRollouts(rounds=2, keep=0.5))
    # It is interrupted before each training and continues each time.
    train, broken = finetune_module.train, []

    def breaking_once(config, **options):
        if config.output_dir not in broken:
            broken.append(config.output_dir)
            raise LDMError("interrupted")
        return train(config, **options)

    monkeypatch.setattr(finetune_module, "train", breaking_once)
    for _ in range(2):
        with pytest.raises(LDMError, match="interrupted"):
            finetune(tuning, tmp_path / "out", TOY)
    first = tmp_path / "out/round-1"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    folder = finetune(tuning, tmp_path / "out", TOY)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert folder == tmp_path / "out/model" and broken == [str(first), str(tmp_path / "out")]

    rounds = [only(place / "rollouts", CARTPOLE) for place in (first, tmp_path / "out")]
    totals = [[episode.total for episode in recorded_episodes([one])] for one in rounds]
    for place, of in ((first, totals[0]), (tmp_path / "out", totals[0] + totals[1])):
        chosen = [episode.total for episode in recorded_episodes([only(place / "data", CARTPOLE)])]
        assert sorted(chosen) == sorted(sorted(of)[-2:] * 16)
    settings = TrainingConfig.load(tmp_path / "out/training.yaml")
    assert settings.model == str(first / "model")
    for model in (first / "model", folder):  # the model that was there before the first round
        card = (model / "README.md").read_text()
        assert kept_metadata(model) == {"base_model": Path(base).name} and f'ldm_hf.load("{model}")' in card
    # Uninterrupted it is the same.
    monkeypatch.setattr(finetune_module, "train", train)
    again = finetune(tuning, tmp_path / "again", TOY)
    same = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    # Own rollouts are not references.
    report = evaluate(folder, open_datasets(training_data(folder)), tmp_path / "report", Protocol(2, 1))
    assert report.environments[0].normalized_score is None
    assert NO_IMPROVEMENT in report.environments[0].flags and SEEN_SEED not in report.environments[0].flags


def test_a_killed_fine_tuning_continues(base, data, tmp_path):
    arguments = ["finetune", base, CARTPOLE, "--data", str(data), "--episodes", "3", "--max_steps", "200", "--lora"]
    more = [
        part
        for name, value in {**TOY, "save_steps": 20}.items()
        if name != "max_steps"
        for part in (f"--{name}", str(value))
    ]
    command = [sys.executable, "-m", "ldm_hf", *arguments, *more, "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        while not (tmp_path / "out/checkpoint-00000020").exists():
            assert running.poll() is None and time.sleep(0.01) is None
        os.kill(running.pid, signal.SIGTERM)
    assert running.returncode == 128 + signal.SIGTERM and not (tmp_path / "out/model").exists()
    done = run_ldm_here(*command[3:])
    assert done.returncode == 0, done.stderr
    assert f"The model is in {tmp_path / 'out/model'}/" in done.stderr
    done = run_ldm_here(*command[3:], "--learning_rate", "1")
    assert done.returncode == 1 and "holds a fine-tuning with other settings" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gymnasium/CartPol-v1",), "did you mean gymnasium/CartPole-v1"),
        (
            ("gymnasium/Acrobot-v1", "--data", "DATA"),
            "has no data of gymnasium/Acrobot-v1",
        ),
        ((CARTPOLE, "--data", "nowhere"), "nowhere holds no datasets"),
        ((CARTPOLE, "--data", "DATA", "--rounds", 2, "--keep", 0.5), "--rounds, --keep are about own rollouts"),
        ((CARTPOLE, "--keep", 2), "above 0 and at most 1, got 2"),
        ((CARTPOLE, "--temperature", 0), "a temperature above 0, got 1 and 0"),
        (("gymnasium/Blackjack-v1", "--max_steps", "many"), "max_steps cannot be used"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line(base, data, tmp_path, arguments, message):
    arguments = [data if argument == "DATA" else argument for argument in arguments]
    done = run_ldm_here("finetune", base, *arguments, "--episodes", 2, "--output", "out", cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and message in errors[0], done.stderr
    assert not (tmp_path / "out").exists()


def test_environments_and_episodes_that_do_not_fit(base, data, tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"9999 episodes of gymnasium/CliffWalking-v1 were asked for, and its data have"
    ):
        finetune(FineTuning(base, CLIFF, 9999, str(data)), tmp_path / "a", TOY)
    config = Path(base) / "processor_config.json"
    text = config.read_text()
    try:
        config.write_text(json.dumps({**json.loads(text), "max_observation_slots": 3}))
        for source in (str(data), OwnRollouts()):
            with pytest.raises(UnsupportedSpaceError, match="takes 4 slots"):
                finetune(FineTuning(base, CARTPOLE, 2, source), tmp_path / "b", TOY)
    finally:
        config.write_text(text)
    with pytest.raises(UnknownEnvironmentError):
        finetune(FineTuning(base, "gymnasium/Nothing-v0", 2, OwnRollouts()), tmp_path / "c", TOY)
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
    with pytest.raises(ConfigError, match="all 2 episodes in gymnasium/CliffWalking-v1 returned"):
        monkeypatch.setattr(choosing_module, "recorded_episodes", lambda runs: [Episode(0, 0, 0, 1, 5.0)] * 2)
        finetune(FineTuning(base, CLIFF, 2, OwnRollouts()), tmp_path / "d", TOY)


def test_lora_without_peft_says_what_to_install(base, data, tmp_path, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version("nothing" if name == "peft" else name))
    with pytest.raises(MissingDependencyError, match=r"LoRA needs packages .* pip install 'peft"):
        finetune(FineTuning(base, CARTPOLE, 2, str(data)), tmp_path, {**TOY, "lora_rank": 2})
