"""Datasets on a Hub of the real protocol, with the real clients, each in a process of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conftest import CARTPOLE, CLIFF, PENDULUM, TOY_MODEL, run_ldm, run_ldm_here
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.reference.run import build_run
from ldm_hf.dataset_builder.repository.repository import update_repository
from loopback import LoopbackHub

TOKEN = "hf_writer"


@pytest.fixture
def hub(tmp_path):
    tokens = {TOKEN: "writer", "hf_other": "other", "hf_reader": "writer"}
    with LoopbackHub(tmp_path / "blobs", tokens, read_only=("hf_reader",)) as running:
        yield running


@pytest.fixture
def corpus(data, tmp_path):
    """A copy of the toy corpus that may be changed."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def environment(hub, tmp_path, token=TOKEN):
    return {**os.environ, **hub.environment(tmp_path / "home", token)}


def publish(hub, tmp_path, corpus, *arguments, token=TOKEN):
    return run_ldm("publish", corpus, "--namespace", "writer", *arguments, env=environment(hub, tmp_path, token))


def run_program(hub, tmp_path, program, *, token=TOKEN):
    command = [sys.executable, "-c", program]
    variables = environment(hub, tmp_path, token)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=variables)


def one_line_error(done, *parts):
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]


def puts(hub):
    return [path for method, path in hub.requests if method == "PUT"]


def commits(hub):
    return [path for method, path in hub.requests if method == "POST" and "/commit/" in path]


NAME = "writer/ldm-gymnasium"


def test_what_is_published_is_streamed_back_by_plain_datasets(hub, tmp_path, corpus):
    done = publish(hub, tmp_path, corpus)
    assert done.returncode == 0 and done.stdout.strip() == f"hf://datasets/{NAME}", done.stderr
    program = f"""
import json
from datasets import get_dataset_config_names, load_dataset
names = get_dataset_config_names({NAME!r})
rows = {{name: list(load_dataset({NAME!r}, name, split="train", streaming=True)) for name in names}}
first = rows["CartPole-v1"][0]
print(json.dumps([{{name: len(part) for name, part in rows.items()}}, first["run"], first["step"], first["observation"]]))
"""
    lengths, run, step, observation = json.loads(run_program(hub, tmp_path, program, token="").stdout)
    episodes = sum(pq.read_metadata(path).num_rows for path in corpus.glob("gymnasium/*/*/episodes.parquet"))
    recorded = {data.environment.partition("/")[2]: data.num_transitions for data in open_datasets(corpus)}
    assert set(recorded) == {"CartPole-v1", "CliffWalking-v1", "Pendulum-v1"}
    assert lengths == {**recorded, "episodes": episodes}
    table = pq.read_table(corpus / "gymnasium/CartPole-v1/PPO-0/train-00000-of-00001.parquet")
    assert (run, step) == ("PPO-0", table["step"][0].as_py()) and observation == table["observation"][0].as_py()
    checked = run_ldm("check", f"hf://datasets/{NAME}", env=environment(hub, tmp_path, ""))
    assert checked.returncode == 0 and checked.stdout.count("rows are right") == 3, checked.stdout
    # Again: nothing is sent, and no commit is made.
    hub.requests.clear()
    assert publish(hub, tmp_path, corpus).returncode == 0
    assert not puts(hub) and not commits(hub)


@pytest.mark.slow
def test_documented_programs_that_stream_from_the_hub_always_end_well(hub, tmp_path, corpus):
    """A program that is left while pyarrow still reads aborts, at times, when Python ends."""
    assert publish(hub, tmp_path, corpus).returncode == 0
    root = Path(__file__).parent.parent
    snippet = (
        (root / "README.md").read_text().split("\n## Stream a dataset\n")[1].split("```python\n")[1].split("```")[0]
    )
    example = (root / "examples/stream_dataset.py").read_text()
    for program in (snippet, example):
        assert "runs/quickstart/data" in program
        for _ in range(10):
            done = run_program(
                hub, tmp_path, program.replace("runs/quickstart/data", f"hf://datasets/{NAME}"), token=""
            )
            assert done.returncode == 0 and "terminate called" not in done.stderr, (done.returncode, done.stderr)


