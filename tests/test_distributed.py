"""Training on one process and several: the same losses, each other's checkpoints, a common end."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from gymnasium import spaces
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import CARTPOLE, PENDULUM, TOY_MODEL
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.rollout import evaluate_environment
from ldm_hf.evaluation.scores import normalized_score
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.log import TrainingLog
from ldm_hf.training.loop import train
from ldm_hf.training.memory import activation_bytes, loader_bytes, needs_recomputation
from ldm_hf.training.mixture import Mixture
from ldm_hf.training.parallel import distribute
from ldm_hf.training.scoring import score_model

LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
LONG = 600  # transitions of a context, more than chunks of CartPole have: sequences are of several lengths


def made_settings(folder: Path, data: Path, **changes) -> Path:
    model = {**TOY_MODEL, "max_position_embeddings": LONG}
    values = {
        "data": str(data),
        "output_dir": str(folder / "run"),
        "model_overrides": model,
        "max_steps": 4,
        "train_batch_size": 8,
    }
    # All of them by name: those whose references learned nothing would be left out.
    values["environments"] = [dataset.environment for dataset in open_datasets(data)]
    values |= {"learning_rate": 1e-2, "logging_steps": 1, "bf16": False, "save_total_limit": 9, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(values))
    return folder / "settings.yaml"


def command(settings: Path, processes: int = 1) -> list[str]:
    launch = LAUNCH if processes == 2 else []
    return [sys.executable, *launch, "-m", "ldm_hf", "train", "--config", str(settings)]


def trained_here(settings: Path) -> Path:
    """Run a training of one process to its end, in this one and on its CPU; gives its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)  # the device is chosen once in a process
        train(TrainingConfig.load(settings))
    AcceleratorState._reset_state(reset_partial_state=True)
    return settings.parent / "run"


def trained(settings: Path, processes: int = 1) -> Path:
    """Run a training to its end, in processes of its own; gives its folder."""
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command(settings, processes), env=variables, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return settings.parent / "run"


def logged(run: Path, tag: str = "loss") -> dict[int, float]:
    """A figure of each step, from every start of a run."""
    values: dict[int, float] = {}
    for path in (run / "ldm").glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        if tag in events.Tags()["scalars"]:
            values |= {event.step: event.value for event in events.Scalars(tag)}
    return dict(sorted(values.items()))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """A run of one process that takes each batch whole."""
    return trained_here(made_settings(tmp_path_factory.mktemp("alone"), data, save_steps=2))


def same_training(run: Path, expected: Path) -> None:
    assert logged(run) == pytest.approx(logged(expected), abs=1e-5)
    found, wanted = (load_file(folder / "model/model.safetensors") for folder in (run, expected))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-3, msg=name)


def test_the_first_loss_is_the_mean_over_all_transitions(alone, data, processor):
    """By hand: the sequences of step 1 one by one, each as long as it is."""
    torch.manual_seed(0)
    model = LDMModel(LDMConfig.preset("nano", **{**TOY_MODEL, "max_position_embeddings": LONG}))
    mixture = Mixture(open_datasets(data), processor, context_length=LONG)
    sequences = [mixture[number] for number in range(8)]
    lengths = {len(sequence) for sequence in sequences}
    assert LONG in lengths and len(lengths) > 1
    with torch.no_grad():
        losses = [float(model(**processor.collate([sequence])).loss) for sequence in sequences]
    total = sum(loss * len(sequence) for loss, sequence in zip(losses, sequences, strict=True))
    assert logged(alone)[1] == pytest.approx(total / sum(map(len, sequences)), abs=1e-5)


def test_pieces_of_a_batch_train_as_the_whole(alone, data, tmp_path):
    same_training(trained_here(made_settings(tmp_path, data, per_device_train_batch_size=2)), alone)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_train_as_one(alone, data, tmp_path, sharding):
    """In pieces, so that gradients are also gathered over them; and started again they continue bit for bit."""
    changes = {"sharding": sharding, "per_device_train_batch_size": 2}
    once = trained(made_settings(tmp_path / "once", data, **changes), processes=2)
    same_training(once, alone)
    assert logged(once, "gradient_norm") == pytest.approx(logged(alone, "gradient_norm"), rel=1e-3)
    twice = tmp_path / "twice"
    trained(made_settings(twice, data, max_steps=2, **changes), processes=2)
    trained(made_settings(twice, data, max_steps=4, **changes), processes=2)
    for name in ("model", "optimizer", "random"):
        first, second = (load_file(run / f"checkpoint-00000004/{name}.safetensors") for run in (once, twice / "run"))
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert {key.split(".")[0] for key in first} == {"0", "1"}  # the random state of both processes


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has Muon")
@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.long), "fsdp2"])
def test_muon_on_two_processes_trains_as_on_one(data, tmp_path, sharding):
    """As far as matrices that Muon makes orthogonal in bfloat16 can be alike; and in two parts bit for bit."""
    changes = {"optim": "muon", "learning_rate": 1e-3}
    alone = trained_here(made_settings(tmp_path / "alone", data, **changes))
    changes |= {"sharding": sharding}
    once = trained(made_settings(tmp_path / "once", data, **changes), processes=2)
    assert logged(once) == pytest.approx(logged(alone), abs=1e-3)
    twice = tmp_path / "twice"
    trained(made_settings(twice, data, max_steps=2, **changes), processes=2)
    trained(made_settings(twice, data, max_steps=4, **changes), processes=2)
    for name in ("model", "optimizer"):
        first, second, expected = (
            load_file(run / f"checkpoint-00000004/{name}.safetensors") for run in (once, twice / "run", alone)
        )
        assert set(first) == set(second) == set(expected)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(key.endswith("q_proj.weight.momentum_buffer") for key in first)


