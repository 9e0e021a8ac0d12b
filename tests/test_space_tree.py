"""One description of a space: that of workers and their surroundings, and the copy that is published with models."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.preprocessing import is_image_space

from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations, flat_space_json
from ldm_hf.env_registry.library import manifest
from ldm_hf.env_registry.providers.inprocess import TranslatedEnv
from ldm_hf.env_registry.worker.space_tree import (
    MAX_NUMBERS,
    SpaceError,
    array_format,
    describe,
    image_axes,
    is_byte_image,
    join,
    leaves,
    split,
)
from ldm_hf.errors import UnsupportedSpaceError
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_from_json, space_to_json, walk_space


class Camera(spaces.Box):
    """A library's own kind of Box."""


class Registry(spaces.Dict):
    """A library's own kind of Dict."""


SIZES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
ARRAYS = st.one_of(
    st.builds(
        lambda kind, low, high, shape, dtype: kind(low, high, shape, dtype),
        st.sampled_from([spaces.Box, Camera]),
        st.sampled_from([-np.inf, -3.0, 0.0]),
        st.sampled_from([np.inf, 4.0, 1.0]),
        SIZES,
        st.sampled_from([np.float32, np.float64]),
    ),
    st.builds(lambda shape, dtype: Camera(0, 1, shape, dtype), SIZES, st.sampled_from([np.uint8, bool, np.int64])),
    st.builds(lambda n: spaces.Box(np.arange(n), np.arange(n) + 2, dtype=np.int16), st.integers(1, 3)),
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-2, 2)),
    st.builds(
        lambda nvec: spaces.MultiDiscrete(nvec, start=np.ones_like(nvec)), st.lists(st.integers(1, 5), min_size=1)
    ),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=2))),
    st.builds(spaces.Text, st.integers(1, 5), charset=st.sampled_from(["ab", "xyz"])),
)
KEYS = st.sampled_from(["a", "b", "a.b", "10", "9", ""])
SPACES = st.recursive(
    ARRAYS,
    lambda parts: st.one_of(
        st.builds(
            lambda kind, found: kind(found), st.sampled_from([spaces.Dict, Registry]), st.dictionaries(KEYS, parts)
        ),
        st.lists(parts, max_size=3).map(spaces.Tuple),
        parts.map(spaces.Sequence),
        st.lists(parts, min_size=1, max_size=2).map(spaces.OneOf),
        st.builds(spaces.Graph, st.just(spaces.Box(0, 1, (2,))), st.sampled_from([None, spaces.Discrete(3)])),
    ),
    max_leaves=5,
)


@settings(max_examples=200)
@given(SPACES)
def test_both_describe_a_space_alike(space):
    described = describe(space)
    assert described == space_to_json(space) == json.loads(json.dumps(described))
    assert [(path, leaf) for path, leaf in leaves(described)] == walk_space(described)
    assert describe(space_from_json(described)) == described


@settings(max_examples=100)
@given(SPACES, st.integers(0, 99))
def test_values_come_apart_and_together(space, seed):
    described = describe(space)
    space.seed(seed)
    value = space.sample()
    parts = split(described, value)
    for (_, leaf), part in zip(leaves(described), parts, strict=True):
        found = array_format(leaf)
        assert found is None or (np.shape(part), np.asarray(part).dtype) == found
    again = join(described, iter(parts))
    assert all(one is other for one, other in zip(split(described, again), parts, strict=True))


class Old(gymnasium.Env):
    """Observes in a space of its library's own."""

    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


def test_a_kind_of_box_is_a_box_everywhere():
    space, plain = Camera(0, 255, (40, 40, 3), np.uint8), spaces.Box(0, 255, (40, 40, 3), np.uint8)
    assert describe(space) == space_to_json(space) == space_to_json(plain)
    assert SlotLayout.of(space).image is not None and SlotLayout.of(space) is SlotLayout.of(plain)