def test_an_interrupted_upload_continues_with_what_is_missing(hub, tmp_path, corpus):
    failing = next((corpus / "gymnasium/Pendulum-v1/PPO-0").glob("train-*"))
    manifest = pq.read_table(corpus / "gymnasium/manifest.parquet").to_pylist()
    hashes = {file["path"]: file["sha256"] for row in manifest for file in row["files"]}
    digest = hashes[failing.relative_to(corpus / "gymnasium").as_posix()]
    hub.fail("PUT", digest, 403, times=1)
    one_line_error(publish(hub, tmp_path, corpus), NAME)
    sent = {path.split("/")[-1].split("?")[0] for path in puts(hub)} - {digest}
    assert sent and not any("manifest.parquet" in commit.files for commit in hub.repos["datasets", NAME].commits)
    hub.requests.clear()
    assert publish(hub, tmp_path, corpus).returncode == 0
    again = [path for path in puts(hub) if any(part in path for part in sent)]
    assert any(digest in path for path in puts(hub)) and not again
    newest = hub.repos["datasets", NAME].find("main").files
    assert {path: blob.sha256 for path, (blob, _) in newest.items() if path in hashes} == hashes


def files_of(hub):
    return {path: blob.sha256 for path, (blob, _) in hub.repos["datasets", NAME].find("main").files.items()}


def stored(hub, path):
    return hub.folder / files_of(hub)[path]


def add_to_hub(hub, **contents):
    """Commit files as their owner would in the Hub's web pages."""
    repo = hub.repos["datasets", NAME]
    files = {path: blob for path, (blob, _) in repo.find("main").files.items()}
    files |= {path: hub.regular_blob(text.encode()) for path, text in contents.items()}
    repo.add("main", files, "by hand", "", "writer")


def without(corpus, *configs):
    for config in configs:
        shutil.rmtree(corpus / "gymnasium" / config)
    update_repository(corpus / "gymnasium")


