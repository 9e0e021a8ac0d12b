"""Short rows that share rows of the backbone: nothing changes but what is computed."""

import pytest
import torch

from ldm_hf.modeling.packing_ldm import group_rows, pack_rows
from ldm_hf.training.batches import model_inputs, to_device
from sequences import CAMERA, CONTROL, GRID, tokens

PLACES = CONTROL, GRID, CAMERA

LENGTHS = [9, 2, 5, 3, 1, 4]
"""First fit, the longest first: 9; 5 and 4; 3, 2 and 1."""


@pytest.fixture
def sequences(processor):
    return [tokens(processor, PLACES[row % len(PLACES)], length, row) for row, length in enumerate(LENGTHS)]


@pytest.fixture
def batch(processor, sequences):
    return dict(processor.collate(sequences))


def packed(batch, lengths=LENGTHS):
    groups = group_rows(batch["observation_kinds"], batch["action_kinds"])
    return {**batch, "row_groups": groups, "packing": pack_rows(lengths, groups)}


def test_rows_are_packed_first_fit_the_longest_first(batch):
    packing = packed(batch)["packing"]
    assert packing.position_ids.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 0, 1, 2, 3],
        [0, 1, 2, 0, 1, 0, 0, 1, 2],  # the last three are left over
    ]
    # Row 3 of the batch, of three transitions, begins the third row of nine places; row 1 follows it.
    assert packing.places[packing.rows == 3].tolist() == [18, 19, 20]
    assert packing.places[packing.rows == 1].tolist() == [21, 22]
    assert packing.transitions[packing.rows == 3].tolist() == [27, 28, 29]


@pytest.mark.parametrize(
    "lengths", [[8, 8, 8], [10, 9, 9], [10, 6, 6, 6]], ids=["equal", "nearly", "none fits beside one"]
)
def test_what_saves_nothing_is_left_as_it_is(batch, lengths):
    assert packed(batch, lengths)["packing"] is None


def step(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.fixture(params=["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.long)])
def attention(model, request):
    before = model.config._attn_implementation
    model.set_attn_implementation(request.param)
    yield request.param
    model.set_attn_implementation(before)


def test_loss_and_gradients_are_those_of_the_padded_batch(model, batch, attention):
    if attention == "flex_attention":  # has no backward pass on a CPU
        with torch.no_grad():
            return torch.testing.assert_close(model(**packed(batch)).loss, model(**batch).loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(step(model, packed(batch)), step(model, batch), atol=1e-6, rtol=1e-5)


def test_a_sequence_does_not_see_those_in_its_row(model, batch):
    """Hidden states of row 1, which shares a packed row with rows 3 and 4, stay what they are whatever these hold."""
    inputs = packed(batch)
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        inputs["observations"] = inputs["observations"].clone()
        inputs["observations"][[3, 4]] += 1
        after = model(**inputs).last_hidden_state
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[3], before[3])
    assert not before[1, 2:].any()  # padding


def test_training_packs_what_is_worth_it(processor, sequences):
    inputs = to_device(model_inputs(processor, sequences), torch.device("cpu"))
    assert inputs["packing"].position_ids.shape == (3, 9)
    assert to_device(model_inputs(processor, sequences[:1]), torch.device("cpu"))["packing"] is None


def test_a_packed_training_step_is_one_compiled_graph(model, batch):
    inputs = packed(batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, inputs)[0], step(model, inputs)[0], atol=1e-6, rtol=1e-5)
