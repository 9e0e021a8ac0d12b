"""What a run costs: time, memory and storage, from measured rates."""

import functools
import json
import math
from importlib import resources

from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY, Candidate, observation_bytes, pool
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.env_registry.worker.space_tree import is_byte_image, leaves
from ldm_hf.modeling.spaces_ldm import SlotLayout

_PICTURE_BYTES = 200  # a 64 x 64 image in a file: 37 to 196 measured on three Atari games
_PIXELS = 64 * 64
_NUMBER_BYTES = 3.0  # a float32 after compression
_ROLLOUT_START, _ROLLOUT_STEP = 10.0, 0.0004  # seconds: processes and the score; acting, recording and writing
_BASE_MEMORY = 700 * 2**20  # of a process that trains, with the process of its environments


def run_seconds(environment: EnvironmentSpec, candidate: Candidate, transitions: int) -> float:
    """Estimate of how long a core trains, from the environment's measured rate and the algorithm's measured costs.

    Costs were measured on vectors and on images of 64 x 64 pixels; for other images they are scaled by the number of pixels.
    """
    pixels = sum(
        part["shape"][0] * part["shape"][1] for _, part in leaves(environment.observation_space) if is_byte_image(part)
    )
    costs = _costs()[candidate.name if candidate.name in _costs() else _nearest(candidate)]
    image = costs.get("image", 0.0)
    vector = costs.get("vector", image / 10)
    cost = vector + max(image - vector, 0.0) * min(pixels / _PIXELS, 4.0)
    return transitions * (cost + 1 / max(environment.steps_per_second, 1.0))


def rollout_seconds(environment: EnvironmentSpec, transitions: int) -> float:
    """Estimate of how long a core rolls out a policy, from the environment's measured rate."""
    return _ROLLOUT_START + transitions * (_ROLLOUT_STEP + 1 / max(environment.steps_per_second, 1.0))


def run_bytes(environment: EnvironmentSpec, transitions: int) -> float:
    """Estimate of what a run takes on disk."""
    observation = SlotLayout.of(environment.observation_space)
    numbers = observation.num_slots + 2 * SlotLayout.of(environment.action_space, role="action").num_slots + 1
    return transitions * (numbers * _NUMBER_BYTES + (_PICTURE_BYTES if observation.image is not None else 0))


def run_memory(environment: EnvironmentSpec, candidate: Candidate, transitions: int) -> int:
    """Estimate of what a run takes in memory: replay buffers are most of it."""
    size = observation_bytes(environment.observation_space)
    image = has_image(environment)
    rollout = candidate.num_envs * candidate.hyperparameters.get("n_steps", 2048) * size
    replay = math.prod(candidate.replay(environment.observation_space, transitions))
    return _BASE_MEMORY + int(2 * rollout + replay) + (300 * 2**20 if image else 0)


def has_image(environment: EnvironmentSpec) -> bool:
    """Whether policies read an image there."""
    return any(is_byte_image(part) for _, part in leaves(environment.observation_space))


def _nearest(candidate: Candidate) -> str:
    """Of the candidates whose costs were measured, the one of the same algorithm that is most alike in what costs time."""
    known = [other for name, other in pool().items() if other.algorithm == candidate.algorithm and name in _costs()]
    wanted = _work(candidate)
    distances = {
        other.name: sum(abs(math.log(one / two)) for one, two in zip(_work(other), wanted, strict=True))
        for other in known
    }
    return min(distances, key=lambda name: distances[name])


def _work(candidate: Candidate) -> tuple[float, float]:
    """Updates for each transition, and transitions that are made together."""
    given = candidate.hyperparameters
    if candidate.algorithm in OFF_POLICY:
        every, updates = (
            given.get("train_freq", 4 if "DQN" in candidate.algorithm else 1),
            given.get("gradient_steps", 1),
        )
        return (1.0 if updates == -1 or not isinstance(every, int) else updates / every), candidate.num_envs
    epochs = given.get("n_epochs", 10 if candidate.algorithm == "PPO" else 1)
    rollout = max(1, candidate.first_update)
    batch = min(rollout, given.get("batch_size", 64)) if candidate.algorithm == "PPO" else rollout
    return epochs / batch, candidate.num_envs


@functools.cache
def _costs() -> dict[str, dict[str, float]]:
    """Seconds that a candidate takes for a transition beside its environment, on one core: ``step_costs.json``."""
    text = resources.files("ldm_hf.dataset_builder.build").joinpath("step_costs.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["seconds"])
