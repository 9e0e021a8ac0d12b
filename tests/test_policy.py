"""The rollout: nothing but speed may depend on caches, compilation, or the rest of the batch."""

import copy
import platform

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ldm_hf.modeling import LDMPolicy
from ldm_hf.modeling.processing_ldm import TokenSequence
from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.modeling.steps_ldm import PackedLinear
from sequences import CAMERA, CONTROL, GRID, Spaces

ACCELERATORS = [
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
    pytest.param(
        "mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no MPS device")
    ),
]


class Recompute:
    """The context of a rollout kept by hand, and its logits by one full forward pass."""

    def __init__(self, model, processor, environment: Spaces, context_length: int):
        self.model, self.processor, self.length = model, processor, context_length
        self.layouts = (
            processor.observation_layout(environment.observation_space),
            processor.action_layout(environment.action_space),
        )
        self.context = []

    def logits(self, observation, action, reward, done):
        if len(self.context) == self.length:
            self.context = self.context[-(self.length // 2) :]
        self.context.append((*self.layouts[0].flatten(observation), action, reward, done))
        slots, images, actions, rewards, dones = zip(*self.context, strict=True)
        dones = np.array(dones)
        dones[0] = 3
        sequence = TokenSequence(
            *self.layouts,
            np.stack(slots),
            None if images[0] is None else np.stack(images),
            np.stack(actions),
            np.array(rewards, np.float32),
            dones,
        )
        with torch.no_grad():
            return self.model(**self.processor.collate([sequence])).logits[0, -1]


def watched(policy: LDMPolicy) -> list[torch.Tensor]:
    """The logits of each step that a policy will take."""
    seen, forward = [], policy._forward

    def watch():
        logits, bins = forward()
        seen.append(logits.float().cpu().clone())
        return logits, bins

    policy._forward = watch
    return seen


def largest_error(model, policy: LDMPolicy, environments: list[Spaces], steps: int) -> float:
    """How far a rollout's logits are from those of recomputing everything, with ``model``, at each step."""
    seen, processor = watched(policy), policy.processor
    by_hand = [Recompute(model, processor, environment, policy.context_length) for environment in environments]
    layouts = [processor.action_layout(environment.action_space) for environment in environments]
    for environment in environments:
        environment.observation_space.seed(5)
    generator = np.random.default_rng(0)
    slots = [np.zeros(layout.num_slots, np.float32) for layout in layouts]
    outcome, error = None, 0.0
    for _ in range(steps):
        observations = [environment.observation_space.sample() for environment in environments]
        actions = policy.act(observations, *(outcome or ()))
        for row, (environment, reference) in enumerate(zip(environments, by_hand, strict=True)):
            reward, done = (
                (0.0, 3) if outcome is None else (outcome[0][row], 1 * outcome[1][row] or 2 * outcome[2][row])
            )
            expected = reference.logits(observations[row], slots[row], reward, done)
            found = seen[-1][row, : len(expected)]
            masked = expected == torch.finfo(expected.dtype).min
            error = max(error, (found - expected).masked_fill(masked, 0).abs().max().item())
            assert environment.action_space.contains(actions[row])
            slots[row] = layouts[row].flatten(actions[row])[0]
        rows = len(environments)
        ended = generator.random((2, rows)) < 0.2
        outcome = (generator.normal(size=rows).tolist(), ended[0].tolist(), (ended[1] & ~ended[0]).tolist())
    return error


MIXED = [CAMERA, CONTROL, GRID, CAMERA]


@pytest.mark.parametrize("at_once", [4096, 6, 1], ids=["all rows at once", "two rows at once", "row by row"])
@pytest.mark.parametrize("ahead", [64, 8, 1], ids=["when it is full", "two transitions at a time", "one at a time"])
def test_cached_rollout_equals_recomputation_at_every_step(model, processor, monkeypatch, at_once, ahead):
    """The older half of the context of 7 is forgotten six times."""
    monkeypatch.setattr("ldm_hf.modeling.policy_ldm._TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr("ldm_hf.modeling.policy_ldm._READ_AHEAD", ahead)
    policy = LDMPolicy(model, processor, MIXED, context_length=7)
    assert largest_error(model, policy, MIXED, 30) < 1e-4


@pytest.fixture
def compiled_once():
    """A second compilation of the same policy is an error, and so is what cannot be compiled."""
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_rollout_equals_recomputation(model, processor, compiled_once):
    policy = LDMPolicy(model, processor, MIXED, context_length=7, compile=True)
    assert largest_error(model, policy, MIXED, 30) < 1e-4


@pytest.mark.parametrize("device", ACCELERATORS)
@pytest.mark.parametrize("compiled", [False, True], ids=["as it is", "compiled"])
def test_rollouts_on_other_devices_equal_recomputation_on_the_cpu(model, processor, device, compiled):
    if compiled and device == "mps":
        pytest.skip("compilation is for CUDA")
    policy = LDMPolicy(copy.deepcopy(model).to(device), processor, MIXED, context_length=7, compile=compiled)
    assert largest_error(model, policy, MIXED, 30) < 1e-4


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as it is", "compiled"])
def test_bfloat16_is_near_float32(model, processor, compiled):
    """Eight bits of mantissa: logits of size 5 to 10 differ by a few hundredths."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    policy = LDMPolicy(half, processor, MIXED, context_length=7, compile=compiled)
    assert policy._cache.layers[0].keys.dtype == torch.bfloat16
    logits = watched(policy)
    assert 0 < largest_error(copy.deepcopy(half).float(), policy, MIXED, 16) < 0.3
    assert torch.cat([step[:, 0, :2].flatten() for step in logits]).abs().max() > 1


@pytest.mark.long
def test_after_a_selection_a_compiled_policy_continues(model, processor):
    compiled, plain = (LDMPolicy(model, processor, [GRID, CONTROL], context_length=8, compile=c) for c in (True, False))
    seen = [watched(policy) for policy in (compiled, plain)]
    observation = np.array([0.1, 0.2, 0.3], np.float32)
    for policy in (compiled, plain):
        policy.act([4, observation])
        policy.select([1])
        for _ in range(9):
            policy.act([observation], [0.5], [False], [False])
    for found, expected in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


WIDE = Spaces(spaces.Box(-1, 1, (60,)), spaces.Box(-1, 1, (4,)))


def test_a_narrow_environment_beside_a_wide_one_acts_as_alone_and_costs_what_it_has(model, processor):
    alone, beside = LDMPolicy(model, processor, [GRID]), LDMPolicy(model, processor, [WIDE, GRID, CAMERA])
    looked_up = []
    table = beside.model.embedding.slot_embedding
    handle = table.register_forward_hook(lambda _, inputs, output: looked_up.append(inputs[0].numel()))
    seen = [watched(alone), watched(beside)]
    for space in (WIDE, CAMERA):
        space.observation_space.seed(3)
    outcome = ()
    for step in range(40):  # The context of 16 is rebuilt three times.
        place = step * 7 % 48
        (action,) = alone.act([place], *(each[:1] for each in outcome))
        looked_up.clear()
        observations = [WIDE.observation_space.sample(), place, CAMERA.observation_space.sample()]
        assert beside.act(observations, *outcome)[1] == action
        torch.testing.assert_close(seen[1][-1][1, :1], seen[0][-1][0], atol=1e-4, rtol=1e-4)
        # Observation slots 60 + 1 + 1, action slots 4 + 1 + 2, and a reward each, of every transition that is read.
        transitions = 1 + (8 if step in (16, 24, 32) else 0)
        assert sum(looked_up) == transitions * (62 + 7 + 3)
        outcome = ([0.1 * step] * 3, [step % 5 == 0] * 3, [False] * 3)
    handle.remove()
    assert beside._context._images.shape[0] == 1


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="packing is for x86")
def test_packed_weights_say_the_same_and_are_the_policy_s_own(model, processor, monkeypatch):
    monkeypatch.setattr("ldm_hf.modeling.steps_ldm._LARGE", 32 * 64)
    policy = LDMPolicy(model, processor, MIXED, context_length=7)
    packed = [module for module in policy.model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 3 * model.config.num_hidden_layers  # of 32 x 64; those of 32 x 32 stay as they are
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert policy.model.embedding.bias is model.embedding.bias
    assert largest_error(model, policy, MIXED, 16) < 1e-4


def test_no_step_waits_for_half_a_context(model, processor, monkeypatch):
    """In two environments, four transitions are read again every second step, from the sixth to the tenth."""
    monkeypatch.setattr("ldm_hf.modeling.policy_ldm._READ_AHEAD", 4)
    policy, reads = LDMPolicy(model, processor, [CONTROL, GRID], context_length=10), []
    observations, outcome = [np.zeros(3, np.float32), 5], ([0.0, 0.0], [False, False], [False, False])
    for step in range(21):
        reads.append(policy.num_reads)
        policy.act(observations, *(outcome if step else ()))
    # Five are kept of ten: two by two, and the tenth when there is room for no more.
    assert reads == [0] * 7 + [4, 0, 4, 2] + [0, 4, 0, 4, 2] + [0, 4, 0, 4, 2]


@pytest.mark.parametrize("ahead", [64, 1])
def test_finished_rows_leave_without_a_trace(model, processor, monkeypatch, ahead):
    monkeypatch.setattr("ldm_hf.modeling.policy_ldm._READ_AHEAD", ahead)
    together = LDMPolicy(model, processor, [GRID, CAMERA, CONTROL], context_length=7)
    alone = LDMPolicy(model, processor, [CONTROL], context_length=7)
    for environment in (CONTROL, CAMERA):
        environment.observation_space.seed(1)
    rewards = ()
    for step in range(12):
        control = CONTROL.observation_space.sample()
        observations = [control] if step > 5 else [step, CAMERA.observation_space.sample(), control]
        (expected,) = alone.act([control], *(([0.5], [False], [False]) if step else ()))
        *_, found = together.act(observations, *rewards)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        if step == 5:
            together.select([2])
        rows = len(together)
        rewards = ([0.5] * rows, [False] * rows, [False] * rows)


def test_a_bad_observation_leaves_the_rollout_as_it_was(model, processor):
    policy, again = (LDMPolicy(model, processor, [CONTROL]) for _ in range(2))
    good = np.array([0.1, 0.2, 0.3], np.float32)
    for each in (policy, again):
        each.act([good])
    with pytest.raises(ValueError, match="NaN"):
        policy.act([np.array([0.1, np.nan, 0.3])], [0.0], [False], [False])
    step = ([good], [1.0], [False], [False])
    np.testing.assert_array_equal(policy.act(*step)[0], again.act(*step)[0])


def test_a_rollout_takes_its_memory_once(model, processor):
    """All steps write into the same memory; the attention sees what is filled."""
    policy = LDMPolicy(model, processor, [CONTROL, GRID], context_length=8)
    observations = [np.zeros(3, np.float32), 5]
    policy.act(observations)
    layer = policy._cache.layers[0]
    places = [memory.data_ptr() for memory in layer.memory]
    lengths = [policy._cache.get_seq_length()]
    for _ in range(12):
        policy.act(observations, [0.0, 0.0], [False, False], [False, False])
        lengths.append(policy._cache.get_seq_length())
        assert layer.keys.shape[2] == lengths[-1]
    assert lengths == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5]
    assert [memory.data_ptr() for memory in layer.memory] == places
    assert layer.memory[0].shape[2] == 8
    policy.select([1])
    assert policy._cache.layers[0].keys.shape == (1, 2, 5, 16)


def test_drawn_actions_follow_the_logits(model, processor):
    rows = 2000
    policy = LDMPolicy(model, processor, [CONTROL] * rows, context_length=2, temperature=2.0, seed=1)
    seen = watched(policy)
    observation = CONTROL.observation_space.sample()
    drawn = []
    slots = policy._slots
    policy._slots = lambda bins: drawn.append(bins) or slots(bins)
    actions = policy.act([observation] * rows)
    assert all(CONTROL.action_space.contains(action) for action in actions)
    logits = seen[0][0]  # the same for every row
    for slot, logits_K in enumerate(logits):
        expected = (logits_K / 2).softmax(-1)
        frequency = torch.bincount(drawn[0][:, slot], minlength=len(logits_K)) / rows
        # Five standard deviations of a share of 2000 draws.
        assert ((frequency - expected).abs() <= 5 * (expected * (1 - expected) / rows).sqrt() + 1e-9).all()


def test_a_row_explores_until_its_rewards_differ(model, processor):
    """Row 0 is given nothing but zeros, row 1 a reward at the third call, after which it takes the likeliest bins."""
    certain, exploring = (
        LDMPolicy(model, processor, [CONTROL] * 2, context_length=16, **options)
        for options in ({}, {"exploration_temperature": 1000.0, "seed": 3})
    )
    observation = CONTROL.observation_space.sample()
    same = []
    for step in range(8):
        rewards = [0.0, 1.0 if step == 3 else 0.0]
        outcome = (rewards, [False] * 2, [False] * 2) if step else ()
        acted = [policy.act([observation] * 2, *outcome) for policy in (certain, exploring)]
        same.append([np.array_equal(one, other) for one, other in zip(*acted, strict=True)])
        exploring._last_actions = certain._last_actions.copy()  # so that both have the same context
    assert not any(row for row, _ in same)
    assert [row for _, row in same] == [False] * 3 + [True] * 5
    exploring.select([1])
    assert exploring._temperatures().tolist() == [0.0]
    with pytest.raises(ValueError, match="exploration_temperature must be at least 0, got -1"):
        LDMPolicy(model, processor, [GRID], exploration_temperature=-1)


def test_every_second_draw_of_an_exploring_row_is_repeated(model, processor):
    """At this temperature all bins are alike, so that two draws of their own would agree in one of many bins only."""
    rows = 400
    policy = LDMPolicy(model, processor, [CONTROL] * rows, context_length=4, exploration_temperature=1e6, seed=1)
    observation = CONTROL.observation_space.sample()
    first = np.array(policy.act([observation] * rows))
    second = np.array(policy.act([observation] * rows, [0.0] * rows, [False] * rows, [False] * rows))
    repeated = (first == second).all(1).mean()
    assert abs(repeated - 0.5) < 5 * (0.25 / rows) ** 0.5


def test_draws_are_seeded_and_nearly_certain_when_cold(model, processor):
    def acted(**options) -> list:
        policy = LDMPolicy(model, processor, [GRID], context_length=8, **options)
        GRID.observation_space.seed(3)
        found, outcome = [], ()
        for _ in range(20):
            found += policy.act([GRID.observation_space.sample()], *outcome)
            outcome = [0.0], [False], [False]
        return np.asarray(found).tolist()

    assert acted(temperature=1.0, seed=4) == acted(temperature=1.0, seed=4) != acted(temperature=1.0, seed=5)
    assert acted(temperature=1e-6, seed=4) == acted()
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        LDMPolicy(model, processor, [GRID], temperature=-1)


def recorded_in(environment: Spaces, processor, steps: int) -> Transitions:
    """Transitions drawn from an environment's spaces, an episode that ends with the last."""
    observed = processor.observation_layout(environment.observation_space)
    acted = processor.action_layout(environment.action_space)
    for seed, space in enumerate((environment.observation_space, environment.action_space)):
        space.seed(seed)
    flat = [observed.flatten(environment.observation_space.sample()) for _ in range(steps)]
    images = None if flat[0][1] is None else np.stack([image for _, image in flat])
    actions = np.stack([acted.flatten(environment.action_space.sample())[0] for _ in range(steps)])
    ends = np.arange(steps) == steps - 1
    rewards = np.linspace(-1, 1, steps, dtype=np.float32)
    return Transitions(np.stack([slots for slots, _ in flat]), images, actions, rewards, ends, ~ends & ends, None)


@pytest.mark.parametrize("environment", [CONTROL, GRID, CAMERA])
@pytest.mark.parametrize("steps", [3, 30])
def test_remembered_transitions_are_read_as_if_they_had_been_seen(model, processor, environment, steps):
    """The next logits are those of one forward pass over the recorded transitions, as many as fit, and the new one."""
    recorded = recorded_in(environment, processor, steps)
    policy = LDMPolicy(model, processor, [environment] * 2, context_length=16)
    seen = watched(policy)
    policy.remember(recorded)
    value = environment.observation_space.sample()
    policy.act([value] * 2)
    layouts = (
        processor.observation_layout(environment.observation_space),
        processor.action_layout(environment.action_space),
    )
    slots, image = layouts[0].flatten(value)
    rest = recorded[-15:]
    newest = Transitions(
        slots[None], None if image is None else image[None], rest.actions[:1], *np.zeros((3, 1), np.float32)
    )
    sequence = processor.align(Transitions.joined([rest, newest]), *layouts)
    with torch.no_grad():
        expected = model(**processor.collate([sequence])).logits[0, -1]
    assert len(sequence) == min(steps, 15) + 1
    for row in (0, 1):
        assert torch.allclose(seen[0][row], expected, atol=1e-4)
    policy.act([value] * 2, [0.0] * 2, [False] * 2, [False] * 2)


def test_what_cannot_be_remembered_is_refused(model, processor):
    recorded = recorded_in(CONTROL, processor, 4)
    with pytest.raises(ValueError, match="not those of the environments' spaces"):
        LDMPolicy(model, processor, [GRID]).remember(recorded)
    with pytest.raises(ValueError, match="different spaces"):
        LDMPolicy(model, processor, [CONTROL, GRID]).remember(recorded)
    policy = LDMPolicy(model, processor, [CONTROL])
    policy.act([CONTROL.observation_space.sample()])
    with pytest.raises(ValueError, match="before the first action"):
        policy.remember(recorded)
