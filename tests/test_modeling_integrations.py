"""What other libraries do with a model: offloading, adapters, quantisation, compilation, export."""

import copy
import traceback
import warnings

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy
from ldm_hf.modeling.packing_ldm import group_rows
from sequences import CAMERA, CONTROL, GRID, tokens, without_labels

PLACES = (CONTROL, GRID, CAMERA)


@pytest.fixture
def batch(processor):
    return processor.collate([tokens(processor, place, 6, seed) for seed, place in enumerate(PLACES)])


def all_logits(model, batch):
    with torch.no_grad():
        return model(**without_labels(batch)).logits


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


DEVICE_MAPS = [
    {"embedding": "cpu", "backbone": "cpu", "action_head": "disk"},
    {"embedding": "disk", "backbone": "disk", "action_head": "cpu"},
]


@pytest.mark.parametrize("device_map", DEVICE_MAPS, ids=["head", "the rest"])
def test_a_model_whose_weights_are_on_disk_computes_the_same(model, processor, batch, saved, tmp_path, device_map):
    offloaded = AutoModel.from_pretrained(saved, device_map=device_map, offload_folder=tmp_path).eval()
    torch.testing.assert_close(all_logits(offloaded, batch), all_logits(model, batch))
    policies = [LDMPolicy(each, processor, PLACES, context_length=4) for each in (model, offloaded)]
    for step in range(6):  # past the length of the context
        observations = [place.observation_space.sample() for place in PLACES]
        outcome = ([0.5] * 3, [False] * 3, [step == 2] * 3) if step else ()
        expected, found = (policy.act(observations, *outcome) for policy in policies)
        assert [str(action) for action in found] == [str(action) for action in expected]
    with pytest.raises(ValueError, match="device_map has offloaded"):
        LDMPolicy(offloaded, processor, PLACES, compile=True)


def test_an_adapter_on_the_action_head_acts_and_learns(model, processor, batch):
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["action_head"], r=4))
    head = adapted.base_model.model.action_head
    torch.testing.assert_close(all_logits(adapted, batch), all_logits(model, batch))  # B starts at zero
    nn.init.normal_(head.lora_B["default"].weight)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert not torch.allclose(all_logits(adapted, batch), all_logits(model, batch), atol=1e-2)
    torch.testing.assert_close(all_logits(adapted, batch), all_logits(merged, batch), atol=1e-4, rtol=1e-4)
    loss = adapted(**batch).loss
    torch.testing.assert_close(loss, merged(**batch).loss, atol=1e-4, rtol=1e-4)
    loss.backward()
    gradients = [head.lora_A["default"].weight.grad, head.lora_B["default"].weight.grad]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_linear_layers_can_be_quantised(model, batch):
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear, type(model.action_head)})
    assert type(quantised.backbone.layers[0].mlp.up_proj) is not nn.Linear
    expected, found = all_logits(model, batch), all_logits(quantised, batch)
    there = expected > torch.finfo(torch.float32).min
    assert ((found > torch.finfo(torch.float32).min) == there).all()
    assert torch.corrcoef(torch.stack([expected[there], found[there]]))[0, 1] > 0.99  # eight bits are not all


