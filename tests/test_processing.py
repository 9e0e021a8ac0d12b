"""The tokenizer: mu-law, action bins, alignment, padding."""

import dataclasses
import json
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ldm_hf.errors import InvalidValueError
from ldm_hf.modeling import LDMConfig, LDMProcessor
from ldm_hf.modeling.processing_ldm import (
    NOT_DONE,
    START,
    TERMINATED,
    TRUNCATED,
    TokenSequence,
    Transitions,
)
from ldm_hf.modeling.quantization_ldm import ActionCode, mu_law_decode, mu_law_encode

PROCESSOR = LDMProcessor()
EVEN = LDMProcessor(action_quantization="uniform")
MU_LAW = (100.0, 256.0, 1024)
FLOATS = st.floats(-256, 256, width=32)


def encode(*values: float) -> list[int]:
    return mu_law_encode(torch.tensor(values), *MU_LAW).tolist()


def decode(*bins: int) -> list[float]:
    return mu_law_decode(torch.tensor(bins), *MU_LAW).tolist()


def code_of(space: spaces.Space, processor: LDMProcessor = PROCESSOR):
    """The kinds and bounds of an action space's slots, as the model gets them."""
    layout = processor.action_layout(space)
    rows = processor.describe_rows([layout], [layout])
    return ActionCode.of(processor), rows["action_kinds"][0], rows["action_bounds"][0]


def companded(value: float) -> float:
    """The formula of the paper, written out."""
    return math.copysign(math.log(100 * abs(value) + 1) / math.log(100 * 256 + 1), value)


@given(FLOATS)
def test_decoded_value_lies_in_the_bin_of_the_value(value):
    (code,) = encode(value)
    (back,) = decode(code)
    assert 0 <= code <= 1023
    # A bin is 2/1024 wide after the mu-law, and its middle at most half of that away.
    assert abs(companded(back) - companded(value)) <= 1 / 1024 + 1e-6


@given(st.integers(0, 1023))
def test_every_bin_is_its_own_code(code):
    assert encode(*decode(code)) == [code]


@given(FLOATS, FLOATS)
def test_order_is_kept(first, second):
    low, high = encode(min(first, second), max(first, second))
    assert low <= high


def test_known_bins():
    # F(1) = ln 101 / ln 25601 = 0.45468; (0.45468 + 1) * 512 = 744.8.
    assert encode(-np.inf, -256.0, -1.0, 0.0, 1.0, 256.0, 1e9, np.inf) == [0, 0, 279, 512, 744, 1023, 1023, 1023]


@pytest.mark.parametrize("processor", [PROCESSOR, EVEN], ids=["mu-law", "uniform"])
@given(center=hnp.arrays(np.float32, 3, elements=st.floats(-100, 100, width=32)), code=st.integers(0, 1023))
def test_actions_never_leave_their_bounds(processor, center, code):
    space = spaces.Box(center - 1, center + 1, dtype=np.float32)
    low, high = ActionCode.allowed(*code_of(space, processor)).numpy().T
    action, slots = processor.decode_action(processor.action_layout(space), np.clip(np.full(3, code), low, high))
    assert space.contains(action)
    np.testing.assert_array_equal(action, slots)


def test_action_bins_of_each_kind():
    space = spaces.Tuple([spaces.Discrete(5, start=-2), spaces.MultiBinary(2), spaces.Box(-1, np.inf, (1,))])
    for processor in (PROCESSOR, EVEN):  # where a bound is infinite, the mu-law it is
        assert ActionCode.allowed(*code_of(space, processor)).tolist() == [[0, 4], [0, 1], [0, 1], [279, 1023]]
    action, slots = PROCESSOR.decode_action(PROCESSOR.action_layout(space), np.array([4, 1, 0, 1023]))
    assert action[0] == 2 and action[1].tolist() == [1, 0] and slots[:3].tolist() == [4, 1, 0]


def test_even_bins_by_hand():
    """Of [-2, 2]: 1024 bins of 1/256. Of [-1e9, 1e9], far beyond M: the mu-law."""
    space = spaces.Box(np.array([-2, -1e9]), np.array([2, 1e9]), dtype=np.float64)
    code, kinds, bounds = code_of(space, EVEN)
    values = torch.tensor([[-9.0, 0.0], [-2.0, 1.0], [0.0, -1.0], [0.005, 1e9], [2.0, 0.0]])
    bins = code.encode(values, kinds, bounds)
    assert bins[:, 0].tolist() == [0, 0, 512, 513, 1023]  # 0.005 x 256 = 1.28
    assert bins[:, 1].tolist() == [512, 744, 279, 1023, 512]
    assert code.decode(bins, kinds, bounds)[:, 0].tolist() == [
        -2 + 1 / 512,
        -2 + 1 / 512,
        1 / 512,
        3 / 512,
        2 - 1 / 512,
    ]


