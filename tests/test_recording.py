"""What is recorded is what the environment gave and was given, byte for byte, whatever adapts it to a learner."""

import itertools
import shutil

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_hf.dataset_builder.format.writer import ChunkRange
from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations
from ldm_hf.dataset_builder.reference.recorder import EpisodeRecorder, Recorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.env_registry.worker.space_tree import array_format, at, describe, leaves
from ldm_hf.errors import ConfigError, UnsupportedSpaceError
from ldm_hf.modeling.spaces_ldm import SlotLayout

KEYS = st.sampled_from(["a", "b", "a.b", "a_b", "a/b", "0", "1", "a/0", "", "a_b_", "\N{SNOWMAN}"])
ARRAYS = st.one_of(
    st.builds(
        lambda shape, dtype: spaces.Box(-7, 100, tuple(shape), dtype),
        st.lists(st.integers(1, 3), max_size=3),
        st.sampled_from([np.float32, np.float64, np.int8, np.int64]),
    ),
    st.builds(lambda shape: spaces.Box(0, 255, tuple(shape), np.uint8), st.lists(st.integers(1, 3), max_size=2)),
    st.builds(spaces.Discrete, st.integers(1, 2000), start=st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
)
LEAVES = st.one_of(ARRAYS, ARRAYS, ARRAYS, st.builds(spaces.Text, st.integers(1, 5)))


def nested(leaves):
    return st.recursive(
        leaves,
        lambda parts: st.one_of(
            st.dictionaries(KEYS, parts, min_size=1, max_size=4).map(spaces.Dict),
            st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
        ),
        max_leaves=6,
    )


class Remembering(gymnasium.Env):
    """Gives random values, and keeps what it gave and got; its arrays are its own, and used again."""

    def __init__(self, observation_space, action_space, lengths):
        self.observation_space, self.action_space = observation_space, action_space
        self.lengths, self.episode, self.count = lengths, -1, 0
        self.given, self.got, self.rewards, self.over = [], [], [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.got.append(action)
        self.count += 1
        over = self.count == self.lengths[self.episode % len(self.lengths)]
        self.rewards.append(np.float32(self.np_random.normal()))
        self.over.append((over and self.episode % 2 == 0, over))  # even episodes end in both ways at once
        return self._observe(), float(self.rewards[-1]), *self.over[-1], {}

    def _observe(self):
        self.given.append(self.observation_space.sample())
        return self.given[-1]

    def expected(self, rows):
        """What rows show, and what ended episodes, from what was given: one observation per reset and one per step."""
        shown, ended, position = [], [], 0
        for row in range(rows):
            shown.append(self.given[position])
            position += 1
            if self.over[row][1]:
                ended.append(self.given[position])
                position += 1
        return shown, ended


def arrays(space):
    return [(path, array_format(leaf)) for path, leaf in leaves(describe(space)) if array_format(leaf) is not None]


def same(space, found, values):
    """Whether a batch holds values, byte for byte, but for its texts."""
    for path, (shape, dtype) in arrays(space):
        expected = np.stack([np.asarray(at(value, path), dtype).reshape(shape) for value in values])
        part = at(found, path)
        assert part.dtype == dtype and part.tobytes() == expected.tobytes(), path


def check(recorder, recording, environments, rows):
    ends = {}
    for stream, environment in enumerate(environments):
        shown, ended = environment.expected(rows)
        same(environment.observation_space, recording.observation_batch(stream, 0, rows), shown)
        same(environment.action_space, recording.action_batch(stream, 0, rows), environment.got[:rows])
        np.testing.assert_array_equal(recording.rewards[:rows, stream], environment.rewards[:rows])
        terminated, over = np.array(environment.over[:rows]).T
        np.testing.assert_array_equal(recording.terminated[:rows, stream], terminated)
        np.testing.assert_array_equal(recording.truncated[:rows, stream], over & ~terminated)
        ends |= {(stream, int(row)): value for row, value in zip(np.flatnonzero(over), ended, strict=True)}
    assert sorted(recording.terminals) == sorted(ends)
    if ends:
        found = recording.terminal_batch(0, len(ends))
        same(environments[0].observation_space, found, [ends[place] for place in recording.terminals])


@settings(max_examples=60)
@given(nested(LEAVES), nested(ARRAYS), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_any_learner_is_recorded(tmp_path_factory, observation_space, action_space, number, lengths):
    if not arrays(observation_space):
        return
    envs = SyncVectorEnv(
        [lambda: Remembering(observation_space, action_space, lengths)] * number, autoreset_mode=AutoresetMode.SAME_STEP
    )
    folder = tmp_path_factory.mktemp("r")
    recording = Recording(folder / "recording", 9, envs)
    recorder = Recorder(envs, 9, 4, recording)
    recorder.reset(seed=0)
    for _ in range(9):
        recorder.step(envs.action_space.sample())
    check(recorder, recording, envs.envs, 9)
    recording.close()
    shutil.rmtree(folder)


@settings(max_examples=60)
@given(nested(LEAVES), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_what_stable_baselines_reads_changes_nothing_that_is_recorded(tmp_path_factory, observation_space, lengths):
    try:
        FlatObservations(observation_space)
    except UnsupportedSpaceError:
        return
    makers = [lambda: Remembering(observation_space, spaces.Discrete(3), lengths)] * 2
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    folder = tmp_path_factory.mktemp("r")
    recording = Recording(folder / "recording", 9, envs)
    recorder = Recorder(envs, 9, 4, recording)
    venv = Sb3VecEnv(recorder)
    venv.seed(0)
    seen = [venv.reset()]
    for step in range(9):
        seen.append(venv.step(np.array([step % 3, 1]))[0])
    check(recorder, recording, envs.envs, 9)
    # What the learner saw at a row is the flat form of what is recorded there: so the final policy labels what it would see.
    for stream in range(2):
        flat = venv.flat.flatten(recording.observation_batch(stream, 0, 9))
        for row in range(9):
            for key in flat if isinstance(flat, dict) else [None]:
                one, other = (flat, seen[row]) if key is None else (flat[key], seen[row][key])
                np.testing.assert_array_equal(one[row], other[stream])
    recording.close()
    shutil.rmtree(folder)


COLLIDING = {
    "dots": spaces.Dict({"a.b": spaces.Box(-99, 99, (1,)), "a_b": spaces.Box(-99, 99, (1,))}),
    "slashes": spaces.Dict({"a/b": spaces.Box(-99, 99, (1,)), "a": spaces.Dict({"b": spaces.Box(-99, 99, (1,))})}),
    "numbers": spaces.Dict({"a": spaces.Tuple([spaces.Discrete(5)]), "a/0": spaces.Discrete(5)}),
    "underscores": spaces.Dict({key: spaces.Discrete(9) for key in ("a.b", "a_b", "a_b_", "a__b")}),
}


@pytest.mark.parametrize("kind", COLLIDING)
def test_keys_that_look_alike_stay_apart(kind):
    space = COLLIDING[kind]
    space.seed(0)
    flat, layout = FlatObservations(space), SlotLayout.of(space)
    assert len(flat.space.spaces) == layout.num_slots
    for _ in range(10):
        value = space.sample()
        numbers = sorted(float(np.ravel(part)[0]) for part in flat.flatten(value).values())
        assert numbers == sorted(layout.flatten(value)[0].tolist())


def test_keys_of_a_dict_are_strings():
    space = spaces.Dict({0: spaces.Discrete(2), 1: spaces.Discrete(3)})
    with pytest.raises(UnsupportedSpaceError, match="a Dict space has the key 0: keys must be strings"):
        SlotLayout.of(space)
    with pytest.raises(UnsupportedSpaceError, match="a Dict space has the key 0: keys must be strings"):
        FlatObservations(space)


def test_an_interrupted_step_is_not_recorded(tmp_path):
    class Interrupted(Remembering):
        def step(self, action):
            if len(self.got) == 5 and not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return super().step(action)

        interrupted = False

    envs = SyncVectorEnv(
        [lambda: Interrupted(spaces.Box(-1, 1, (2,)), spaces.Discrete(3), [50])], autoreset_mode=AutoresetMode.SAME_STEP
    )
    recording = Recording(tmp_path / "r", 9, envs)
    recorder = Recorder(envs, 20, 50, recording)
    recorder.reset(seed=0)
    for step in itertools.count():
        try:
            recorder.step(np.array([step % 3]))
        except KeyboardInterrupt:
            break
    assert recording.lengths.tolist() == [5]
    recorder.reset()
    recorder.step(np.array([2]))
    (environment,) = envs.envs
    assert recording.truncated[:6, 0].tolist() == [False] * 4 + [True, False]
    same(
        environment.observation_space,
        recording.observation_batch(0, 0, 6),
        [*environment.given[:5], environment.given[6]],
    )
    assert recording.action_batch(0, 0, 6).tolist() == [0, 1, 2, 0, 1, 2]


def test_steps_that_are_no_transitions_are_refused(tmp_path):
    envs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigError, match=r"autoreset_mode='SameStep' are recorded, got <AutoresetMode.NEXT_STEP"):
        Recorder(envs, 5, 5)
    envs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ConfigError, match="without a reset_mask"):
        Recorder(envs, 5, 5).reset(options={"reset_mask": np.array([True])})


def test_a_single_environment_is_recorded_alike(tmp_path):
    environment = Remembering(COLLIDING["slashes"], spaces.Box(-1, 1, (2,)), [3, 4])
    recording = Recording(tmp_path / "r", 0, environment)
    recorded = EpisodeRecorder(environment, recording)
    for _ in range(3):
        recorded.reset()
        over = False
        while not over:
            _, _, terminated, truncated, _ = recorded.step(environment.action_space.sample())
            over = terminated or truncated
    check(recorded, recording, [environment], 10)
    layouts = SlotLayout.of(environment.observation_space), SlotLayout.of(environment.action_space, role="action")
    rows = RecordedRows(recording, *layouts).transitions(ChunkRange(0, 0, 10))
    np.testing.assert_array_equal(rows.reference_actions, rows.actions)
    np.testing.assert_array_equal(rows.actions, np.stack(environment.got))