@pytest.mark.slow
def test_checkpoints_go_from_shards_to_one_process_and_back(alone, data, tmp_path):
    """Steps 1 and 2 on one, 3 on two processes with shards, 4 on one again: as if one had done all."""
    (tmp_path / "run").mkdir()
    shutil.copytree(alone / "checkpoint-00000002", tmp_path / "run/checkpoint-00000002")
    shutil.copytree(alone / "ldm", tmp_path / "run/ldm")
    run = trained(made_settings(tmp_path, data, max_steps=3, sharding="fsdp2"), processes=2)
    assert (run / "checkpoint-00000003").is_dir()
    same_training(trained(made_settings(tmp_path, data, sharding="fsdp2")), alone)
    whole, shared = (load_file(path / "checkpoint-00000004/optimizer.safetensors") for path in (alone, run))
    assert set(whole) == set(shared)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.long), "fsdp2"])
def test_two_processes_choose_the_same_weights_by_validation(data, tmp_path, sharding):
    """Of a training that soon gets worse: one and two processes measure alike, stop together and keep the same step."""
    changes = {"validation_data": str(data), "validation_steps": 1, "early_stopping_patience": 2}
    changes |= {"max_steps": 8, "learning_rate": 0.04}
    expected = trained_here(made_settings(tmp_path / "alone", data, **changes))
    run = trained(made_settings(tmp_path / "both", data, sharding=sharding, **changes), processes=2)
    losses, wanted = logged(run, "validation/loss"), logged(expected, "validation/loss")
    assert losses == pytest.approx(wanted, rel=1e-2) and len(losses) < 9
    assert 0 < min(wanted, key=lambda step: wanted[step]) < max(wanted)
    assert [path.name for path in (run / "best").iterdir()] == [path.name for path in (expected / "best").iterdir()]
    found, own = (load_file(folder / "model/model.safetensors") for folder in (run, expected))
    # A step of AdamW moves weights by 0.04, however small a gradient is whose sums were in another order.
    for name in own:
        torch.testing.assert_close(found[name], own[name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.long), "fsdp2"])
def test_adapters_train_alike_on_two_processes(data, tmp_path, sharding):
    """Two steps on one process, two more shared out: as if one had done all."""
    expected = trained(made_settings(tmp_path / "alone", data, lora_rank=4, save_steps=2))
    (tmp_path / "both/run").mkdir(parents=True)
    shutil.copytree(expected / "checkpoint-00000002", tmp_path / "both/run/checkpoint-00000002")
    run = trained(made_settings(tmp_path / "both", data, lora_rank=4, sharding=sharding), processes=2)
    found, wanted = (load_file(folder / "model/model.safetensors") for folder in (run, expected))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_compiled_layers_train_the_same(alone, data, tmp_path, processes):
    changes = {"torch_compile": True, "gradient_checkpointing": processes == 2, "sharding": "fsdp2"}
    run = trained(made_settings(tmp_path, data, max_steps=4, **changes), processes)
    same_training(run, alone)


