"""The comparison of races with the ranking, and the page of what was tried for the bank."""

import json
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.anchors.playing import Conduct
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.env_registry.known_scores import known_score
from ldm_hf.experiments import races

SCRIPT = Path(__file__).parents[1] / "scripts" / "bank_tries.py"


def _dataset(environment, random, returns, flags=()):
    """What ``references`` reads of a dataset."""
    anchors = Anchors(environment, Sample(random, 1.0, 20), Sample(20.0, 1.0, 20), known=known_score(environment))
    assessment = Assessment([100], Conduct(100, "", None, None), anchors, list(flags))
    info = SimpleNamespace(run="PPO-0", deterministic_returns=returns, assessment=assessment, flags=assessment.flags)
    return SimpleNamespace(environment=environment, info=info)


def test_a_reference_is_worth_its_share_of_the_way_to_known_good(monkeypatch, tmp_path):
    """CartPole-v1 is known to reach 500: from 20, a return of 260 is half of the way, and 500 all of it."""
    names = [f"gymnasium/{name}" for name in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")]
    flagged = _dataset(names[1], -500.0, [-80.0], ["always does the same: 1"])
    datasets = [_dataset(names[0], 20.0, [250.0, 270.0]), flagged]
    monkeypatch.setattr(races, "open_datasets", lambda folder: datasets)
    found = races.references(tmp_path, names)
    assert found[names[0]].share == pytest.approx(0.5) and not found[names[0]].solved
    assert found[names[1]].share == 0 and not found[names[1]].solved, "what is degenerate is worth nothing"
    assert found[names[2]] == races.Reference(), "an environment without a kept run counts as 0"
    datasets[0] = _dataset(names[0], 20.0, [500.0, 500.0])
    assert races.references(tmp_path, names)[names[0]].solved


def test_nothing_kept_is_no_error(tmp_path):
    assert races.references(tmp_path, ["gymnasium/CartPole-v1"]) == {"gymnasium/CartPole-v1": races.Reference()}


@pytest.mark.long
def test_a_build_is_timed_to_its_end_and_then_only_read(tmp_path):
    """Killed without a word, it is begun again; interrupted, it resumes and its time is added up."""
    folder, environments = tmp_path / "racing-0", ["gymnasium/CartPole-v1"]
    (folder / "leftover").mkdir(parents=True)
    with pytest.raises(subprocess.CalledProcessError):
        races.build(folder, environments, ["--core-minutes", "no number"])
    assert not (folder / "leftover").exists()
    (folder / "kept").touch()
    seconds, is_done = json.loads((folder / "core_seconds.json").read_text())
    assert seconds > 0 and not is_done
    whole = races.build(folder, environments, ["--core-minutes", "1", "--candidates", "PPO"])
    assert whole > seconds + 1 and (folder / "kept").exists()
    assert races.references(folder, environments)[environments[0]].run
    assert races.build(folder, environments, ["--core-minutes", "no number"]) == pytest.approx(whole, abs=0.1)


def test_the_page_of_tries_keeps_rows_and_says_why(tmp_path, monkeypatch):
    """Of two races one gave what the bank holds, the other dropped what it wrote; a third environment has no record."""
    names = ["lib/Kept-v0", "lib/Dropped-v0", "lib/Waiting-v0", "lib/Expert-v0", "lib/Alike-v0"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "list.txt").write_text("# a comment\n" + "\n".join([*names[:3], f"{names[3]} expert", names[4]]) + "\n")
    for environment, run, flags in (
        (names[0], "PPO-0", []),
        (names[3], "expert-0", []),
        (names[4], "SAC-0", ["alike"]),
    ):
        folder = tmp_path / "bank" / environment
        folder.mkdir(parents=True)
        record = {"environment": environment, "run": run, "info": {"assessment": {"flags": flags}}}
        (folder / "run.json").write_text(json.dumps(record))
    for environment, result in ((names[0], "kept"), (names[1], "written and dropped: no improvement")):
        candidates = [
            {"candidate": "PPO", "seconds": [30.0, 60.0], "transitions": [500, 1500], "result": result},
            {"candidate": "A2C", "seconds": [30.0], "transitions": [500], "result": "slice 0: place 2 of 2"},
        ]
        path = tmp_path / "runs" / environment / "race.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"environment": environment, "candidates": candidates}))
    script = runpy.run_path(str(SCRIPT))
    places = {"ROOT": tmp_path, "PAGE": tmp_path / "docs" / "tries.md", "LIST": tmp_path / "list.txt"}
    monkeypatch.setitem(script["main"].__globals__, "ROOT", places["ROOT"])
    monkeypatch.setitem(script["main"].__globals__, "PAGE", places["PAGE"])
    monkeypatch.setitem(script["main"].__globals__, "LIST", places["LIST"])
    script["main"]([tmp_path / "runs"])
    page = places["PAGE"].read_text()
    assert "| `lib/Kept-v0` | in the bank | PPO-0 | 2 | 2.0 | 2,000 |" in page
    assert "| `lib/Dropped-v0` | none | no improvement | 2 | 2.0 | 2,000 |" in page
    assert "| `lib/Waiting-v0` | no record |  | — | — | — |" in page
    assert "| `lib/Expert-v0` | in the bank | expert-0 | — | — | — |" in page
    assert "| `lib/Alike-v0` | in the bank, flagged | SAC-0: alike | — | — | — |" in page
    assert "Of 5 environments 2 have a policy" in page
    assert "Of 2 races with records, 0.1 core hours, 1 gave one (50%" in page
    script["main"]([])  # without records: what the page has stays
    assert places["PAGE"].read_text() == page