def test_keys_that_are_no_strings_are_refused_alike():
    space = spaces.Dict({"a": spaces.Tuple([spaces.Dict({0: spaces.Discrete(2)})])})
    reason = "a Dict space has the key 0: keys must be strings"
    with pytest.raises(SpaceError, match=reason):
        describe(space)
    with pytest.raises(UnsupportedSpaceError, match=reason):
        space_to_json(space)
    recipe = {"name": "x", "entry_point": {"call": f"{__name__}:Old", "args": [space]}, "default_max_episode_steps": 9}
    with pytest.raises(Exception, match=reason):
        TranslatedEnv({**recipe, "max_episode_steps": None, "kwargs": {}})


LIBRARIES = Path(manifest.__file__).parent / "manifests"


def catalogue():
    """Observation spaces of all environments that have been validated, without doubles."""
    found = {}
    for path in sorted(LIBRARIES.glob("*.json")):
        for environment in json.loads(path.read_text(encoding="utf-8"))["environments"]:
            if environment.get("observation_space"):
                found[json.dumps(environment["observation_space"])] = f"{path.stem}/{environment['name']}"
    return {name: json.loads(space) for space, name in found.items()}


def kinds(space):
    """What a model makes of each part of a space: the kind of its leaf, or None where it fits none."""
    found = {}
    for path, part in leaves(space):
        try:
            (found[path],) = (leaf.kind for leaf in SlotLayout.of(part, max_slots=MAX_NUMBERS).leaves)
        except UnsupportedSpaceError:
            found[path] = None
    return found


def test_every_environment_of_the_catalogue_is_described_alike_and_has_the_same_images():
    spaces_of = catalogue()
    assert len(spaces_of) > 300
    images = byte_images = 0
    for name, space in spaces_of.items():
        assert leaves(space) == walk_space(space), name
        if "Sequence" not in json.dumps(space) and "Graph" not in json.dumps(space):
            rebuilt = space_from_json(space)
            assert describe(rebuilt) == space_to_json(rebuilt), name
        found = kinds(space)
        for path, part in leaves(space):
            assert (found[path] == "image") == (image_axes(part) is not None), (name, path)
            images += found[path] == "image"
        try:
            flat = flat_space_json(space)
        except UnsupportedSpaceError:
            continue
        for path, part in leaves(flat):  # what Stable-Baselines3 convolves is an image to a model, too
            convolved = is_image_space(space_from_json(part))
            assert convolved == is_byte_image(part) and (not convolved or image_axes(part) is not None), (name, path)
            byte_images += convolved
    assert images > byte_images > 20


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([1, 3, 4, 5, 7, 16, 17, 40]), min_size=1, max_size=4),
    st.sampled_from([np.uint8, np.float32, bool, np.int64]),
    st.sampled_from([(0, 255), (0, 1), (1, 255)]),
    st.booleans(),
)
def test_there_is_one_definition_of_an_image(shape, dtype, bounds, bounded):
    low, high = (0, 1) if dtype is bool else bounds
    box = spaces.Box(low, high if bounded or dtype is not np.float32 else np.inf, tuple(shape), dtype)
    for space in (box, spaces.MultiBinary(shape)):
        described = describe(space)
        assert (kinds(described)[()] == "image") == (image_axes(described) is not None)
        flat = flat_space_json(described)
        assert is_image_space(space_from_json(flat)) == is_byte_image(flat)
        assert is_byte_image(flat) == is_byte_image(described)


def test_a_few_bytes_are_a_vector_to_every_reader():
    space = spaces.Box(0, 255, (5, 5, 3), np.uint8)  # 75 numbers: slots to a model
    flat = FlatObservations(space)
    space.seed(0)
    value = space.sample()
    assert flat.space == spaces.Box(0, 255, (75,), np.uint8)
    np.testing.assert_array_equal(flat.flatten(value), value.ravel())
    np.testing.assert_array_equal(flat.flatten(np.stack([value, value])), np.stack([value.ravel()] * 2))
    np.testing.assert_array_equal(SlotLayout.of(space).flatten(value)[0], value.ravel())
