"""Spaces as JSON and as slots."""

import json
import math

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from ldm_hf.errors import InvalidValueError, UnsupportedSpaceError
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_from_json, space_to_json

SMALL = st.lists(st.integers(0, 3), max_size=2).map(tuple)


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int64", "uint32", "bool"]))
    shape = draw(SMALL)
    if dtype == "bool":
        return spaces.Box(0, 1, shape, np.bool_)
    if dtype.startswith("float"):
        # Bounds that every float type holds, and none at all.
        low = draw(st.sampled_from([-math.inf, -256.0, 0.5]))
        return spaces.Box(low, draw(st.sampled_from([math.inf, 256.0, 0.75])), shape, np.dtype(dtype).type)
    # Gymnasium cannot sample from the whole of int64.
    limits = (-(2**62), 2**62) if dtype == "int64" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low = draw(st.sampled_from([limits[0], 0]))
    return spaces.Box(low, draw(st.sampled_from([limits[1], 100])), shape, np.dtype(dtype).type)


LEAVES = st.one_of(
    boxes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5000), st.integers(-9, 9)),
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.just(spaces.MultiDiscrete([[2, 3], [4, 5]])),
    st.integers(1, 4).map(spaces.MultiBinary),
    st.just(spaces.MultiBinary([2, 2])),
)
SPACES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abc"), parts, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=4,
)


@given(SPACES)
def test_json_brings_back_the_same_space(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False))) == space


def layout_of(space) -> SlotLayout | None:
    try:
        return SlotLayout.of(space)
    except UnsupportedSpaceError as error:
        assert "empty" in str(error)
        return None


def same(found, expected) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert np.asarray(found).shape == np.asarray(expected).shape
        assert np.asarray(found).dtype == np.asarray(expected).dtype
        # Slots are float32: exact for discrete values, to 24 bits for others.
        np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=1e-6)


@given(SPACES, st.integers(0, 2**31))
def test_slots_bring_back_the_value(space, seed):
    layout = layout_of(space)
    if layout is None:
        return
    space.seed(seed)
    value = space.sample()
    slots, image = layout.flatten(value)
    assert slots.shape == (layout.num_slots,) and slots.dtype == np.float32 and image is None
    assert (slots[layout.kinds == 2] < 1024).all() and (slots[layout.kinds == 2] >= 0).all()
    same(layout.unflatten(slots), value)


@given(SPACES)
def test_a_batch_is_its_rows(space):
    layout = layout_of(space)
    if layout is None:
        return
    space.seed(0)
    values = [space.sample() for _ in range(3)]

    def stack(parts):
        if isinstance(parts[0], dict):
            return {key: stack([part[key] for part in parts]) for key in parts[0]}
        if isinstance(parts[0], tuple):
            return tuple(stack(list(part)) for part in zip(*parts, strict=True))
        return np.stack(parts)

    together, _ = layout.flatten(stack(values), batched=True)
    np.testing.assert_array_equal(together, np.stack([layout.flatten(value)[0] for value in values]))


@pytest.mark.parametrize(
    ("space", "kinds"),
    [
        (spaces.Box(-1, 1, (2, 2)), [1, 1, 1, 1]),
        (spaces.Box(0, 255, (128,), np.uint8), [1] * 128),
        (spaces.Box(0, 1, (3,), np.bool_), [2, 2, 2]),
        (spaces.Discrete(1024), [2]),
        (spaces.Discrete(1025), [2, 2]),
        (spaces.Discrete(1024**2 + 1), [2, 2, 2]),
        (spaces.MultiDiscrete([3, 2000]), [2, 2, 2]),
        (spaces.MultiBinary(3), [2, 2, 2]),
        (spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(-1, 1, ())}), [1, 2]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (0,))]), [2, 1, 1]),
    ],
    ids=str,
)
def test_slots_by_hand(space, kinds):
    assert SlotLayout.of(space).kinds.tolist() == kinds


def test_digits_by_hand():
    layout = SlotLayout.of(spaces.Discrete(5000, start=100))
    assert layout.flatten(100 + 4000)[0].tolist() == [3, 928]  # 3 x 1024 + 928
    assert layout.unflatten(np.array([3, 928])) == 4100


WIDE = spaces.Dict({"a": spaces.Box(-1, 1, (200,)), "b": spaces.Discrete(2)})


def test_keys_in_any_order_are_the_same_layout():
    first = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(9)})
    data = space_to_json(first)
    data["spaces"] = dict(reversed(data["spaces"].items()))
    assert SlotLayout.of(data).flatten({"b": 8, "a": 1})[0].tolist() == [1, 8]
    assert SlotLayout.of(data) is SlotLayout.of(first)


