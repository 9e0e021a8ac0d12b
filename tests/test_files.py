"""Writing files and folders so that nothing is ever half there, or lost."""

import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from ldm_hf.errors import ConfigError
from ldm_hf.utils.files import remove_leftovers, replacing, sole_writer


def written(path, text):
    path.mkdir()
    (path / "content").write_text(text)


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replacing(target) as temporary:
            written(temporary, text)
        assert (target / "content").read_text() == text
    with pytest.raises(KeyError), replacing(target) as temporary:
        written(temporary, "third")
        raise KeyError
    assert (target / "content").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_are_as_readable_as_the_files_beside_them(tmp_path):
    with replacing(tmp_path / "model") as temporary:
        written(temporary, "text")
        save_file({"weight": torch.ones(2)}, temporary / "model.safetensors")
        (temporary / "secret").touch(0o600)
    with replacing(tmp_path / "alone.safetensors") as temporary:
        save_file({"weight": torch.ones(2)}, temporary)
    files = ("model/content", "model/model.safetensors", "alone.safetensors", "model/secret")
    *modes, secret = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files)
    assert modes == [modes[0]] * 3 and secret == 0o600


def test_a_writer_killed_between_its_two_renames_loses_nothing(tmp_path, monkeypatch):
    target = tmp_path / "model"
    written(target, "old")

    class Killed(BaseException):
        """Stands in for the end of the process: nothing after it runs."""

    rename = type(target).rename

    def once(path, to):
        if to == target:
            raise Killed
        return rename(path, to)

    monkeypatch.setattr(type(target), "rename", once)
    monkeypatch.setattr("ldm_hf.utils.files.remove", lambda path: None)
    with pytest.raises(Killed), replacing(target) as temporary:
        written(temporary, "new")
    assert not target.exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert (target / "content").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_one_process_writes_at_a_time_and_a_killed_one_lets_go(tmp_path):
    program = """
import sys
from pathlib import Path
from ldm_hf.utils.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

    def refused():
        with pytest.raises(ConfigError, match="another process is writing to"), sole_writer(tmp_path / "data"):
            raise AssertionError("two hold it")

    with sole_writer(tmp_path / "data"):
        refused()
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        refused()
        holder.kill()
    with sole_writer(tmp_path / "data"):
        refused()