@pytest.mark.parametrize("known", [False, True], ids=["all rows alike", "rows by their width"])
@torch.no_grad()
def test_a_forward_pass_is_one_compiled_graph(model, batch, known):
    inputs = without_labels(batch)
    if known:
        inputs["row_groups"] = group_rows(batch["observation_kinds"], batch["action_kinds"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("known", [False, True], ids=["all rows alike", "rows by their slots"])
def test_a_training_step_is_one_compiled_graph(model, batch, known):
    """And has the loss and gradients of one that is not."""
    inputs = dict(batch)
    if known:
        inputs["row_groups"] = group_rows(batch["observation_kinds"], batch["action_kinds"])
    found = []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = step(**inputs).loss
        loss.backward()
        found.append((loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-4)


class HostReads(TorchDispatchMode):
    """Notes what waits for a device: reading a number, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "_unique", "unique_dim", "is_nonzero", "equal", "masked_select")

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.__name__.startswith(self.WAITS):
            self.places.append(traceback.extract_stack()[-2].name)
        return operation(*args, **(kwargs or {}))


def test_a_training_step_that_knows_its_rows_does_not_wait_for_the_device(model, batch):
    groups = group_rows(batch["observation_kinds"], batch["action_kinds"])
    with HostReads() as reads:
        model(**batch, row_groups=groups).loss.backward()
    # transformers asks once in a forward pass whether positions begin again within a row.
    assert [place for place in reads.places if "_fn" not in place and "find_packed" not in place] == [], reads.places
    assert len(reads.places) == 1
    with HostReads() as reads:
        model(**batch)
    assert len(reads.places) > 1


@torch.no_grad()
def test_a_forward_pass_can_be_exported_for_any_number_of_rows_and_transitions(model, processor):
    def inputs(rows, length):
        return without_labels(processor.collate([tokens(processor, CONTROL, length, seed) for seed in range(rows)]))

    some = inputs(2, 6)
    rows, length = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("length", min=2, max=16)
    shapes = {name: {0: rows, 1: length} if tensor.shape[1] == 6 else {0: rows} for name, tensor in some.items()}
    exported = torch.export.export(model, (), some, dynamic_shapes=shapes).module()
    for each in (some, inputs(5, 9)):
        torch.testing.assert_close(exported(**each).logits, model(**each).logits)


@torch.no_grad()
def test_what_the_backbone_saw_can_be_asked_for(model, batch):
    inputs = without_labels(batch)
    eager = LDMModel(copy.deepcopy(model.config)).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    outputs = eager(**inputs, output_hidden_states=True, output_attentions=True)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert [tuple(each.shape) for each in outputs.hidden_states] == [(3, 6, 32)] * (layers + 1)
    assert [tuple(each.shape) for each in outputs.attentions] == [(3, heads, 6, 6)] * layers
    torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)
    as_tuple = eager(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"return_dict": False, "output_hidden_states": True},
        {"attn_implementation": "eager"},
        pytest.param({"attn_implementation": "flex_attention"}, marks=pytest.mark.long),  # which compiles
    ],
    ids=lambda settings: next(iter(settings.values())),
)
def test_settings_of_the_output_change_neither_a_rollout_nor_attention(model, processor, settings):
    """A configuration that asks for tuples or hidden states, and other kernels for attention, act the same."""
    other = LDMModel(LDMConfig.from_dict(model.config.to_dict() | settings)).eval()
    other.load_state_dict(model.state_dict())
    assert other.config._attn_implementation == settings.get("attn_implementation", "sdpa")
    assert other.config.return_dict == settings.get("return_dict", True)
    assert actions(other, processor) == actions(model, processor)


def actions(model, processor) -> list[str]:
    """What a policy does in three environments in ten steps, through a full context."""
    policy = LDMPolicy(model, processor, PLACES, context_length=4)
    for place in PLACES:
        place.observation_space.seed(0)
    return [
        str(
            policy.act(
                [place.observation_space.sample() for place in PLACES],
                *([[0.5] * 3, [False] * 3, [False] * 3] if step else []),
            )
        )
        for step in range(10)
    ]


def test_nothing_deprecated_is_used(model, processor, batch, tmp_path):
    """Acting, training, saving and loading warn of nothing that a next release removes."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("error", category)
        copy.deepcopy(model).train()(**batch).loss.backward()
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path).eval()
        assert actions(loaded, processor) == actions(model, processor)


@torch.no_grad()
def test_masked_transitions_are_not_attended_to(model, processor):
    """Hiding the first two of six leaves the four that are left, whose positions continue from theirs."""
    whole = without_labels(processor.collate([tokens(processor, CONTROL, 6, 1)]))
    rest = {
        name: tensor[:, 2:] if tensor.ndim > 1 and tensor.shape[1] == 6 else tensor for name, tensor in whole.items()
    }
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    masked = model(**whole, attention_mask=mask).logits[:, 2:]
    alone = model(**rest, position_ids=torch.arange(2, 6).unsqueeze(0)).logits
    torch.testing.assert_close(masked, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked, model(**whole).logits[:, 2:], atol=1e-3)


BAD = {
    "mu": [0, -1, float("nan"), float("inf")],
    "max_value": [0, float("nan"), float("inf")],
    "max_position_embeddings": [0],
    "num_bins": [1],
    "image_size": [35],
    "slot_embedding_size": [0],
    "num_hidden_layers": [0],
    "action_smoothing": [float("nan")],
    "num_experts": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_values_that_cannot_work_are_refused(name, value):
    with pytest.raises(Exception, match=f"{name} must be") as caught:
        LDMConfig(**{name: value})
    reason = str(caught.value.__cause__ or caught.value)
    assert str(value) in reason and "\n" not in reason


def test_the_smallest_image_that_is_allowed_can_be_read(processor):
    LDMModel(LDMConfig.preset("nano", image_size=36)).embedding.image_encoder(torch.zeros(1, 3, 36, 36))
