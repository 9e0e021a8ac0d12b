"""The network and the rollout: nothing but speed may depend on caches, padding or the rest of the batch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy
from ldm_hf.modeling.processing_ldm import TokenSequence


class Spaces:
    """What a policy needs of an environment."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = action_space


CONTROL = Spaces(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (2,)))
GRID = Spaces(spaces.Discrete(48), spaces.Discrete(4))
CAMERA = Spaces(
    spaces.Dict({"camera": spaces.Box(0, 255, (64, 64, 3), np.uint8), "speed": spaces.Box(-1, 1, (1,))}),
    spaces.MultiDiscrete([3, 2]),
)


def tokens(processor, environment: Spaces, length: int, seed: int) -> TokenSequence:
    """A random aligned sequence of an environment, with labels."""
    environment.observation_space.seed(seed)
    environment.action_space.seed(seed)
    generator = np.random.default_rng(seed)
    observation = processor.observation_layout(environment.observation_space)
    action = processor.action_layout(environment.action_space)
    observed = [observation.flatten(environment.observation_space.sample()) for _ in range(length)]
    acted = [action.flatten(environment.action_space.sample())[0] for _ in range(length)]
    dones = generator.integers(0, 3, length)
    dones[0] = 3
    return TokenSequence(
        observation,
        action,
        np.stack([slots for slots, _ in observed]),
        None if observation.image is None else np.stack([image for _, image in observed]),
        np.stack(acted),
        generator.normal(size=length).astype(np.float32),
        dones,
        np.stack(acted[::-1]),
    )


def without_labels(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def allowed(logits, row, batch):
    """The logits of one row that are not masked, slot by slot."""
    ranges = batch["action_bins"][row].tolist()
    kinds = batch["action_kinds"][row].tolist()
    return [logits[row, :, slot, low : high + 1] for slot, (low, high) in enumerate(ranges) if kinds[slot]]


@torch.no_grad()
def test_batch_composition_and_padding_change_nothing(model, processor):
    parts = [tokens(processor, CONTROL, 9, 1), tokens(processor, GRID, 5, 2), tokens(processor, CAMERA, 7, 3)]
    together = processor.collate(parts)
    logits = model(**without_labels(together)).logits
    for row, part in enumerate(parts):
        alone = processor.collate([part])
        expected = model(**without_labels(alone)).logits
        for found, wanted in zip(allowed(logits, row, together), allowed(expected, 0, alone), strict=True):
            torch.testing.assert_close(
                found[: len(part)], wanted[0] if wanted.ndim == 3 else wanted, atol=1e-5, rtol=1e-5
            )


@torch.no_grad()
def test_loss_is_the_mean_over_transitions_of_the_mean_over_slots(model, processor):
    parts = [tokens(processor, CONTROL, 9, 1), tokens(processor, GRID, 5, 2)]
    batch = processor.collate(parts)
    logits = model(**without_labels(batch)).logits
    total = 0.0
    for row, part in enumerate(parts):
        for step in range(len(part)):
            slots = part.action_layout.num_slots
            chosen = [
                logits[row, step, slot].log_softmax(-1)[batch["labels"][row, step, slot]] for slot in range(slots)
            ]
            total -= float(sum(chosen)) / slots
    assert model(**batch).loss.item() == pytest.approx(total / 14, rel=1e-5)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_a_loss_in_pieces_has_the_gradients_of_a_whole_one(model, processor, monkeypatch):
    batch = processor.collate([tokens(processor, place, 6, seed) for seed, place in enumerate((CONTROL, GRID, CAMERA))])
    labels = batch["labels"]
    logits = model(**without_labels(batch)).logits.float().log_softmax(-1)
    picked = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(labels < 0, 0)
    whole = -(picked.sum(-1) / (labels >= 0).sum(-1).clamp(min=1)).sum() / (labels >= 0).any(-1).sum()
    expected = gradients_of(model, whole)
    for positions in (8192, 6, 1):  # all rows at a time, and one
        monkeypatch.setattr("ldm_hf.modeling.modeling_ldm._LOSS_POSITIONS", positions)
        loss = model(**batch).loss
        torch.testing.assert_close(loss, whole, atol=1e-6, rtol=1e-6)
        found = gradients_of(model, loss)
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_pieces_of_a_batch_have_the_gradients_of_the_whole_one(model, processor):
    """Also where the pieces have unequal numbers of transitions."""
    parts = [tokens(processor, CONTROL, 9, 1), tokens(processor, GRID, 5, 2), tokens(processor, CAMERA, 7, 3)]
    whole = model(**processor.collate(parts)).loss
    expected = gradients_of(model, whole)
    losses = [model(**processor.collate(piece), num_items_in_batch=21).loss for piece in (parts[:1], parts[1:])]
    torch.testing.assert_close(sum(losses), whole, atol=1e-6, rtol=1e-6)
    found = gradients_of(model, sum(losses))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_logits_are_not_kept_for_the_backward_pass(model, processor):
    batch = processor.collate([tokens(processor, CONTROL, 16, seed) for seed in range(4)])
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        model(**batch).loss.backward()
    positions = batch["labels"].shape[0] * batch["labels"].shape[1]
    outside = [tensor for tensor in kept if tensor.numel() >= positions * model.config.num_bins]
    assert kept and not outside


@torch.no_grad()
def test_the_first_token_ignores_what_came_before(model, processor):
    first = tokens(processor, CONTROL, 4, 1)
    batch = without_labels(processor.collate([first]))
    changed = {
        **batch,
        "previous_actions": batch["previous_actions"].clone(),
        "previous_rewards": batch["previous_rewards"] + 0,
    }
    changed["previous_actions"][:, 0] = 1.7
    changed["previous_rewards"][:, 0] = 99
    torch.testing.assert_close(model(**batch).logits, model(**changed).logits, atol=0, rtol=0)
    changed["previous_rewards"][:, 1] = 99
    assert not torch.equal(model(**batch).logits, model(**changed).logits)


@torch.no_grad()
def test_the_future_does_not_reach_the_past(model, processor):
    batch = without_labels(processor.collate([tokens(processor, CONTROL, 8, 1)]))
    changed = {**batch, "observations": batch["observations"].clone()}
    changed["observations"][:, 5:] = 0.5
    before, after = model(**batch).logits, model(**changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_only_allowed_bins_can_be_chosen(model, processor):
    batch = processor.collate([tokens(processor, CAMERA, 6, 1)])
    with torch.no_grad():
        choice = model(**without_labels(batch)).logits.argmax(-1)
    assert (choice[..., 0] <= 2).all() and (choice[..., 1] <= 1).all()


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


def test_cached_rollout_equals_recomputation_at_every_step(model, processor):
    environments = [CONTROL, GRID, CAMERA]
    policy = LDMPolicy(model, processor, environments, context_length=7)
    seen = []
    forward = policy._forward
    policy._forward = lambda position: seen.append(forward(position)) or seen[-1]
    by_hand = [Recompute(model, processor, environment, 7) for environment in environments]
    for environment in environments:
        environment.observation_space.seed(5)
    generator = np.random.default_rng(0)
    slots = [
        np.zeros(processor.action_layout(environment.action_space).num_slots, np.float32)
        for environment in environments
    ]
    outcome = None
    for step in range(30):  # The context of 7 is rebuilt six times.
        observations = [environment.observation_space.sample() for environment in environments]
        actions = policy.act(observations, *(outcome or ()))
        for row, (environment, reference) in enumerate(zip(environments, by_hand, strict=True)):
            reward, done = (
                (0.0, 3) if outcome is None else (outcome[0][row], 1 * outcome[1][row] or 2 * outcome[2][row])
            )
            expected = reference.logits(observations[row], slots[row], reward, done)
            found = seen[-1][row, : len(expected)]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=f"at step {step}")
            assert environment.action_space.contains(actions[row])
            slots[row] = processor.action_layout(environment.action_space).flatten(actions[row])[0]
        ended = generator.random((2, 3)) < 0.2
        outcome = (generator.normal(size=3).tolist(), ended[0].tolist(), (ended[1] & ~ended[0]).tolist())


def test_finished_rows_leave_without_a_trace(model, processor):
    together = LDMPolicy(model, processor, [GRID, CAMERA, CONTROL])
    alone = LDMPolicy(model, processor, [CONTROL])
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


@pytest.mark.parametrize(("name", "millions"), [("32m", 32), ("70m", 70), ("308m", 308), ("736m", 736)])
def test_presets_have_the_paper_s_sizes(name, millions):
    with torch.device("meta"):
        parameters = LDMModel(LDMConfig.preset(name)).num_parameters()
    assert parameters / 1e6 == pytest.approx(millions, rel=0.03)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="32m, 70m, 308m"):
        LDMConfig.preset("7b")