def test_gradient_checkpointing_changes_no_gradient(data, processor):
    mixture = Mixture(open_datasets(data), processor, context_length=16)
    batch = processor.collate([mixture[number] for number in range(4)])
    gradients, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = LDMModel(LDMConfig.preset("nano", **TOY_MODEL))
        model = distribute(Accelerator(cpu=True), model, TrainingConfig("d", "o", gradient_checkpointing=checkpointing))
        model.backbone.layers[0].mlp.register_forward_pre_hook(lambda *_, kind=checkpointing: calls.append(kind))
        model.train()
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert calls == [False, True, True]  # it is computed again for the backward pass
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("bf16", [True, False])
def test_the_estimate_of_activations_is_what_a_layer_keeps(bf16):
    config = LDMConfig.preset("32m", num_hidden_layers=2, max_position_embeddings=32)
    backbone = LDMModel(config).backbone.train()
    tokens = torch.randn(2, 32, config.hidden_size, requires_grad=True)

    def kept(layers: int) -> int:
        backbone.config.num_hidden_layers = layers
        saved: list[torch.Tensor] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: (saved.append(tensor), tensor)[1], lambda tensor: tensor
            ),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            backbone(inputs_embeds=tokens)
        weights = {parameter.data_ptr() for parameter in backbone.parameters()}
        memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
        return sum(size for place, size in memory.items() if place not in weights)

    copies = sum(2 * weight.numel() for weight in backbone.layers[0].parameters() if weight.ndim > 1) if bf16 else 0
    assert activation_bytes(config, 64, bf16) / 2 == pytest.approx(kept(2) - kept(1) - copies, rel=0.15)


@pytest.mark.parametrize(
    ("free", "settings", "wanted"),
    [
        # 10 layers of 8 x 2048 + 32 x 256 = 24,576 bytes for each of 8 x 1024 transitions: 2.0 GB, and 0.5 GB of parameters.
        (2.0e9, {}, True),
        (4.0e9, {}, False),
        (2.0e9, {"per_device_train_batch_size": 1}, False),
        (2.0e9, {"gradient_checkpointing": False}, False),
        (4.0e9, {"gradient_checkpointing": True}, True),
    ],
)
def test_activations_are_recomputed_where_they_would_not_fit(monkeypatch, free, settings, wanted):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 2**40))
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=1, mixed_precision="bf16")
    with torch.device("meta"):
        model = LDMModel(LDMConfig.preset("32m"))
    config = TrainingConfig("d", "o", train_batch_size=8, context_length=1024, **settings)
    assert needs_recomputation(accelerator, model, config) is wanted


def test_shared_memory_of_loaders_is_known_before_it_runs_out(data, tmp_path, monkeypatch, processor):
    camera = processor.observation_layout(spaces.Box(0, 255, (64, 64, 3), np.uint8))
    numbers, move = processor.observation_layout(spaces.Box(-1, 1, (5,))), processor.action_layout(spaces.Discrete(4))
    # Three batches of 2 x 10 transitions: 5 numbers, an action, its label, a reward, 8 bytes of the done signal.
    assert loader_bytes([(numbers, move)], 2, 10) == 3 * 20 * (4 * 8 + 8)
    side = processor.image_size
    assert loader_bytes([(numbers, move), (camera, move)], 2, 10) == 3 * 20 * (4 * 3 + 8 + 3 * side**2)
    settings = TrainingConfig.load(made_settings(tmp_path, data, dataloader_num_workers=2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**16))
    with pytest.raises(ConfigError, match=r"shared memory .* dataloader_num_workers"):
        train(settings)


PRECISION = """
import torch
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.parallel import distribute, make_accelerator

config = TrainingConfig("d", {output!r}, bf16=True, sharding="fsdp2", report_to="none")
accelerator = make_accelerator(config)
torch.manual_seed(0)
model = distribute(accelerator, LDMModel(LDMConfig.preset("nano", **{model!r})), config)
assert {{parameter.dtype for parameter in model.parameters()}} == {{torch.float32}}
seen = {{}}
layer = model.backbone.layers[0]
layer.register_forward_pre_hook(lambda _, inputs: seen.update(layer=inputs[0].dtype, weight=layer.mlp.up_proj.weight.dtype))
model.embedding.register_forward_pre_hook(lambda _, inputs: seen.update(observations=inputs[0].dtype))
space = {{"type": "Discrete", "n": 1000, "start": 0}}, {{"type": "Discrete", "n": 3, "start": 0}}
hidden = [
    model(**LDMProcessor.for_config(model.config)([symbol], [0], [0.0], [False], [False], *space, [1])).last_hidden_state
    for symbol in (256, 257)
]
assert seen == dict(layer=torch.bfloat16, weight=torch.bfloat16, observations=torch.float32), seen
assert hidden[0].dtype == torch.bfloat16 and not torch.equal(*hidden)
"""


