"""Decoded chunks that the processes of a node share."""

import fcntl
import logging
import tempfile

import numpy as np
import pytest
from accelerate import Accelerator

from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.training.chunk_cache import ChunkCache, node_cache

BYTES = 10 * ((3 + 2 + 1 + 2) * 4 + 4)
"""Of ten transitions: floats, and two truth values that take four bytes between them, so that floats stay aligned."""


def made(seed: int, images: bool = False, labels: bool = True) -> Transitions:
    random = np.random.default_rng(seed)
    return Transitions(
        random.random((10, 3), np.float32),
        random.integers(0, 255, (10, 4, 4, 3), np.uint8) if images else None,
        random.random((10, 2), np.float32),
        random.random(10, np.float32),
        random.random(10) < 0.5,
        random.random(10) < 0.5,
        random.random((10, 2), np.float32) if labels else None,
    )


class Decoder:
    """Chunks by their number, and how often each was decoded."""

    def __init__(self, **options: bool):
        self.calls: list[int] = []
        self.options = options

    def read(self, cache: ChunkCache, number: int, window: slice = slice(2, 5)) -> Transitions:
        def decode() -> Transitions:
            self.calls.append(number)
            return made(number, **self.options)

        return cache.read(str(number), window, decode)


def assert_equal(found: Transitions, expected: Transitions) -> None:
    for name, value in vars(expected).items():
        assert (vars(found)[name] is None) == (value is None), name
        if value is not None:
            np.testing.assert_array_equal(vars(found)[name], value, strict=True)


@pytest.mark.parametrize("window", [slice(2, 5), slice(8, 24), slice(0, 600)], ids=str)
@pytest.mark.parametrize("options", [{}, {"images": True}, {"labels": False}], ids=str)
def test_what_one_process_decoded_others_read(tmp_path, options, window):
    one, other, decoder = ChunkCache(tmp_path, 10**6), ChunkCache(tmp_path, 10**6), Decoder(**options)
    for cache in (one, other, one, other):
        for number in (0, 1):
            assert_equal(decoder.read(cache, number, window), made(number, **options)[window])
    assert decoder.calls == [0, 1]


def test_what_has_no_room_is_decoded_each_time(tmp_path):
    decoder = Decoder()
    for cache in (ChunkCache(tmp_path, 2 * BYTES), ChunkCache(tmp_path, 2 * BYTES)):
        for number in (0, 1, 2):
            assert_equal(decoder.read(cache, number), made(number)[2:5])
    assert decoder.calls == [0, 1, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "used"]


def test_without_a_folder_the_newest_chunk_is_held():
    cache, decoder = ChunkCache(), Decoder()
    for number in (0, 0, 1, 1, 0):
        assert_equal(decoder.read(cache, number), made(number)[2:5])
    assert decoder.calls == [0, 1, 0]


def test_a_full_disk_stops_nothing(tmp_path, monkeypatch, caplog):
    cache, decoder = ChunkCache(tmp_path, 10**6), Decoder()
    decoder.read(cache, 0)

    def fails(file, records, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fails)
    with caplog.at_level(logging.WARNING):
        for number in (1, 2, 1, 0):
            assert_equal(decoder.read(cache, number), made(number)[2:5])
    assert decoder.calls == [0, 1, 2, 1]
    assert len(caplog.records) == 1 and "cache_gib" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "used"]


def test_a_node_s_folder_goes_with_its_processes(tmp_path, monkeypatch):
    """Also where they were killed: the next run on the node removes it, but none that is in use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    abandoned, used = tmp_path / "ldm-chunks-killed", tmp_path / "ldm-chunks-another-run"
    for folder in (abandoned, used):
        folder.mkdir()
        (folder / "in-use").touch()
        (folder / "0-0").touch()
    with (used / "in-use").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with node_cache(Accelerator(cpu=True), 10**6) as cache:
            assert not abandoned.exists()
            Decoder().read(cache, 0)
            (folder,) = [folder for folder in tmp_path.iterdir() if folder != used]
            assert (folder / "0").exists()
        assert list(tmp_path.iterdir()) == [used] and (used / "0-0").exists()
    with node_cache(Accelerator(cpu=True), 0):
        assert list(tmp_path.iterdir()) == [used]
