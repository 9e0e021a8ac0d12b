"""Models outside Python: graphs of models and of references, and the parts of the page in JavaScript."""

from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from browser.javascript import json_value, run_node
from browser.record import record, recorded
from conftest import CARTPOLE, run_ldm_here
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy
from ldm_hf.errors import CheckpointError, HubError
from ldm_hf.export import vendor
from ldm_hf.export.int8 import with_int8_weights
from ldm_hf.export.onnx import export_onnx
from ldm_hf.export.page import SITE, environments
from ldm_hf.export.references import export_reference
from ldm_hf.export.runtime import check_export
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.modeling.quantization_ldm import ActionCode, mu_law_encode
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_to_json

BANK = Path(__file__).parents[1] / "bank"
OWN = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"]
TABLES = ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "mixture_model"])
def test_graphs_of_floats_say_what_the_model_says(request, tmp_path, kind):
    """Of a model with experts too; the model stays as it was."""
    floats = request.getfixturevalue(kind)
    export_onnx(floats, tmp_path)
    assert floats.config._attn_implementation == floats.backbone.config._attn_implementation == "sdpa"
    processor = LDMProcessor.for_config(floats.config)
    assert check_export(floats, processor, tmp_path) < 1e-4
    with pytest.raises(CheckpointError, match=r"differs from the model by .* in a logit"):
        check_export(with_int8_weights(floats), processor, tmp_path, steps=20)


@pytest.mark.slow
def test_the_narrowest_model_is_exported(tmp_path):
    """Of one slot each, so that axes which are free otherwise have one length."""
    narrow = LDMModel(LDMConfig.preset("nano", max_observation_slots=1, max_action_slots=1, num_hidden_layers=1)).eval()
    export_onnx(narrow, tmp_path, int8=True)
    shapes = {one.name: one.shape for one in onnxruntime.InferenceSession(str(tmp_path / "step.onnx")).get_inputs()}
    assert shapes["observations"] == ["now", 1] and shapes["previous_actions"] == ["now", 1]


def test_int8_weights_are_steps_of_a_scale(model):
    rounded = with_int8_weights(model).action_head.weight
    steps = rounded / (rounded.abs().amax(1, keepdim=True) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert model.action_head.weight.ne(rounded).any()  # the model itself stays


def played(env, environment, exact_state=False):
    made = {"observation": space_to_json(env.observation_space), "action": space_to_json(env.action_space)}
    return record(env, environment, 500, seed=5, exact_state=exact_state) | {"spaces": made}


@pytest.fixture(scope="module")
def traces():
    """Random actions in every environment of the page; where states are real numbers, also from Python's at each step."""
    found = [played(gymnasium.make(name), f"gymnasium/{name}") for name in OWN + TABLES]
    found += [played(gymnasium.make(name), f"gymnasium/{name}", exact_state=True) for name in OWN]
    return found + recorded()


def test_environments_in_javascript_are_those_of_python(traces):
    assert {trace["id"] for trace in traces} == set(environments())
    for trace, off in zip(traces, run_node("environments.mjs", site=str(SITE), traces=traces), strict=True):
        assert off["ends"] == 0, trace["id"]
        assert max(off["observation"], off["reward"], off["oneStep"]) < 1e-6, (trace["id"], off)
        for role, space in off["spaces"].items():
            layouts = [SlotLayout.of(one, role=role) for one in (space, trace["spaces"][role])]
            for part in ("kinds", "cardinality", "low", "high"):
                assert (getattr(layouts[0], part) == getattr(layouts[1], part)).all(), trace["id"]


@pytest.mark.parametrize("gaps", [1, 4])
def test_a_mountain_car_that_gets_there(gaps):
    """A good policy, whose episodes end; random actions never get there."""
    env = gymnasium.make("MountainCarContinuous-v0")
    (observation, _), steps = env.reset(seed=9), []
    trace = {"id": "gymnasium/MountainCarContinuous-v0", "seed": 9, "start": observation.tolist(), "steps": steps}
    for index in range(400):
        force = np.float32(np.sign(observation[1]) * (1 if index % gaps == 0 else 0.7))
        observation, reward, terminated, truncated, _ = env.step(np.array([force]))
        step = {"action": [float(force)], "observation": observation.tolist(), "reward": float(reward)}
        steps.append(step | {"terminated": terminated, "truncated": truncated})
        if terminated or truncated:
            observation = env.reset()[0]
            steps[-1]["reset"] = observation.tolist()
    assert sum(step["terminated"] for step in steps) > 2
    (off,) = run_node("environments.mjs", site=str(SITE), traces=[trace])
    assert max(off["observation"], off["reward"]) < 1e-6
    assert off["ends"] == 0


LIMITS = {"maxSlots": 128, "numBins": 1024, "imageSize": 64}
SPACES = [
    spaces.Box(-2, 3, (2, 3), np.float32),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4], start=[1, 2]),
    spaces.MultiBinary(6),
    spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(-1, 1, (2,), np.float64)}),
    spaces.Box(0, 255, (7, 7, 3), np.uint8),
    spaces.Box(0, 255, (12, 16, 1), np.uint8),
    spaces.Box(0, 255, (12, 16, 4), np.uint8),
    spaces.Box(0, 1, (10, 10, 4), bool),
    spaces.Box(0, 1, (10, 10, 7), bool),
]