LOAD = """
import sys
{prelude}
import torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({folder!r}, trust_remote_code={remote})
processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code={remote})
torch.save(model(**torch.load({inputs!r})).logits, {output!r})
from types import SimpleNamespace
space = {{"type": "Discrete", "n": 48, "start": 0}}
policy = model.policy(processor, [SimpleNamespace(observation_space=space, action_space=space)])
print(type(model).__module__, *[int(policy.act([7])[0])])
"""


@pytest.mark.parametrize(
    ("prelude", "remote", "module"),
    [
        ("import ldm_hf", False, "ldm_hf.modeling.modeling_ldm"),
        ("sys.modules['ldm_hf'] = None  # as if it were not installed", True, "transformers_modules"),
    ],
    ids=["with the package", "with remote code alone"],
)
def test_a_new_process_loads_the_same_model(model, processor, tmp_path, prelude, remote, module):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = without_labels(processor.collate([tokens(processor, CAMERA, 6, 1), tokens(processor, CONTROL, 6, 2)]))
    inputs, output = tmp_path / "inputs.pt", tmp_path / "logits.pt"
    torch.save(dict(batch), inputs)
    program = LOAD.format(prelude=prelude, remote=remote, folder=str(tmp_path), inputs=str(inputs), output=str(output))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(module)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(output), model(**batch).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("auto", "found"), [("AutoModel", "LDMModel"), ("AutoProcessor", "LDMProcessor"), ("AutoConfig", "LDMConfig")]
)
def test_each_auto_class_may_come_first(model, processor, tmp_path, auto, found):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    program = (
        f"import ldm_hf, transformers; print(transformers.{auto}.from_pretrained({str(tmp_path)!r}).__class__.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == found, done.stderr


def test_a_rollout_takes_its_memory_once(model, processor):
    """Steps and rebuilds write into the same memory; the attention sees what is filled."""
    policy = LDMPolicy(model, processor, [CONTROL, GRID], context_length=8)
    observations = [np.zeros(3, np.float32), 5]
    policy.act(observations)
    layer = policy._cache.layers[0]
    places = [memory.data_ptr() for memory in layer._memory]
    lengths = [policy._cache.get_seq_length()]
    for _ in range(12):
        policy.act(observations, [0.0, 0.0], [False, False], [False, False])
        lengths.append(policy._cache.get_seq_length())
        assert layer.keys.shape[2] == lengths[-1]
    assert lengths == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5]
    assert [memory.data_ptr() for memory in layer._memory] == places
    assert layer._memory[0].shape[2] == 8
    policy.select([1])
    assert layer.keys.shape[:1] == (1,) and policy._cache.get_seq_length() == 5
