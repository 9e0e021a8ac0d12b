"""Several rollouts in one forward pass: each gets what it would get alone."""

import numpy as np
import pytest
import torch

from ldm_hf.modeling import LDMPolicy
from ldm_hf.modeling.joint_ldm import JointStep
from ldm_hf.modeling.steps_ldm import packed
from sequences import CAMERA, CONTROL, GRID, Spaces

ROLLOUTS = [[CONTROL], [CAMERA, GRID], [GRID], [CONTROL, CONTROL, CAMERA], [GRID]]
OPTIONS = [{}, {}, {"temperature": 1.0, "seed": 3}, {"exploration_temperature": 2.0, "seed": 4}, {"context_length": 5}]


class Recorded:
    """Random observations and outcomes, the same for everyone who asks."""

    def __init__(self, environments: list[Spaces], seed: int):
        self.spaces = [environment.observation_space for environment in environments]
        for number, space in enumerate(self.spaces):
            space.seed(seed + number)
        self.generator = np.random.default_rng(seed)

    def step(self, first: bool) -> tuple:
        seen = [space.sample() for space in self.spaces]
        if first:
            return (seen,)
        ended = self.generator.random((2, len(seen))) < 0.2
        rewards = self.generator.normal(size=len(seen)).tolist()
        return seen, rewards, ended[0].tolist(), (ended[1] & ~ended[0]).tolist()


def policies(model, processor):
    return [LDMPolicy(model, processor, envs, **some) for envs, some in zip(ROLLOUTS, OPTIONS, strict=True)]


def compare(model, processor, steps: int) -> list[int]:
    """Step rollouts together, each at its own times, beside the same alone; returns how many took part in each step."""
    together, alone = policies(model, processor), policies(model, processor)
    step, generator, sizes = JointStep(model), np.random.default_rng(1), []
    streams = [Recorded(envs, number) for number, envs in enumerate(ROLLOUTS)]
    lengths = [0] * len(ROLLOUTS)
    for _ in range(steps):
        chosen = np.flatnonzero(generator.random(len(ROLLOUTS)) < 0.6).tolist() or [0]
        seen = {number: streams[number].step(lengths[number] == 0) for number in chosen}
        for number in chosen:
            together[number].observe(*seen[number])
            lengths[number] += 1
        acted = step([together[number] for number in chosen])
        for number, actions in zip(chosen, acted, strict=True):
            expected = alone[number].act(*seen[number])
            for one, other, environment in zip(actions, expected, ROLLOUTS[number], strict=True):
                assert environment.action_space.contains(one)
                assert np.array_equal(one, other) and type(one) is type(other)
        sizes.append(len(chosen))
    return sizes


def test_each_rollout_gets_what_it_would_get_alone(model, processor):
    """Contexts of 16, and one of 5, are rebuilt several times, at different steps of the whole."""
    sizes = compare(model, processor, 60)
    assert {1, 2, 5} <= set(sizes)


def test_with_experts(mixture_model, processor):
    compare(mixture_model, processor, 25)


def test_the_model_itself_is_as_it_was(model, processor):
    before = model.config._attn_implementation
    parameters = {id(parameter) for parameter in model.parameters()}
    step = JointStep(model)
    assert model.config._attn_implementation == before != step._model.config._attn_implementation
    assert {id(parameter) for parameter in step._model.parameters()} == parameters


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu(model, processor):
    import copy

    compare(copy.deepcopy(model).to("cuda"), processor, 25)


def test_a_packed_model_is_packed_once(model, processor, monkeypatch):
    monkeypatch.setattr("ldm_hf.modeling.steps_ldm._LARGE", 1)
    acting = packed(model)
    assert packed(acting) is acting
    policies = [LDMPolicy(acting, processor, [GRID]) for _ in range(2)]
    step = JointStep(acting)
    layers = [each.backbone.layers[0].mlp.up_proj for each in (acting, step._model, *(one.model for one in policies))]
    assert len({id(layer) for layer in layers}) == 1