@pytest.mark.slow
def test_shards_in_bf16_read_observations_in_full(tmp_path):
    """256 and 257 are the same number in bf16: cast before they are looked up, both would be one symbol."""
    (tmp_path / "program.py").write_text(PRECISION.format(output=str(tmp_path), model=TOY_MODEL))
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    program = [sys.executable, *LAUNCH, str(tmp_path / "program.py")]
    done = subprocess.run(program, env=variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def test_evaluation_logs_scores_and_changes_nothing(data, tmp_path):
    short = {"model_overrides": TOY_MODEL, "max_steps": 2, "save_steps": 1, "train_batch_size": 4}
    plain = trained_here(made_settings(tmp_path / "plain", data, **short))
    changes = {**short, "eval_steps": 1, "eval_environments": [CARTPOLE, PENDULUM], "eval_episodes": 1}
    run = trained_here(made_settings(tmp_path / "scored", data, **changes))
    for step in (1, 2):
        for name in ("model", "optimizer", "random"):
            found, expected = (load_file(r / f"checkpoint-0000000{step}/{name}.safetensors") for r in (run, plain))
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    for step in (1, 2):
        folder = run / f"checkpoint-0000000{step}"
        model, scores = LDMModel.from_pretrained(folder), {}
        for dataset in open_datasets(data, [CARTPOLE, PENDULUM]):
            processor = LDMProcessor.from_pretrained(folder)
            result = evaluate_environment(model, processor, dataset.environment, episodes=1, rollouts=1)
            scores[dataset.environment] = normalized_score(
                result.mean_return, dataset.info.first10, dataset.info.last10
            )
        scored = {name: score for name, score in scores.items() if score is not None}
        assert CARTPOLE in scored
        for name, score in scores.items():
            assert logged(run, f"score/{name}").get(step) == (None if score is None else pytest.approx(score, rel=1e-5))
        assert logged(run, "score/mean")[step] == pytest.approx(sum(scored.values()) / len(scored), rel=1e-5)


def test_a_broken_environment_is_a_warning(data, model, processor):
    (cartpole,) = open_datasets(data, [CARTPOLE])
    broken = SimpleNamespace(info=dataclasses.replace(cartpole.info, environment="gymnasium/Nothing-v0"))
    scores, (line,) = score_model(Accelerator(cpu=True), model, processor, [broken, cartpole], 1)
    assert set(scores) == {f"score/{CARTPOLE}", "score/mean"}
    assert line.startswith("warning: gymnasium/Nothing-v0 has no score: ")


def test_speed_and_waiting_by_hand(monkeypatch):
    """4 steps of 100 transitions in 20 s, of which 2 s are waited; 30 s of checkpoints count for nothing."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("ldm_hf.training.log.time", clock)
    accelerator, logged_ = Accelerator(cpu=True), []
    monkeypatch.setattr(accelerator, "log", lambda values, step: logged_.append((step, values)))
    log = TrainingLog(accelerator, TrainingConfig("d", "o", max_steps=8, logging_steps=4), 0)
    for done in range(1, 9):
        with log.waiting():
            clock.now += 0.5
        log.add_loss(torch.tensor(float(done)))
        log.add_loss(torch.tensor(1.0))  # the second piece of the step
        clock.now += 4.5
        log.step(done, 1e-3, torch.tensor(7.0), 100)
        with log.paused():
            clock.now += 30
    log.close()
    (first, values), (second, _) = logged_
    assert (first, second) == (4, 8)
    expected = {"loss": 3.5, "transitions_per_second": 20, "wait_fraction": 0.1, "gradient_norm": 7}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert logged_[1][1]["wait_fraction"] == pytest.approx(0.1)
    assert "10% waiting for data" in log._bar.postfix


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number"),
    [(1, signal.SIGTERM), (2, signal.SIGTERM), pytest.param(2, signal.SIGKILL, marks=pytest.mark.long)],
    ids=str,
)
def test_a_job_that_is_told_to_end_continues(data, tmp_path, processes, number):
    """Every process of the job gets the signal, as Slurm sends it: launcher, training and loader workers."""
    changes = {"sharding": "fsdp2", "dataloader_num_workers": 1, "model_overrides": TOY_MODEL, "learning_rate": 1e-3}
    settings = made_settings(tmp_path, data, **changes, max_steps=100_000, save_steps=3)
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with (tmp_path / "stderr").open("wb") as stderr:
        running = subprocess.Popen(command(settings, processes), env=variables, stderr=stderr)
        while not (tmp_path / "run/checkpoint-00000003").exists():
            assert running.poll() is None and time.sleep(0.01) is None
        job = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
        try:
            for process in job:
                process.send_signal(number)
            status = running.wait(timeout=120)
            assert not psutil.wait_procs(job, timeout=120)[1]
        finally:
            for process in job:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    last = int(max((tmp_path / "run").glob("checkpoint-*[0-9]")).name.removeprefix("checkpoint-"))
    if number == signal.SIGTERM:
        assert f"SIGTERM: stopped after step {last}, whose checkpoint is written" in (tmp_path / "stderr").read_text()
        assert status == (143 if processes == 1 else 1)  # the launcher has a status of its own
    run = trained(made_settings(tmp_path, data, **changes, max_steps=last + 2), processes)
    once = trained(made_settings(tmp_path / "once", data, **changes, max_steps=last + 2))
    assert list(logged(run)) == list(range(1, last + 3))
    assert logged(run) == pytest.approx(logged(once), abs=1e-4)