def test_a_folder_that_holds_less_deletes_nothing(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    card = stored(hub, "README.md").read_text()
    notes = {"NOTES.md": "mine", "CartPole-v1/PPO-0/NOTES.md": "mine", "CartPole-v1/PPO-0/policy/NOTES.md": "mine"}
    add_to_hub(hub, **notes, **{"README.md": f"{card}\n## A paper on it\n"})
    before = files_of(hub)
    without(corpus, "CliffWalking-v1", "Pendulum-v1")
    commits_before = len(hub.repos["datasets", NAME].commits)
    done = publish(hub, tmp_path, corpus)
    assert done.returncode == 0 and files_of(hub) == before, done.stderr
    assert len(hub.repos["datasets", NAME].commits) == commits_before  # nothing to say, so that nothing is committed
    # Explicit deletion is listed, asks, and leaves alone what is not ours.
    done = publish(hub, tmp_path, corpus, "--delete")
    one_line_error(done, "it would replace 0 runs of the Hub and delete 2, 11 files in all", "--yes")
    assert f"deletes the run {NAME}/CliffWalking-v1/DQN-0\n" in done.stderr and "PPO-0/terminal.parquet" in done.stderr
    assert files_of(hub) == before
    assert publish(hub, tmp_path, corpus, "--delete", "--yes").returncode == 0
    after = files_of(hub)
    assert {path.split("/")[0] for path in before.keys() - after.keys()} == {"CliffWalking-v1", "Pendulum-v1"}
    assert all(after[path] == before[path] for path in (*notes, ".gitattributes"))
    card = stored(hub, "README.md").read_text()
    assert card.endswith("\n## A paper on it\n") and "CliffWalking" not in card and "CartPole-v1" in card
    manifest = pq.read_table(stored(hub, "manifest.parquet"))
    assert manifest["environment"].to_pylist() == [CARTPOLE]
    assert pq.read_table(stored(hub, "runs.parquet"))["environment"].to_pylist() == [CARTPOLE]


def test_a_terminal_is_asked_before_something_is_lost(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    before = files_of(hub)
    without(corpus, "Pendulum-v1")
    command = [sys.executable, "-m", "ldm_hf", "publish", str(corpus), "--namespace", "writer", "--delete"]
    for answer, code in (("n", 1), ("y", 0)):
        ours, theirs = os.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, check=False, env=environment(hub, tmp_path)
        )
        os.close(ours)
        os.close(theirs)
        assert done.returncode == code and "Shall that be done?" in done.stderr, done.stderr
        assert (files_of(hub) == before) == (answer == "n")


def test_environments_of_several_folders_and_publications_are_one_dataset(hub, tmp_path, corpus):
    """One after the other, and as a folder of folders: the same files, and the reader finds all of them."""
    for name, configs in (("a", ("CliffWalking-v1", "Pendulum-v1")), ("b", ("CartPole-v1",))):
        shutil.copytree(corpus, tmp_path / "folders" / name)
        without(tmp_path / "folders" / name, *configs)
        assert publish(hub, tmp_path, tmp_path / "folders" / name).returncode == 0
    one_by_one = files_of(hub)
    done = publish(hub, tmp_path, tmp_path / "folders")
    assert done.returncode == 0 and files_of(hub) == one_by_one
    whole = LoopbackHub(tmp_path / "other-blobs", {TOKEN: "writer"})
    with whole:
        assert publish(whole, tmp_path, corpus).returncode == 0
        assert files_of(whole) == one_by_one
    program = f"""
from ldm_hf.dataset_builder.format.reader import open_datasets
print([(data.environment, data.num_transitions) for data in open_datasets("hf://datasets/{NAME}")])
"""
    expected = [(data.environment, data.num_transitions) for data in open_datasets(corpus)]
    assert run_program(hub, tmp_path, program).stdout.strip() == str(expected)


def test_another_run_of_the_same_name_is_added_and_the_same_run_replaced(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    before = files_of(hub)
    longer = tmp_path / "longer"
    build_run(RunRequest(CARTPOLE, Candidate("PPO", {"n_steps": 64}, num_envs=4), 1024, 0, keep="all"), longer)
    update_repository(longer / "gymnasium")
    assert publish(hub, tmp_path, longer).returncode == 0
    after = files_of(hub)
    assert before.items() - after.items() <= {(path, before[path]) for path in before if "/" not in path}
    added = {path.split("/")[1] for path in after.keys() - before.keys()}
    assert len(added) == 1 and added.pop().startswith("PPO-0-")
    runs = pq.read_table(stored(hub, "manifest.parquet")).to_pylist()
    rows = [open_datasets(folder, [CARTPOLE])[0].num_transitions for folder in (corpus, longer)]
    assert [(run["environment"], run["rows"]) for run in runs[:2]] == [(CARTPOLE, number) for number in rows]
    # Both at once, in whatever order, keep their places.
    shutil.copytree(longer, tmp_path / "both/a")
    shutil.copytree(corpus, tmp_path / "both/b")
    made = len(hub.repos["datasets", NAME].commits)
    assert publish(hub, tmp_path, tmp_path / "both").returncode == 0
    assert len(hub.repos["datasets", NAME].commits) == made
    # The run that was asked for again, with another outcome, replaces what is there, if that is wanted.
    folder = corpus / "gymnasium/CartPole-v1/PPO-0"
    (folder / "policy/policy.json").write_text((folder / "policy/policy.json").read_text() + " ")
    replace(RunRecord.read(folder), files=describe_files(folder)).write(folder)
    update_repository(corpus / "gymnasium")
    done = publish(hub, tmp_path, corpus)
    one_line_error(done, "it would replace 1 runs of the Hub and delete 0, 0 files in all")
    assert f"replaces the run {NAME}/CartPole-v1/PPO-0\n" in done.stderr and files_of(hub) == after
    assert publish(hub, tmp_path, corpus, "--yes").returncode == 0
    changed = {path for path in after if files_of(hub)[path] != after[path]}
    assert changed == {"CartPole-v1/PPO-0/policy/policy.json", "manifest.parquet"}
    # Two folders that hold two versions of one run: neither is right.
    shutil.copytree(corpus, tmp_path / "two/a")
    shutil.copytree(longer, tmp_path / "two/b")
    (tmp_path / "two/b/gymnasium/CartPole-v1/PPO-0").rename(tmp_path / "two/b/gymnasium/CartPole-v1/moved")
    shutil.copytree(folder, tmp_path / "two/b/gymnasium/CartPole-v1/PPO-0")
    (tmp_path / "two/b/gymnasium/CartPole-v1/PPO-0/policy/policy.json").write_text("{}")
    folder = tmp_path / "two/b/gymnasium/CartPole-v1/PPO-0"
    replace(RunRecord.read(folder), files=describe_files(folder)).write(folder)
    shutil.rmtree(tmp_path / "two/b/gymnasium/CartPole-v1/moved")
    update_repository(tmp_path / "two/b/gymnasium")
    one_line_error(publish(hub, tmp_path, tmp_path / "two"), "different versions of CartPole-v1/PPO-0")


def test_a_policy_that_was_exchanged_on_the_hub_is_found(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    add_to_hub(hub, **{"CartPole-v1/PPO-0/policy/policy.safetensors": "theirs"})
    checked = run_ldm("check", f"hf://datasets/{NAME}", env=environment(hub, tmp_path, ""))
    assert checked.returncode == 1 and checked.stdout.count("rows are right") == 2
    assert f"hf://datasets/{NAME}/CartPole-v1/PPO-0/policy/policy.safetensors has 6 bytes" in checked.stdout


def test_what_others_do_to_the_repository_meanwhile_is_not_undone(hub, tmp_path, corpus):
    shutil.copytree(corpus, tmp_path / "mine")
    without(tmp_path / "mine", "CartPole-v1", "Pendulum-v1")
    assert publish(hub, tmp_path, corpus).returncode == 0
    add_to_hub(hub, **{"manifest.parquet": "theirs"})
    one_line_error(publish(hub, tmp_path, corpus), f"{NAME} on the Hub", "cannot be read as a manifest")
    repo = hub.repos["datasets", NAME]
    repo.branches["main"] = 0  # an empty repository, in which somebody else's file is
    add_to_hub(hub, **{"README.md": "theirs"})
    one_line_error(publish(hub, tmp_path, corpus), NAME, "has README.md, which ldm did not write")
    assert stored(hub, "README.md").read_text() == "theirs"


def test_a_manifest_that_changed_while_data_were_sent_is_not_overwritten(hub, tmp_path, corpus, monkeypatch):
    assert publish(hub, tmp_path, corpus).returncode == 0
    program = f"""
from pathlib import Path
from ldm_hf.cli.main import run_command
from ldm_hf.dataset_builder.repository import publish
before = publish._unchanged_head
def changed(api, name, there):
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="manifest.parquet", repo_id=name, repo_type="dataset")
    return before(api, name, there)
publish._unchanged_head = changed
run_command(lambda: publish.publish(Path({str(corpus)!r}), "writer", delete=True, agree=lambda changes: None))
"""
    without(corpus, "Pendulum-v1")
    one_line_error(run_program(hub, tmp_path, program), NAME, "another process published to it meanwhile")
    assert stored(hub, "manifest.parquet").read_text() == "theirs"


def test_a_file_that_was_changed_after_it_was_hashed_is_not_sent(hub, tmp_path, corpus):
    path = next((corpus / "gymnasium/CartPole-v1/PPO-0").glob("train-*"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    one_line_error(publish(hub, tmp_path, corpus), "other content than its manifest says", path.name)
    assert not commits(hub)


def test_a_manifest_cannot_publish_what_lies_outside(hub, tmp_path, corpus):
    (tmp_path / "data/secret.parquet").write_bytes(b"secret")
    manifest = corpus / "gymnasium/manifest.parquet"
    table = pq.read_table(manifest)
    rows = table.to_pylist()
    for path in ("../secret.parquet", str(tmp_path / "data/secret.parquet")):
        rows[0]["files"][0] = {**rows[0]["files"][0], "path": path, "bytes": 6}
        pq.write_table(table.from_pylist(rows, table.schema), manifest)
        one_line_error(publish(hub, tmp_path, corpus), repr(path), "is not a path within the repository")
    assert not hub.requests


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "streamed"])
def test_the_reader_gives_the_same_from_the_hub(hub, tmp_path, corpus, cached):
    assert publish(hub, tmp_path, corpus).returncode == 0
    program = f"""
import hashlib
from ldm_hf.dataset_builder.format.reader import open_datasets
for data in open_datasets("hf://datasets/{NAME}", cached={cached}):
    digest = hashlib.sha256()
    for index in range(data.num_chunks):
        chunk = data.chunk(index)
        digest.update(chunk.observations.tobytes() + chunk.reference_actions.tobytes())
    print(data.environment, digest.hexdigest())
"""
    hub.requests.clear()
    hub.cut_after("CliffWalking-v1/DQN-0/train", 5000)  # once: the client, or we, continue
    found = run_program(hub, tmp_path, program)
    expected = []
    for dataset in open_datasets(corpus):
        digest = hashlib.sha256()
        for index in range(dataset.num_chunks):
            chunk = dataset.chunk(index)
            digest.update(chunk.observations.tobytes() + chunk.reference_actions.tobytes())
        expected.append(f"{dataset.environment} {digest.hexdigest()}")
    assert found.stdout.splitlines() == expected, found.stderr
    terminal = [path for method, path in hub.requests if "terminal" in path or "policy" in path]
    assert not terminal  # what is not read is not fetched


def test_training_reads_from_the_hub(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    outputs = {}
    for place, data in (("hub", f"hf://datasets/{NAME}"), ("local", str(corpus))):
        settings = {"data": data, "output_dir": str(tmp_path / place), "model": "nano", "model_overrides": TOY_MODEL}
        settings |= {"max_steps": 2, "train_batch_size": 2, "report_to": "none", "environments": [CARTPOLE, PENDULUM]}
        path = tmp_path / f"{place}.yaml"
        path.write_text(json.dumps(settings))
        command = ("train", "--config", path)
        done = run_ldm(*command, env=environment(hub, tmp_path)) if place == "hub" else run_ldm_here(*command)
        assert done.returncode == 0, done.stderr
        outputs[place] = (tmp_path / place / "model/model.safetensors").read_bytes()
    assert outputs["hub"] == outputs["local"]


def test_whatever_the_hub_does_is_one_line(hub, tmp_path, corpus):
    one_line_error(publish(hub, tmp_path, corpus, token="hf_wrong"), "token", "HTTP 401")
    one_line_error(publish(hub, tmp_path, corpus, token=""), "there is no token", "HF_TOKEN")
    one_line_error(publish(hub, tmp_path, corpus, token="hf_reader"), "the token may only read", "HF_TOKEN")
    one_line_error(publish(hub, tmp_path, corpus, token="hf_other"), "'writer'", "it may to other")
    for name in ("no such/name", "", "-writer", "nobody"):
        one_line_error(publish(hub, tmp_path, corpus, "--namespace", name), f"namespace {name!r}", "it may to writer")
    assert not hub.repos
    one_line_error(publish(hub, tmp_path, tmp_path / "nothing"), "holds no datasets")
    assert publish(hub, tmp_path, corpus).returncode == 0

    model = Path(__file__).parents[1] / "pretrained/ldm-mini"

    def evaluate(data):  # which reads the data before it loads the model
        arguments = ("evaluate", model, "--data", data, "--output", tmp_path / "o")
        return run_ldm(*arguments, env=environment(hub, tmp_path))

    one_line_error(evaluate("hf://datasets/writer/missing"), "hf://datasets/writer/missing", "no such repository")
    one_line_error(evaluate(f"hf://datasets/{NAME}@v9"), "no such revision")
    one_line_error(evaluate("hf://writer"), "is not an address of a dataset")
    hub.cut_after("manifest.parquet", 100, times=100)
    one_line_error(evaluate(f"hf://datasets/{NAME}"), "manifest.parquet", "connection to the Hub broke")
    hub.faults.clear()
    hub.fail("GET", "manifest.parquet", 501, times=100)
    hub.fail("HEAD", "manifest.parquet", 501, times=100)
    one_line_error(evaluate(f"hf://datasets/{NAME}"), "manifest.parquet", "HTTP 501")


def test_a_full_disk_under_the_cache_is_one_line(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    program = f"""
import resource
from ldm_hf.cli.main import run_command
from ldm_hf.dataset_builder.format.reader import open_datasets
[data] = open_datasets("hf://datasets/{NAME}", [{CLIFF!r}])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run_command(lambda: data.chunk(0))
"""
    one_line_error(run_program(hub, tmp_path, program), "CliffWalking-v1", "File too large")


def test_chunks_are_streamed_in_few_requests(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    program = f"""
from ldm_hf.dataset_builder.format.reader import open_datasets
[data] = open_datasets("hf://datasets/{NAME}", [{CLIFF!r}], cached=False)
data.chunk(0)
print("opened", flush=True)
data.chunk(1)
"""
    hub.requests.clear()
    assert run_program(hub, tmp_path, program).returncode == 0
    reads = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path and "train-" in path]
    assert len(reads) <= 6  # the footer's length and the footer, then one or two for each chunk


def test_the_reader_s_errors_name_the_hub_s_file(hub, tmp_path, corpus):
    path = next((corpus / "gymnasium/CartPole-v1/PPO-0").glob("train-*"))
    assert publish(hub, tmp_path, corpus).returncode == 0
    files = hub.repos["datasets", NAME].find("main").files
    blob, _ = files[f"CartPole-v1/PPO-0/{path.name}"]
    stored = hub.folder / blob.sha256
    content = bytearray(stored.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(60)
    stored.write_bytes(content)
    program = f"""
from ldm_hf.cli.main import run_command
from ldm_hf.dataset_builder.format.reader import open_datasets
[data] = open_datasets("hf://datasets/{NAME}", [{CARTPOLE!r}], cached=False)
run_command(lambda: [data.chunk(index) for index in range(data.num_chunks)])
"""
    found = run_program(hub, tmp_path, program)
    one_line_error(found, f"hf://datasets/{NAME}/CartPole-v1/PPO-0/{path.name}", "damaged in chunk")
