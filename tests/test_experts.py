"""Experts: what they compute, what each stage trains, how environments are grouped, and all stages by the command line."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor

from conftest import CARTPOLE, CLIFF, NUM_EXPERTS, PENDULUM, TOY_MODEL, run_ldm
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.executors.base import JobResult
from ldm_hf.experiments.m3dt.config import ExpertsConfig
from ldm_hf.experiments.m3dt.experts import train_experts
from ldm_hf.experiments.m3dt.grouping import agreement_points, even_clusters, gradient_groups, random_groups
from ldm_hf.experiments.m3dt.stages import attach_experts, is_expert, is_router, load_stage, put_expert
from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy
from ldm_hf.modeling.experts_ldm import LDMExperts, recorded_routing
from ldm_hf.modeling.packing_ldm import group_rows, pack_rows
from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.modeling.steps_ldm import PackedLinear
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.loop import train
from sequences import CAMERA, CONTROL, GRID, tokens, without_labels
from test_distributed import LAUNCH
from test_policy import MIXED, largest_error
from test_training import toy_settings, write_settings

MODULE = "ldm_hf.experiments.m3dt"


@pytest.fixture
def batch(processor):
    return processor.collate([tokens(processor, place, 6, seed) for seed, place in enumerate((CONTROL, GRID, CAMERA))])


@torch.no_grad()
def test_attached_experts_change_nothing(model, processor, batch, tmp_path):
    expected = model(**without_labels(batch)).logits
    torch.testing.assert_close(
        attach_experts(model, NUM_EXPERTS)(**without_labels(batch)).logits, expected, atol=1e-6, rtol=0
    )
    # As transformers attaches what a checkpoint lacks.
    model.save_pretrained(tmp_path)
    loaded = LDMModel.from_pretrained(tmp_path, num_experts=NUM_EXPERTS)
    torch.testing.assert_close(loaded(**without_labels(batch)).logits, expected, atol=1e-6, rtol=0)
    assert all(experts.gate_proj.weight.std() > 0 for experts in experts_of(loaded))


def experts_of(model) -> list[LDMExperts]:
    return [module for module in model.modules() if isinstance(module, LDMExperts)]


def test_a_new_model_may_have_experts(batch):
    torch.manual_seed(0)
    made = LDMModel(LDMConfig.preset("nano", **TOY_MODEL, num_experts=2))
    made(**batch).loss.backward()
    for experts in experts_of(made):
        assert not experts.down_proj.weight.any() and experts.down_proj.weight.grad.any()


@pytest.mark.parametrize(("experts", "presets"), [(1, "nano"), (4, "nano"), (8, "32m")])
def test_parameters_by_formula(experts, presets):
    with torch.device("meta"):
        dense, mixed = (LDMModel(LDMConfig.preset(presets, num_experts=number)) for number in (0, experts))
    shape = dense.config
    wide = experts * 3 * shape.hidden_size * shape.intermediate_size
    router = shape.hidden_size * (shape.hidden_size + 1) + experts * (shape.hidden_size + 1)
    assert mixed.num_parameters() == dense.num_parameters() + shape.num_hidden_layers * (wide + router)


@torch.no_grad()
def test_weights_are_positive_and_add_up_to_one(mixture_model):
    inputs = torch.randn(2, 5, TOY_MODEL["hidden_size"])
    for experts in experts_of(mixture_model):
        weights = experts.router(inputs).softmax(-1)
        assert weights.shape == (2, 5, NUM_EXPERTS) and (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
        assert weights.std() > 0.01  # they differ from token to token
    (single, *_) = experts_of(attach_experts(LDMModel(LDMConfig.preset("nano", **TOY_MODEL)), 1))
    assert torch.equal(single.router(inputs).softmax(-1), torch.ones(2, 5, 1))  # an expert alone is not gated


@torch.no_grad()
def test_a_block_adds_the_weighted_experts_to_its_feed_forward_layer(mixture_model):
    """x + FFN(ln(x)) + the sum of w_i E_i(ln(x)), expert by expert."""
    layer = mixture_model.backbone.layers[0]
    inputs, width = torch.randn(2, 5, TOY_MODEL["hidden_size"]), TOY_MODEL["intermediate_size"]
    expected = torch.nn.functional.silu(layer.mlp.gate_proj(inputs)) * layer.mlp.up_proj(inputs)
    expected = layer.mlp.down_proj(expected)
    weights = layer.mlp.experts.router(inputs).softmax(-1)
    for index in range(NUM_EXPERTS):
        own = slice(index * width, (index + 1) * width)
        gate, up = (getattr(layer.mlp.experts, name).weight[own] for name in ("gate_proj", "up_proj"))
        inner = torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)
        expected = expected + weights[..., index, None] * (inner @ layer.mlp.experts.down_proj.weight[:, own].T)
    torch.testing.assert_close(layer.mlp(inputs), expected, atol=1e-5, rtol=1e-5)


def test_deep_routers_let_as_much_through_as_shallow_ones(model):
    """Four layers of weights of 0.02 would give all tokens the same logits, up to 1e-6; parameters by formula."""
    deep = attach_experts(model, NUM_EXPERTS, router_hidden_layers=4, router_hidden_size=32)
    width, router = TOY_MODEL["hidden_size"], experts_of(deep)[0].router
    expected = (width + 1) * 32 + 3 * 33 * 32 + 33 * NUM_EXPERTS
    assert sum(parameter.numel() for parameter in router.parameters()) == expected
    logits = router(torch.randn(64, 5, width, generator=torch.Generator().manual_seed(0)))
    assert logits.std(0).mean() > 1e-3  # 0.003 to 0.006 over thirty seeds
    assert all(0 < layer.weight.abs().max() <= layer.in_features**-0.5 for layer in (router.hidden, *router.deeper))


@torch.no_grad()
def test_routers_are_told_which_expert_a_row_is_meant_for(mixture_model, processor):
    """The mean over labelled transitions and layers of -log of the weight; rows of no expert count for actions only."""
    places = ((CONTROL, 6), (GRID, 3), (CAMERA, 3))
    batch = processor.collate([tokens(processor, place, steps, seed) for seed, (place, steps) in enumerate(places)])
    plain = mixture_model(**batch).loss
    with recorded_routing(mixture_model) as recorded:
        mixture_model(**batch)
    assert len(recorded) == mixture_model.config.num_hidden_layers
    weights = [logits.softmax(-1) for logits in recorded]
    wanted = sum(-(w[0, :6, 2].log().sum() + w[2, :3, 1].log().sum()) for w in weights) / len(weights) / 12
    labels = {"expert_labels": torch.tensor([2, -100, 1])}
    told = copy.deepcopy(mixture_model)
    assert told(**batch, **labels).loss == plain
    told.config.router_aux_loss_coef = 0.5
    torch.testing.assert_close(told(**batch, **labels).loss, plain + 0.5 * wanted)
    packing = pack_rows([6, 3, 3], group_rows(batch["observation_kinds"], batch["action_kinds"]))
    assert packing is not None
    torch.testing.assert_close(told(**batch, **labels, packing=packing).loss, plain + 0.5 * wanted)
    assert told(**without_labels(batch), **labels).loss is None


def test_settings_that_mean_nothing_are_refused():
    for changes, message in (
        ({"num_experts": -1}, "at least 0"),
        ({"num_experts": 2, "mlp_bias": True}, "mlp_bias"),
        ({"router_hidden_size": 0}, "router_hidden_size must be at least 1, got 0"),
    ):
        with pytest.raises(Exception, match=message):
            LDMConfig(**changes)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)], ids=["as it is", "compiled"])
def test_rollouts_with_experts_equal_recomputation(mixture_model, processor, compiled, monkeypatch):
    monkeypatch.setattr("ldm_hf.modeling.steps_ldm._LARGE", 32 * 64)
    policy = LDMPolicy(mixture_model, processor, MIXED, context_length=7, compile=compiled)
    packed = [module for module in policy.model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) in (0, 6 * mixture_model.config.num_hidden_layers)  # of the layer and of its experts; on x86
    assert largest_error(mixture_model, policy, MIXED, 16) < 1e-4


def step_on(model, batches, chosen) -> None:
    """Steps of gradient descent on some parameters."""
    parameters = [parameter for name, parameter in model.named_parameters() if chosen(name)]
    for batch in batches:
        gradients = torch.autograd.grad(model(**batch).loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=0.1)


def test_experts_trained_apart_and_merged_are_experts_trained_in_turn(model, processor):
    """In turn: in the whole model, with all the weight on the one that is trained."""
    torch.manual_seed(2)
    data = [[processor.collate([tokens(processor, place, 6, seed)]) for seed in range(3)] for place in (CONTROL, GRID)]
    apart = [attach_experts(model, 1) for _ in data]
    merged, in_turn = attach_experts(model, 2), attach_experts(model, 2)
    for index, expert in enumerate(apart):
        put_expert(in_turn, index, expert)  # they start from the same weights
    for index, batches in enumerate(data):
        step_on(apart[index], batches, is_expert)
        put_expert(merged, index, apart[index])
        for experts in experts_of(in_turn):
            output = experts.router.output
            torch.nn.init.zeros_(output.weight)
            output.bias.data = torch.where(torch.arange(2) == index, 0.0, -torch.inf)
        step_on(in_turn, batches, is_expert)
    for name, parameter in in_turn.named_parameters():
        if not is_router(name):
            torch.testing.assert_close(merged.state_dict()[name], parameter, atol=1e-5, rtol=1e-4, msg=name)
    down = experts_of(merged)[0].down_proj.weight
    assert down[:, :64].abs().max() > 1e-3 and down[:, 64:].abs().max() > 1e-3


def test_experts_of_another_backbone_are_refused(model):
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.action_head.weight)
    with pytest.raises(CheckpointError, match=r"expert 1 was trained beside another backbone: their action_head"):
        put_expert(attach_experts(model, 2), 1, attach_experts(other, 1))


class InTurn:
    """An executor that runs a job in this process when it gets it."""

    def __init__(self, _jobs: int = 1):
        self.ended = []

    def has_room(self, job) -> bool:
        return True

    def submit(self, job) -> None:
        job.execute(lambda stage, done, total: None)
        self.ended.append(JobResult(job))

    def wait(self, seconds: float) -> list[JobResult]:
        ended, self.ended = self.ended, []
        return ended

    def messages(self) -> list:
        return []

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def staged(data, tmp_path_factory) -> Path:
    """The three stages, in this process, the experts in turn."""
    root = tmp_path_factory.mktemp("staged")
    base = TrainingConfig(**toy_settings(data, root / "backbone", weight_decay=0.1, learning_rate=1e-2, seed=3))
    train(base)
    train_experts(stage_of(base, root, "experts", "backbone", num_experts=2, gradient_batches=2), InTurn)
    train(stage_of(base, root, "routers", "experts"), load=load_stage)
    return root


def stage_of(base: TrainingConfig, root: Path, stage: str, before: str, **changes) -> ExpertsConfig:
    places = {"model": str(root / before / "model"), "output_dir": str(root / stage)}
    return ExpertsConfig(**{**base.as_mapping(), "stage": stage, **places, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(first: Path, second: Path) -> set[str]:
    """The parameters of both that are not the same, bit for bit."""
    one, other = weights(first), weights(second)
    return {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}


def test_every_stage_trains_what_it_should_and_leaves_the_rest(staged):
    backbone, experts, routers = (staged / stage / "model" for stage in ("backbone", "experts", "routers"))
    for index in range(2):
        run = staged / "experts" / f"expert-{index}"
        assert not differing(backbone, run / "model")
        early, late = run / "checkpoint-00000004", run / "checkpoint-00000006"
        assert differing(early, late) == {name for name in weights(late) if is_expert(name)}
        moments = load_file(late / "optimizer.safetensors")
        assert all(is_expert(name.rpartition(".")[0]) for name in moments)
    assert not differing(backbone, experts)
    assert differing(experts, routers) == {name for name in weights(routers) if is_router(name)}


def test_the_merged_model_has_every_expert_and_says_of_what(staged):
    merged = weights(staged / "experts/model")
    for index in range(2):
        for name, tensor in weights(staged / f"experts/expert-{index}/model").items():
            if is_expert(name):
                parts = merged[name].chunk(2, dim=1 if "down_proj" in name else 0)
                assert torch.equal(parts[index], tensor), name
    config = AutoConfig.from_pretrained(staged / "routers/model")
    groups = config.expert_environments
    assert config.num_experts == 2 and config.environments == [CARTPOLE, CLIFF, PENDULUM]
    assert sorted(itertools.chain(*groups)) == config.environments and sorted(map(len, groups)) == [1, 2]
    model = AutoModel.from_pretrained(staged / "routers/model")
    assert isinstance(model, LDMModel) and AutoProcessor.from_pretrained(staged / "routers/model")


@torch.no_grad()
def test_routers_that_are_told_choose_the_expert_of_the_environment(staged, data, tmp_path):
    """After 60 steps the weight of its own expert is above two thirds in every environment, and without being told not."""
    base = TrainingConfig(
        **toy_settings(data, tmp_path / "none", max_steps=60, learning_rate=1e-2, seed=3, save_steps=60)
    )
    least = {}
    for told in (1.0, 0.0):
        stage = stage_of(base, staged, "routers", "experts", router_aux_loss_coef=told)
        with torch.enable_grad():
            train(replace(stage, output_dir=str(tmp_path / str(told))), load=load_stage)
        found = AutoModel.from_pretrained(tmp_path / str(told) / "model").eval()
        processor = AutoProcessor.from_pretrained(tmp_path / str(told) / "model")
        datasets = open_datasets(str(data))
        shares = []
        for dataset in datasets:
            layouts = (
                processor.observation_layout(dataset.observation_space),
                processor.action_layout(dataset.action_space),
            )
            sequence = processor.align(dataset.chunk(0), *layouts)
            [own] = [
                index for index, group in enumerate(found.config.expert_environments) if dataset.environment in group
            ]
            with recorded_routing(found) as recorded:
                found(**without_labels(processor.collate([sequence])))
            shares.append(torch.stack(recorded).softmax(-1)[..., own].mean().item())
        least[told] = min(shares)
    assert least[1.0] > 2 / 3 > least[0.0]


def test_a_finished_stage_repeats_nothing(staged, data):
    before = {path: path.stat().st_mtime_ns for path in (staged / "experts").rglob("*.safetensors")}
    base = TrainingConfig(**toy_settings(data, staged / "backbone", weight_decay=0.1, learning_rate=1e-2, seed=3))
    again = stage_of(base, staged, "experts", "backbone", num_experts=2, gradient_batches=2)

    def none(jobs: int):
        raise AssertionError(f"{jobs} jobs are left")

    assert train_experts(again, none) == staged / "experts/model"
    assert {path: path.stat().st_mtime_ns for path in (staged / "experts").rglob("*.safetensors")} == before
    for changes, message in (
        ({"grouping": "random"}, "experts of another grouping; set another output"),
        ({"num_experts": 4}, "from 2 to 3, the number of environments, got 4"),
        ({"num_experts": None}, "got None"),
        ({"model": str(staged / "routers/model")}, "has experts already"),
        ({"model": "nano"}, "set model to its folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_experts(replace(again, **changes), none)


def test_stages_want_their_models(staged):
    config = ExpertsConfig("d", str(staged / "new"), stage="routers", model=str(staged / "backbone/model"))
    with pytest.raises(ConfigError, match="routers comes after stage experts"):
        load_stage(config)
    with pytest.raises(ConfigError, match="would replace"):
        replace(config, output_dir=str(staged / "backbone"))
    with pytest.raises(ConfigError, match="stage cannot be used: input should be 'experts' or 'routers', got 'all'"):
        ExpertsConfig("d", "o", stage="all")
    with pytest.raises(ConfigError, match="set torch_compile or it to off"):
        replace(config, torch_compile=True)
    assert replace(config, torch_compile=True, router_aux_loss_coef=0.0).torch_compile


def test_settings_of_older_versions_have_the_stage_among_them():
    older = {"data": "d", "output_dir": "o", "stage": "backbone", "num_experts": None, "gradient_batches": 10}
    assert TrainingConfig.from_mapping(older) == TrainingConfig("d", "o")
    with pytest.raises(ConfigError, match="sets 'stage', which is not a setting"):
        TrainingConfig.from_mapping({**older, "stage": "experts"})


def test_random_groups_are_even_and_by_seed():
    names = [f"test/{index}" for index in range(7)]
    groups = random_groups(names, 3, 0)
    assert sorted(map(len, groups)) == [2, 2, 3] and sorted(itertools.chain(*groups)) == names
    assert random_groups(names, 3, 0) == groups != random_groups(names, 3, 1)


def test_points_have_the_distances_of_gradients_times_their_mean(tmp_path):
    generator = torch.Generator().manual_seed(0)
    gradients = [{name: torch.randn(3, 5, generator=generator) for name in ("a", "b")} for _ in range(4)]
    del gradients[2]["b"]  # an environment whose gradient has nothing there: zeros
    for index, gradient in enumerate(gradients):
        save_file(gradient, tmp_path / f"{index}.safetensors")
    zeros = torch.zeros(3, 5)
    flat = torch.stack([torch.cat([each["a"], each.get("b", zeros)]).flatten() for each in gradients])
    agreement = flat * flat.mean(0)
    points = torch.from_numpy(agreement_points([tmp_path / f"{index}.safetensors" for index in range(4)]))
    torch.testing.assert_close(torch.cdist(points, points).float(), torch.cdist(agreement, agreement))


def test_of_many_splits_the_most_even_and_then_the_tightest_is_kept(monkeypatch):
    splits = itertools.cycle([(1.0, [0, 1, 1, 1]), (3.0, [0, 1, 1, 0]), None, (2.0, [0, 0, 1, 1])])
    monkeypatch.setattr("ldm_hf.experiments.m3dt.grouping._cluster", lambda *_: next(splits))
    assert even_clusters(np.zeros((4, 2)), 2, 0) == [0, 0, 1, 1]


def test_gradients_that_are_all_the_same_are_no_groups():
    with pytest.raises(ConfigError, match="4 environments do not fall into 2 groups"):
        even_clusters(np.zeros((4, 2)), 2, 0)


def test_directions_find_groups_that_lengths_hide(tmp_path, monkeypatch):
    """A long gradient is a group of its own for K-means; of one length, it belongs to those of its direction."""
    gradients = iter(
        [[1.0, 0.0, 1.0], [1.0, 0.1, 1.0], [90.0, 5.0, 95.0], [0.0, 1.0, 0.9], [0.1, 1.0, 1.1], [0.0, 0.9, 1.0]]
    )
    monkeypatch.setattr(
        "ldm_hf.experiments.m3dt.grouping.environment_gradient", lambda *_: {"weight": torch.tensor(next(gradients))}
    )
    datasets = [OneAction(f"test/{index}", 0, index) for index in range(6)]
    config = ExpertsConfig("d", "o", num_experts=2)
    groups = {}
    for grouping in ("gradient", "direction"):  # the second from the files of the first
        found = gradient_groups(nn.Linear(1, 1), None, datasets, replace(config, grouping=grouping), tmp_path)
        groups[grouping] = sorted([int(name[-1]) for name in group] for group in found)
    assert groups == {"gradient": [[0, 1, 3, 4, 5], [2]], "direction": [[0, 1, 2], [3, 4, 5]]}


class OneAction:
    """An environment in which the reference always does the same, whatever it sees."""

    observation_space = {"type": "Discrete", "n": 8, "start": 0}
    action_space = {"type": "Discrete", "n": 4, "start": 0}
    chunk_lengths, num_chunks, num_transitions = np.array([64]), 1, 64

    def __init__(self, name: str, action: int, seed: int):
        self.environment, self._action, self._seed = name, action, seed

    def file(self, index: int) -> str:
        return self.environment

    def rows(self, index: int) -> range:
        return range(64)

    def chunk(self, index: int) -> Transitions:
        generator = np.random.default_rng(self._seed)
        observations = generator.integers(0, 8, (64, 1)).astype(np.float32)
        actions = generator.integers(0, 4, (64, 1)).astype(np.float32)
        nothing = np.zeros(64, bool)
        reference = np.full((64, 1), self._action, np.float32)
        return Transitions(observations, None, actions, np.zeros(64, np.float32), nothing, nothing, reference)


@pytest.mark.parametrize("grouping", ["gradient", "direction"])
def test_gradients_find_two_planted_groups(processor, tmp_path, monkeypatch, grouping):
    monkeypatch.setattr("ldm_hf.experiments.m3dt.grouping._RESTARTS", 2)  # seven points need no more
    torch.manual_seed(0)
    model = LDMModel(LDMConfig.preset("nano", **TOY_MODEL))
    planted = [0, 3, 3, 0, 3, 0, 0]  # four and three
    datasets = [OneAction(f"test/{index}", action, index) for index, action in enumerate(planted)]
    config = ExpertsConfig("d", "o", num_experts=2, gradient_batches=2, train_batch_size=4, grouping=grouping)
    groups = gradient_groups(model, processor, datasets, config, tmp_path)
    by_action = [[f"test/{index}" for index, action in enumerate(planted) if action == wanted] for wanted in (0, 3)]
    assert sorted(groups) == sorted(by_action)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_three_stages_by_the_command_line_killed_between_and_inside(staged, data, tmp_path):
    """Bit for bit what came of training in turn, without interruption, in one process."""
    shared = toy_settings(data, tmp_path, weight_decay=0.1, learning_rate=1e-2, seed=3, save_total_limit=999)
    base = write_settings(tmp_path / "b.yaml", shared)
    config = write_settings(tmp_path / "s.yaml", {**shared, "num_experts": 2, "gradient_batches": 2})

    def command(stage: str, before: str | None, *settings: str) -> list[str]:
        places = ["--output_dir", f"{tmp_path / stage}", *(["--model", f"{tmp_path / before}/model"] if before else [])]
        if stage == "backbone":
            return ["ldm_hf", "train", "--config", str(base), *places, *settings]
        return [MODULE, "--config", str(config), "--stage", stage, "--jobs", "2", *places, *settings]

    for stage, before, runs in (
        ("backbone", None, ["."]),
        ("experts", "backbone", ["expert-0", "expert-1"]),
        ("routers", "experts", ["."]),
    ):
        # Killed after the second step of every run of the stage, whatever was written later is taken away.
        folders = [tmp_path / stage / run for run in runs]
        killed_when(command(stage, before, "--max_steps", "100000"), [each / "checkpoint-00000002" for each in folders])
        for path in itertools.chain(*(folder.glob("checkpoint-*") for folder in folders)):
            if path.name != "checkpoint-00000002":
                subprocess.run(["rm", "-r", str(path)], check=True)
        module, *arguments = command(stage, before)
        done = run_ldm(*arguments, module=module)
        assert done.returncode == 0, done.stderr
        assert not differing(tmp_path / stage / "model", staged / stage / "model")
    assert not list((tmp_path / "experts").glob("gradients-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor", [("local",), pytest.param(("ray", "--address", "local"), marks=pytest.mark.long)], ids=["local", "ray"]
)
def test_sigterm_leaves_a_checkpoint_of_every_expert(staged, data, tmp_path, executor):
    if executor[0] == "ray":
        pytest.importorskip("ray")
    changes = {"model": str(staged / "backbone/model"), "num_experts": 2, "grouping": "random"}
    changes |= {"max_steps": 100_000, "save_steps": 100_000}
    config = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", **changes))
    started = [tmp_path / f"run/expert-{index}/training.yaml" for index in range(2)]
    command = [MODULE, "--config", str(config), "--stage", "experts", "--jobs", "2", "--executor", *executor]
    with (tmp_path / "stderr").open("w") as errors:
        with subprocess.Popen([sys.executable, "-m", *command], stderr=errors) as running:
            wait_for(running, started)
            running.terminate()
        assert running.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopped after a checkpoint of every expert" in (tmp_path / "stderr").read_text()
    for path in started:
        (checkpoint,) = path.parent.glob("checkpoint-*")
        assert json.loads((checkpoint / "training.json").read_text())["step"] < 100_000
    assert not (tmp_path / "run/stop").exists() and not (tmp_path / "run/model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.long), "fsdp2"])
def test_routers_train_on_two_processes_as_on_one(staged, data, tmp_path, sharding):
    changes = {"weight_decay": 0.1, "learning_rate": 1e-2, "seed": 3, "model": str(staged / "experts/model")}
    config = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", **changes, sharding=sharding))
    command = [sys.executable, *LAUNCH, "-m", MODULE, "--config", str(config), "--stage", "routers"]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found, expected = weights(tmp_path / "run/model"), weights(staged / "routers/model")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    assert all(is_router(name) for name in differing(tmp_path / "run/model", staged / "experts/model"))
    done = subprocess.run([*command[:-1], "experts"], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "starts its own processes" in done.stderr


@pytest.mark.slow
def test_jobs_on_a_ray_cluster_are_jobs_in_turn(staged, data, tmp_path):
    pytest.importorskip("ray")
    changes = {"weight_decay": 0.1, "learning_rate": 1e-2, "seed": 3, "model": str(staged / "backbone/model")}
    changes |= {"num_experts": 2, "gradient_batches": 2}
    config = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", **changes))
    done = run_ldm(*f"--config {config} --stage experts --executor ray --address local".split(), module=MODULE)
    assert done.returncode == 0, done.stderr
    assert not differing(tmp_path / "run/model", staged / "experts/model")


def killed_when(arguments: list[str], appear: list[Path]) -> None:
    with subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.DEVNULL) as running:
        wait_for(running, appear)
        children = psutil.Process(running.pid).children(recursive=True)
        os.kill(running.pid, signal.SIGKILL)
    assert not psutil.wait_procs(children, timeout=60)[1]


def wait_for(running: subprocess.Popen, appear: list[Path]) -> None:
    while not all(path.exists() for path in appear):
        assert running.poll() is None and time.sleep(0.01) is None
