"""The pool: who is compatible with what, held against the algorithms themselves."""

import inspect
import tempfile

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ldm_hf.dataset_builder.format.writer import ChunkRange
from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY, Candidate, algorithm_class, observation_bytes, pool
from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations, flat_space_json
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.reference.run import make_environments
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.errors import ConfigError, UnsupportedSpaceError
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_to_json

OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,)),
    "scalar": spaces.Box(-1, 1, ()),
    "discrete": spaces.Discrete(5, start=2),
    "several": spaces.MultiDiscrete([3, 4]),
    "bits": spaces.MultiBinary(3),
    "image": spaces.Box(0, 255, (40, 40, 3), np.uint8),
    "small image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "nested": spaces.Dict(
        {
            "deep": spaces.Tuple([spaces.Discrete(3), spaces.Dict({"a.b": spaces.Box(-1, 1, (2,))})]),
            "mission": spaces.Text(10),
            "view": spaces.Box(0, 255, (7, 7, 3), np.uint8),
        }
    ),
    "pair": spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11)]),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,)),
    "several": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
}


class Sampled(gymnasium.Env):
    """Samples of its spaces, in episodes of a few steps; actions must be in their space."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        value = np.asarray(action)
        assert isinstance(self.action_space, spaces.Box) or value.dtype == self.action_space.dtype
        assert self.action_space.contains(value.astype(self.action_space.dtype))
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.3), False, {}


def environments(observation_space, action_space, number=2):
    return Sb3VecEnv(vectorized(observation_space, action_space, number))


def vectorized(observation_space, action_space, number=2):
    makers = [lambda: Sampled(observation_space, action_space)] * number
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def fitting(candidate, observation_space):
    described = space_to_json(observation_space)
    return [space for space in ACTIONS.values() if candidate.incompatibility(described, space_to_json(space)) is None]


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_every_candidate_that_fits_can_be_built_saved_and_acts(kind, tmp_path):
    """Without training: algorithms make their networks, and a policy rebuilt from its files acts the same."""
    from ldm_hf.dataset_builder.reference.policy import _arguments, _policy_name

    fits = 0
    for name, candidate in pool().items():
        for action_space in fitting(candidate, OBSERVATIONS[kind])[:1]:
            venv = environments(OBSERVATIONS[kind], action_space)
            policy = candidate.policy or _policy_name(venv.observation_space)
            model = algorithm_class(candidate.algorithm)(policy, venv, device="cpu", **_arguments(candidate, venv, 100))
            reference = ReferencePolicy.of(model, candidate, None)
            reference.save(tmp_path / name)
            observations = venv.reset()
            acted = ReferencePolicy.load(tmp_path / name).act(observations)
            np.testing.assert_array_equal(acted, reference.act(observations), name)
            assert all(action_space.contains(one) for one in np.asarray(acted, action_space.dtype)), name
            fits += 1
    assert fits >= {"image": 15, "small image": 15, "nested": 12, "pair": 12}.get(kind, 16)


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_what_is_trained_is_recorded_and_labelled(kind, actions, tmp_path):
    envs = vectorized(OBSERVATIONS[kind], ACTIONS[actions])
    recording = Recording(tmp_path / "r", 16, envs)
    venv = Sb3VecEnv(Recorder(envs, 16, 0, recording))
    candidate = Candidate("A2C", {"n_steps": 8}, 2, normalize=kind in ("vector", "nested"))
    policy = train_policy(venv, candidate, timesteps=32, seed=0, progress=lambda done: None)
    layouts = SlotLayout.of(OBSERVATIONS[kind], max_slots=128), SlotLayout.of(ACTIONS[actions], role="action")
    source = RecordedRows(recording, *layouts, lambda seen: policy.act(venv.flat.flatten(seen)))
    found = source.transitions(ChunkRange(0, 0, 16))
    assert len(found) == 16 and found.observations.shape[1] == layouts[0].num_slots
    assert (found.images is not None) == (layouts[0].image is not None)
    np.testing.assert_array_equal(found.reference_actions.shape, found.actions.shape)
    assert sum(len(part.steps) for part in source.terminals()) == recording.terminated[:16].sum()


@pytest.mark.parametrize(
    "candidate", [Candidate("A2C", {"n_steps": 8}, 2), Candidate("DQN", {"learning_starts": 8}, 2)]
)
def test_training_leaves_nothing_in_the_temporary_directory(candidate, tmp_path, monkeypatch):
    """Where Stable-Baselines3 puts a folder for the logs of each algorithm, even if nothing is logged."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    venv = environments(OBSERVATIONS["vector"], ACTIONS["discrete"])
    train_policy(venv, candidate, timesteps=32, seed=0, progress=lambda done: None)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_says_why():
    vector, discrete = space_to_json(OBSERVATIONS["vector"]), space_to_json(ACTIONS["discrete"])
    box = space_to_json(ACTIONS["box"])

    def incompatibility(candidate, observed, acted):
        return pool()[candidate].incompatibility(space_to_json(observed), space_to_json(acted))

    assert pool()["SAC"].incompatibility(vector, discrete) == "SAC does not act in Discrete spaces"
    assert pool()["DQN"].incompatibility(vector, box) == "DQN does not act in Box spaces"
    assert pool()["A2C-normalized"].incompatibility(vector, discrete).startswith("state-dependent exploration")
    assert pool()["PPO-images"].incompatibility(vector, box) == "it is made for images"
    assert pool()["ARS"].incompatibility(space_to_json(OBSERVATIONS["image"]), discrete) == "ARS reads one vector"
    assert (
        pool()["ARS-linear"].incompatibility(space_to_json(OBSERVATIONS["discrete"]), discrete)
        == "a linear policy reads a Box"
    )
    seen = OBSERVATIONS["vector"]
    assert incompatibility("PPO", seen, spaces.Box(-np.inf, np.inf, (2,))) == "its actions have no bounds"
    assert (
        incompatibility("PPO", seen, spaces.Box(np.array([0, -np.inf]), np.array([1, 1])))
        == "its actions have no bounds"
    )
    assert (
        incompatibility("PPO", seen, spaces.Box(0, 5, (2,), np.int32))
        == "its actions are int32: policies act in real numbers"
    )
    assert incompatibility("PPO", seen, spaces.Discrete(3, start=1)) == "its actions do not start at 0"
    assert incompatibility("PPO", seen, spaces.MultiDiscrete([2, 3], start=[0, 1])) == "its actions do not start at 0"
    assert incompatibility("PPO", seen, spaces.MultiDiscrete([[2, 3], [2, 2]])) == "its actions have more than one axis"
    assert incompatibility("PPO", seen, spaces.MultiBinary([2, 2])) == "its actions have more than one axis"
    assert incompatibility("PPO", seen, spaces.Dict({"a": spaces.Discrete(2)})) == "PPO does not act in Dict spaces"
    assert "more than 4096 discrete values" in incompatibility("PPO", spaces.Discrete(10**6), ACTIONS["discrete"])
    assert "Sequence space" in incompatibility("PPO", spaces.Sequence(spaces.Discrete(2)), ACTIONS["discrete"])
    assert "nothing but texts" in incompatibility("PPO", spaces.Dict({"a": spaces.Text(3)}), ACTIONS["discrete"])