@given(st.floats(-3, 3, width=32), st.floats(-200, 200, width=32), st.floats(2**-6, 50, width=32))
def test_a_value_is_half_an_even_bin_from_what_it_decodes_to(share, low, size):
    space = spaces.Box(low, low + size, (1,), np.float32)
    code, kinds, bounds = code_of(space, EVEN)
    width = float(bounds[0, 1] - bounds[0, 0]) / 1024
    value = torch.tensor([low + abs(share) / 3 * size]).clamp(*bounds[0])
    back = code.decode(code.encode(value, kinds, bounds), kinds, bounds)
    assert abs(back - value).item() <= width / 2 + 1e-4


def test_an_action_beyond_its_bounds_is_in_the_bin_of_the_bound():
    """The environment clips it too. 279 and 744 are the bins of -1 and 1."""
    for space in (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,), np.float64)):
        assert ActionCode.encode(code_of(space)[0], torch.tensor([-1.5, 3.0]), *code_of(space)[1:]).tolist() == [
            279,
            744,
        ]


def hand_made_transitions() -> Transitions:
    """Two short episodes: the first terminates at step 1, the second is truncated at step 3."""
    return Transitions(
        observations=np.array([[10.0], [11.0], [20.0], [21.0], [30.0]], np.float32),
        images=None,
        actions=np.array([[0], [1], [2], [3], [4]], np.float32),
        rewards=np.array([0.5, 1.5, 2.5, 3.5, 4.5], np.float32),
        terminated=np.array([False, True, False, False, False]),
        truncated=np.array([False, False, False, True, False]),
        reference_actions=np.array([[4], [3], [2], [1], [0]], np.float32),
    )


def test_token_t_carries_the_observation_of_t_and_what_happened_at_t_minus_1():
    batch = PROCESSOR.collate([align(hand_made_transitions(), spaces.Box(-99, 99, (1,)), spaces.Discrete(5))])
    assert batch["observations"][0, :, 0].tolist() == [10, 11, 20, 21, 30]
    assert batch["previous_actions"][0, 1:, 0].tolist() == [0, 1, 2, 3]
    assert batch["previous_rewards"][0, 1:].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert batch["previous_dones"][0].tolist() == [START, NOT_DONE, TERMINATED, NOT_DONE, TRUNCATED]
    assert batch["labels"][0, :, 0].tolist() == [4, 3, 2, 1, 0]


def test_the_call_gives_the_same_batch_as_its_parts():
    made = hand_made_transitions()
    space, actions = spaces.Box(-99, 99, (1,)), spaces.Discrete(5, start=10)
    batch = PROCESSOR(
        *(made.observations, made.actions[:, 0] + 10, made.rewards, made.terminated, made.truncated),
        *(space, actions, made.reference_actions[:, 0] + 10),
    )
    expected = PROCESSOR.collate([align(made, space, actions)])
    assert set(batch) == set(expected)
    for name in batch:
        np.testing.assert_array_equal(batch[name], expected[name], name)


def align(made: Transitions, observation_space: spaces.Space, action_space: spaces.Space) -> TokenSequence:
    return PROCESSOR.align(made, PROCESSOR.observation_layout(observation_space), PROCESSOR.action_layout(action_space))


def test_padding_is_marked():
    made = hand_made_transitions()
    zeros = np.zeros((5, 3), np.float32)
    wide = dataclasses.replace(made, observations=zeros, actions=zeros[:, :2], reference_actions=zeros[:, :2])
    batch = PROCESSOR.collate(
        [
            align(made[:3], spaces.Box(-99, 99, (1,)), spaces.Discrete(5)),
            align(wide, spaces.MultiDiscrete([3, 3, 3]), spaces.Box(-1, 1, (2,))),
        ]
    )
    assert batch["observation_kinds"].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert batch["action_kinds"].tolist() == [[2, 0], [1, 1]]
    assert batch["labels"][0, 3:].isnan().all() and batch["labels"][0, :, 1].isnan().all()
    assert batch["labels"][0, :3, 0].tolist() == [4, 3, 2] and (batch["labels"][1] == 0).all()


def test_a_reference_action_outside_its_space_is_refused():
    made = hand_made_transitions()
    with pytest.raises(InvalidValueError, match="transition 0, slot 0 is out of 3"):
        PROCESSOR.collate([align(made, spaces.Box(-99, 99, (1,)), spaces.Discrete(3))])
    made.reference_actions[2] = np.nan
    with pytest.raises(InvalidValueError, match="nan at transition 2, slot 0 is not a number"):
        PROCESSOR.collate([align(made, spaces.Box(-99, 99, (1,)), spaces.Discrete(5))])


def test_real_environments_fit():
    for name in ("CartPole-v1", "Pendulum-v1", "CliffWalking-v1", "Blackjack-v1"):
        env = gymnasium.make(name)
        observation, _ = env.reset(seed=0)
        slots, image = PROCESSOR.observation_layout(env.observation_space).flatten(observation)
        assert np.isfinite(slots).all() and image is None


def test_settings_survive_saving(tmp_path):
    changed = {"num_bins": 256, "mu": 50.0, "max_observation_slots": 7, "action_quantization": "uniform"}
    made = LDMProcessor.for_config(LDMConfig.preset("nano", **changed))
    made.save_pretrained(tmp_path)
    again = LDMProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in changed} == changed
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "LDMProcessor"
