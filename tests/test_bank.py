"""The bank: policies are kept small, and data are made again from them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import CARTPOLE, run_ldm_here
from ldm_hf.dataset_builder.bank.bank import ENTRY, Entry, add, best_runs, judge, read_bank, requests
from ldm_hf.dataset_builder.bank.rollout_jobs import RolloutJob
from ldm_hf.dataset_builder.bank.rollout_request import RolloutRequest
from ldm_hf.dataset_builder.bank.rollouts import build_rollouts
from ldm_hf.dataset_builder.format.reader import open_dataset
from ldm_hf.dataset_builder.repository.replay import replay
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.errors import ConfigError, DatasetFormatError
from test_adoption import hashes

UPRIGHT = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 0.3125]])
"""Logits of CartPole's actions that keep the pole up; 16 bits hold them exactly."""


def adopted(root: Path, name: str, weight: torch.Tensor, keep: str = "fit") -> Path:
    """A run of rollouts of a linear policy of CartPole."""
    root.mkdir(exist_ok=True)
    save_file({"0.weight": weight}, root / f"{name}.safetensors")
    (root / f"{name}.json").write_text('{"activation": "Tanh"}')
    request = RolloutRequest(CARTPOLE, str(root / f"{name}.safetensors"), 600, 0, (0.0, 0.3), keep)
    build_rollouts(request, root / "data")
    return request.folder(root / "data")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A data folder of one policy that is perfect, and one that always does the same."""
    root = tmp_path_factory.mktemp("adopted")
    adopted(root, "upright", UPRIGHT)
    adopted(root, "fixed", torch.zeros(2, 4), keep="all")
    update_repository(root / "data" / "gymnasium")
    return root / "data"


def test_what_is_taken_acts_and_makes_data_again(runs, tmp_path):
    done = run_ldm_here("bank", "add", runs, "--to", tmp_path / "bank")
    assert done.returncode == 0, done.stderr
    assert "gymnasium/CartPole-v1, run upright-rollouts-0: taken, it returns 500 (float16, " in done.stdout
    [entry] = read_bank(tmp_path / "bank")
    assert entry.info.deterministic_returns == [500.0] * 20 and entry.solved and not entry.info.flags
    assert entry.weights == {"dtype": "float16", "difference": 0.0, "observations": 16 * 256}
    weights = load_file(entry.folder / "policy" / "policy.safetensors")
    assert {name: value.dtype for name, value in weights.items()} == {
        "action_net.weight": torch.float16,
        "action_net.bias": torch.float16,
    }
    assert entry.bytes < 20_000
    [request] = requests(tmp_path / "bank", ["gymnasium"], 600, noise=(0.0, 0.3))
    assert request.run == "upright-rollouts-0"
    for out in ("one", "two"):
        RolloutJob(request, tmp_path / out).execute()
    planned = ("build", "--from-bank", tmp_path / "bank", "--transitions", 600, "--dry-run", "--output")
    said = run_ldm_here(*planned, tmp_path / "planned", "--cores", 1).stdout
    assert f"{CARTPOLE}: upright-rollouts-0, 600 transitions\n1 environment, 0 more are done: 600 transitions, " in said
    assert said.endswith("On 1 core: 0 minutes\n") and not (tmp_path / "planned").exists()
    refused = run_ldm_here(*planned, tmp_path / "planned", "--candidates", "PPO", "--gpus", 1).stderr
    assert refused == "error: --from-bank rolls out policies and trains nothing: leave out --candidates, --gpus\n"
    acting = run_ldm_here(*planned, tmp_path / "planned", "--cores", 1, "--actor", "somebody/their-model").stdout
    assert (
        f"{CARTPOLE}: upright-rollouts-0-their-model, 600 " in acting
        and "core hours and what the model takes" in acting
    )
    alone = run_ldm_here("build", CARTPOLE, "--actor", "somebody/their-model", "--output", tmp_path / "planned").stderr
    assert alone.startswith("error: --actor needs policies to label what the model sees: give a bank by --from-bank")
    dataset = open_dataset(request.folder(tmp_path / "one"))
    assert dataset.info.deterministic_return == 500 and not replay(dataset).different
    chunk = dataset.chunk(0)
    np.testing.assert_array_equal(chunk.reference_actions[:, 0], chunk.observations @ UPRIGHT[1].numpy() > 0)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    shown = run_ldm_here("bank", "show", tmp_path / "bank", "--markdown").stdout
    assert (
        "| gymnasium/CartPole-v1 | Box → Discrete |  | " in shown and "| 500 | 500 | 100% | yes | upright | " in shown
    )
    assert "1 environments of 1 libraries, 0.0 MB; 1 with a known good score, 1 of them solved; 0 with a flag" in shown


def test_a_policy_of_the_bank_is_not_curated_again(runs, tmp_path):
    """It returns 500; where its training had reached 600, `ldm adopt` drops it, and the bank, which took it, does not."""
    entry, _ = add(best_runs(runs)[0], tmp_path / "bank")
    record = json.loads((entry.folder / "run.json").read_text())
    record["info"]["curve"] |= {"last": {"mean": 600.0, "std": 1.0, "size": 40}, "order": "start"}
    (entry.folder / "run.json").write_text(json.dumps(record))
    [request] = requests(tmp_path / "bank", None, 600, noise=(0.0,))
    for keep, dropped in ((request.keep, None), ("fit", "the deterministic policy returns 500, its training 600")):
        assert build_rollouts(replace(request, keep=keep), tmp_path / keep).dropped == dropped


def test_only_what_is_better_is_taken(runs, tmp_path):
    bank = tmp_path / "bank"
    [best] = best_runs(runs)
    assert best.name == "upright-rollouts-0"
    _, reason = add(runs / "gymnasium/CartPole-v1/fixed-rollouts-0", bank)
    assert reason is not None and reason.startswith("flagged: is no better than random")
    assert not list(bank.rglob("*.json")) and not list(bank.rglob("*.partial*")) and not (bank / "gymnasium").exists()
    assert add(best, bank)[1] is None
    before = hashes(bank)
    assert add(best, bank)[1] == "returns 500, what the bank holds 500" and hashes(bank) == before


def test_a_bank_is_judged_again_by_what_is_measured_now(runs, tmp_path):
    """Judged by other anchors before, an episode of 500 steps seemed no better than standing still; a falling one is not."""
    bank = tmp_path / "bank"
    entry, _ = add(best_runs(runs)[0], bank)
    path, before = entry.folder / "run.json", hashes(bank)
    assert judge(bank, None, pytest.fail) == 0 and hashes(bank) == before
    record = json.loads(path.read_text())
    record["info"]["assessment"]["flags"] = ["is no better than a trivial policy, always 2: 500 against 500"]
    path.write_text(json.dumps(record))
    said = run_ldm_here("bank", "judge", CARTPOLE, "--bank", bank)
    assert said.stdout == f"{CARTPOLE}: no flag any more\n" and before.items() <= hashes(bank).items()
    assert said.stderr == f"0 of the policies of {bank} have a flag\n"
    record["info"]["deterministic_returns"] = [9.0, 10.0] * 10
    path.write_text(json.dumps(record))
    found: list[str] = []
    assert judge(bank, ["gymnasium"], found.append) == 1
    assert found == [f"{CARTPOLE}: {reason}" for reason in read_bank(bank)[0].info.flags]
    assert found[0].startswith(f"{CARTPOLE}: is no better than random: 9.5 against ")


def test_weights_that_16_bits_change_stay_as_they_are(tmp_path):
    """100,000 is more than 16 bits hold."""
    large = adopted(tmp_path, "large", 1e5 * UPRIGHT)
    entry, reason = add(large, tmp_path / "bank")
    assert reason is None and entry.weights == {"dtype": "float32"}
    weights = load_file(entry.folder / "policy" / "policy.safetensors")
    assert torch.equal(weights["action_net.weight"], 1e5 * UPRIGHT)


def test_what_is_no_bank_is_refused_in_one_line(runs, tmp_path):
    with pytest.raises(DatasetFormatError, match="holds no policies"):
        read_bank(tmp_path)
    bank = tmp_path / "bank"
    entry, _ = add(best_runs(runs)[0], bank)
    with pytest.raises(ConfigError, match="has no policy of gymnasium/Taxi-v3"):
        read_bank(bank, ["gymnasium/Taxi-v3", CARTPOLE])
    path = entry.folder / ENTRY
    text = path.read_text()
    for wrong, reason in (
        ("{", "is not a policy of a bank"),
        (json.dumps({**json.loads(text), "format": 9}), "its format is 9"),
        (json.dumps({"format": 1}), "'weights'"),
    ):
        path.write_text(wrong)
        with pytest.raises(DatasetFormatError, match=reason):
            Entry.read(entry.folder)
    path.write_text(text)
    save_file({"action_net.weight": UPRIGHT}, entry.folder / "policy" / "policy.safetensors")
    with pytest.raises(DatasetFormatError, match=r"policy/policy\.safetensors is not the file that was written"):
        Entry.read(entry.folder)
    done = run_ldm_here("build", "--output", tmp_path)
    assert (
        done.returncode == 1
        and done.stderr == "error: name environments or libraries to build, or a bank by --from-bank\n"
    )