def test_when_candidates_begin_to_learn():
    """The defaults are those of the libraries themselves."""
    for algorithm, name in [("PPO", "n_steps"), ("A2C", "n_steps"), ("TRPO", "n_steps")]:
        assert pool()[algorithm].first_update == inspect.signature(algorithm_class(algorithm)).parameters[name].default
    for algorithm in OFF_POLICY:
        default = inspect.signature(algorithm_class(algorithm)).parameters["learning_starts"].default
        assert pool()[algorithm].first_update == default
        buffer = inspect.signature(algorithm_class(algorithm)).parameters["buffer_size"].default
        vector = space_to_json(OBSERVATIONS["vector"])
        assert pool()[algorithm].replay(vector, 10**9) == (buffer, 2 * 12 + 64)
    assert (pool()["PPO-long-rollouts"].first_update, pool()["TD3-noise"].first_update) == (16 * 1024, 10_000)


def test_the_pool_is_one_table_with_sources():
    algorithms = {candidate.algorithm for candidate in pool().values()}
    assert algorithms == {"A2C", "ARS", "DDPG", "DQN", "PPO", "QRDQN", "SAC", "TD3", "TQC", "TRPO"}
    for name, candidate in pool().items():
        assert candidate.source and candidate.name == name
        if name == candidate.algorithm:  # the library's defaults
            assert candidate.settings == {"num_envs": 1, "normalize": False} and "defaults of" in candidate.source
    with pytest.raises(ConfigError, match="no algorithm is called 'PPG'"):
        Candidate("PPG")
    assert observation_bytes(space_to_json(OBSERVATIONS["nested"])) == 8 + 2 * 4 + 7 * 7 * 3 + 8


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_flat_observations_are_in_their_space(kind):
    space = OBSERVATIONS[kind]
    space.seed(0)
    flat = FlatObservations(space)
    for _ in range(5):
        assert flat.space.contains(flat.flatten(space.sample())) or kind == "scalar"
    assert flat_space_json(space_to_json(flat.space)) == space_to_json(flat.space)
    if kind == "nested":
        assert set(flat.space.spaces) == {"deep/0", "deep/1/a_b", "view"}
    with pytest.raises(UnsupportedSpaceError, match="Graph space"):
        flat_space_json({"type": "Graph"})


def test_training_environments_are_flat():
    venv = Sb3VecEnv(make_environments("gymnasium/Blackjack-v1", 2))
    observations = venv.reset()
    assert {key: part.shape for key, part in observations.items()} == {"0": (2,), "1": (2,), "2": (2,)}
    venv.close()