@pytest.mark.parametrize(
    ("space", "role", "message"),
    [
        (spaces.Box(-1, 1, (129,)), "observation", "takes 129 slots; the limit is 128"),
        (spaces.Box(-1, 1, (29,)), "action", "takes 29 slots; the limit is 28"),
        (WIDE, "observation", r"201 slots \(space\['a'\] alone takes 200\)"),
        (spaces.Discrete(1025), "action", "1025 choices; an action slot has at most 1024"),
        (spaces.Text(5), "observation", "space is a Text space"),
        (spaces.Dict({"m": spaces.Sequence(spaces.Discrete(2))}), "observation", r"space\['m'\] is a Sequence space"),
        (spaces.Box(-np.inf, np.inf, (32, 32, 3)), "observation", "takes 3072 slots"),
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), "action", "actions are slots only"),
        (spaces.Tuple([spaces.Box(0, 255, (64, 64, 3), np.uint8)] * 2), "observation", "has 2 images"),
        (spaces.Box(-1, 1, (0,)), "observation", "is empty"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(space, role, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        SlotLayout.of(space, role=role)


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(-1, 1, (2,)), [0.5, math.nan], "not a number at element 1"),
        (spaces.Box(-1, 1, (2,)), [0.5], r"has shape \(2,\), got \(1,\)"),
        (spaces.Discrete(5, start=2), 1, "holds 1 at element 0: the space declares 2 to 6"),
        (spaces.Discrete(1024), 1024, "holds 1024"),
        (spaces.Discrete(2000), 1024**2, "holds 1048576"),
        (spaces.MultiDiscrete([3, 3]), [0, -1], "holds -1 at element 1"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"b": 1}, r"space\['a'\] is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_values_outside_the_tables_are_refused_never_wrapped(space, value, message):
    with pytest.raises(InvalidValueError, match=message):
        SlotLayout.of(space).flatten(value)


def test_infinite_and_outside_values_pass_as_they_are():
    slots, _ = SlotLayout.of(spaces.Box(-1, 1, (3,))).flatten([-math.inf, 7, math.inf])
    assert slots.tolist() == [-math.inf, 7, math.inf]


def as_image(space, value) -> np.ndarray:
    layout = SlotLayout.of(space)
    assert layout.num_slots == 0
    slots, image = layout.flatten(value)
    assert slots.shape == (0,) and image.shape == (64, 64, 3) and image.dtype == np.uint8
    return image


def test_images_of_every_layout_become_rgb():
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:32, :, 0], rgb[32:, :, 2] = 200, 100
    box = lambda shape, dtype=np.uint8, high=255: spaces.Box(0, high, shape, dtype)  # noqa: E731
    np.testing.assert_array_equal(as_image(box((64, 64, 3)), rgb), rgb)
    np.testing.assert_array_equal(as_image(box((3, 64, 64)), rgb.transpose(2, 0, 1)), rgb)
    alpha = np.concatenate([rgb, np.full((64, 64, 1), 77, np.uint8)], 2)
    np.testing.assert_array_equal(as_image(box((64, 64, 4)), alpha), rgb)
    grey = rgb[..., 0]
    for value, shape in ((grey, (64, 64)), (grey[..., None], (64, 64, 1)), (grey[None], (1, 64, 64))):
        np.testing.assert_array_equal(as_image(box(shape), value), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(as_image(box((64, 64, 3), np.float32, 1.0), (rgb / 255).astype(np.float32)), rgb)
    # Larger ones are averaged, smaller ones enlarged: two halves stay two halves.
    np.testing.assert_array_equal(as_image(box((128, 256, 3)), rgb.repeat(2, 0).repeat(4, 1))[[5, 60]], rgb[[5, 60]])
    np.testing.assert_array_equal(as_image(box((8, 8, 3)), rgb[::8, ::8]), rgb)


def test_planes_of_a_board_get_colours_of_their_own():
    """Of four planes the hues are 0, 90, 180 and 270 degrees."""
    planes = np.zeros((10, 10, 4), bool)
    planes[0, 0, 0] = planes[0, 1, 1] = planes[0, 2, 2] = planes[0, 3, 3] = True
    image = as_image(spaces.Box(0, 1, (10, 10, 4), np.bool_), planes)
    assert image[2, [2, 9, 15, 22]].tolist() == [[255, 0, 0], [128, 255, 0], [0, 255, 255], [128, 0, 255]]
    assert image[20:].max() == 0


def test_an_image_beside_numbers():
    camera = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    layout = SlotLayout.of(spaces.Dict({"camera": camera, "speed": spaces.Box(-1, 1, (2,))}))
    slots, image = layout.flatten({"speed": [0.5, -0.5], "camera": np.full((64, 64, 3), 9, np.uint8)})
    assert slots.tolist() == [0.5, -0.5] and (image == 9).all()
    with pytest.raises(UnsupportedSpaceError, match="is an image"):
        layout.unflatten(slots)