def test_values_become_the_same_slots_and_images():
    values = []
    for seed, space in enumerate(SPACES):
        space.seed(seed)
        values.append(space.sample())
    cases = [
        {"space": space_to_json(space), "limits": LIMITS, "value": json_value(value)}
        for space, value in zip(SPACES, values, strict=True)
    ]
    for space, value, got in zip(SPACES, values, run_node("layouts.mjs", site=str(SITE), cases=cases), strict=True):
        slots, image = SlotLayout.of(space).flatten(value)
        assert got["slots"] == slots.tolist(), space
        assert (got["image"] is None) == (image is None)
        if image is not None:
            assert got["image"] == image.transpose(2, 0, 1).ravel().tolist(), space


@pytest.mark.parametrize("quantization", ["mu_law", "uniform"])
def test_numbers_become_the_same_bins_and_bins_the_same_numbers(quantization):
    settings = {"num_bins": 1024, "mu": 100.0, "max_value": 256.0, "action_quantization": quantization}
    code, bins = ActionCode(100.0, 256.0, 1024, quantization), list(range(1024))
    numbers = torch.from_numpy(np.random.default_rng(0).normal(0, 20, 4000).astype(np.float32))
    bounds = [(-2.0, 2.0), (-1.0, 0.5), (0.0, 300.0), ("-inf", "inf")]
    boxes = [{"type": "Box", "shape": [1], "dtype": "float32", "low": low, "high": high} for low, high in bounds]
    cases = [
        {"space": box, "limits": LIMITS, "settings": settings, "values": numbers.tolist(), "bins": bins}
        for box in boxes
    ]
    for (low, high), got in zip(bounds, run_node("layouts.mjs", site=str(SITE), cases=cases), strict=True):
        both, kind = torch.tensor([float(low), float(high)]), torch.tensor(1)
        assert got["allowed"] == code.allowed(kind, both).tolist()
        expected = code.decode(torch.tensor(bins), kind, both).double()
        assert torch.allclose(torch.tensor(got["values"], dtype=torch.float64), expected, rtol=1e-6, atol=1e-9)
        own = torch.tensor(got["bins"])
        apart = (own - mu_law_encode(numbers, 100.0, 256.0, 1024)).abs()
        # The logarithms of two machines may differ in the last place, which a number on the edge of two bins may show.
        assert apart.max() <= 1
        assert apart.sum() <= 4


@pytest.mark.parametrize("environment", [CARTPOLE, "gymnasium/Acrobot-v1", "gymnasium/FrozenLake-v1"])
def test_a_ghost_does_what_its_reference_does(tmp_path, environment):
    policy = ReferencePolicy.load(BANK / environment / "policy")
    space = gymnasium.make(environment.removeprefix("gymnasium/")).observation_space
    export_reference(policy, space_to_json(space), tmp_path / "ghost.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "ghost.onnx"))
    space.seed(0)
    for _ in range(30):
        value = np.clip(space.sample(), -3, 3) if isinstance(space, spaces.Box) else space.sample()
        (action,) = session.run(None, {"observation": np.ravel(value).astype(np.float32)})
        assert action == policy.act(np.asarray(value)[None])


def test_only_the_named_archive_is_taken(tmp_path, monkeypatch):
    """npm packs a folder as it packs what it fetches."""
    monkeypatch.setenv("LDM_HOME", str(tmp_path))
    with pytest.raises(HubError, match="npm cannot fetch"):
        vendor._fetch(str(tmp_path / "nothing"), "", tmp_path)
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing/package.json").write_text('{"name": "thing", "version": "1.0.0"}')
    with pytest.raises(HubError, match="another archive"):
        vendor._fetch(str(tmp_path / "thing"), "AAAA", tmp_path)
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    with pytest.raises(HubError, match=r"is not installed: install Node\.js"):
        vendor.npm_files("thing", "1.0", "AAAA", {"a.js": "a.js"})
    assert not (tmp_path / "npm" / "thing-1.0").exists()


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path, model, processor):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("")
    wrong = {
        ("--output", tmp_path / "x"): "say what to write",
        ("--onnx", "--title", "t", "--output", tmp_path / "x"): "are for --page",
        ("--page", "--output", tmp_path / "x"): "trained on none of the environments",
        ("--onnx", "--output", other): "something else than an export",
    }
    for arguments, message in wrong.items():
        done = run_ldm_here("export", tmp_path / "model", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (other / "file").exists()
    assert not (tmp_path / "x").exists()
