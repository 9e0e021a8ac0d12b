"""Rollouts beside whole training: which runs are compared."""

from pathlib import Path

from conftest import CARTPOLE
from ldm_hf.experiments.data_sources import Whole, choose, find


def test_runs_of_the_bank_one_of_each_library_by_name():
    runs = {"b/second": "PPO-0", "b/first": "PPO-0", "a/one": "SAC-0", "a/other": "SAC-0", "c/last": "DQN-0"}
    found = [Whole(Path(), environment, run, 10) for environment, run in runs.items()]
    banked = {**runs, "a/one": "PPO-0"}
    assert [each.environment for each in choose(found, banked, 8)] == ["a/other", "b/first", "c/last"]
    assert len(choose(found, banked, 2)) == 2


def test_whole_runs_are_found_and_what_is_no_data_folder_is_passed_over(data, tmp_path):
    """The corpus of the tests is of training runs; a library without any, and a file, are beside it."""
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    (tmp_path / "runs" / "log.txt").write_text("")
    (tmp_path / "runs" / "data").symlink_to(data)
    found = {each.environment: each for each in find(tmp_path / "runs")}
    assert found[CARTPOLE].folder == tmp_path / "runs" / "data" and found[CARTPOLE].transitions > 0
