"""Datasets on a Hub of the real protocol, with the real clients, each in a process of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from conftest import CARTPOLE, CLIFF, PENDULUM, TOY_MODEL, run_ldm, run_ldm_here
from ldm_hf.dataset_builder.reader import open_datasets
from ldm_hf.dataset_builder.repository import update_repository
from loopback import LoopbackHub

TOKEN = "hf_writer"


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "blobs", {TOKEN: "writer", "hf_other": "other"}) as running:
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
    assert lengths == {"CartPole-v1": 2048, "CliffWalking-v1": 12_000, "Pendulum-v1": 4096}
    table = pq.read_table(corpus / "gymnasium/CartPole-v1/PPO-0/train-00000-of-00001.parquet")
    assert (run, step) == ("PPO-0", table["step"][0].as_py()) and observation == table["observation"][0].as_py()
    # Again: nothing is sent, and no commit is made.
    hub.requests.clear()
    assert publish(hub, tmp_path, corpus).returncode == 0
    assert not puts(hub) and not commits(hub)


def test_an_interrupted_upload_goes_on_with_what_is_missing(hub, tmp_path, corpus):
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


def test_a_run_that_is_gone_is_deleted_and_a_changed_one_replaced(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    shutil.rmtree(corpus / "gymnasium/CliffWalking-v1")
    update_repository(corpus / "gymnasium")
    assert publish(hub, tmp_path, corpus).returncode == 0
    files = hub.repos["datasets", NAME].find("main").files
    assert not any(path.startswith("CliffWalking") for path in files)
    assert {"README.md", "manifest.parquet", "runs.parquet", "learning_curves.png"} <= set(files)


def test_a_file_that_was_changed_after_it_was_hashed_is_found_out(hub, tmp_path, corpus):
    path = next((corpus / "gymnasium/CartPole-v1/PPO-0").glob("train-*"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    one_line_error(publish(hub, tmp_path, corpus), "Hub holds other content", path.name)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "streamed"])
def test_the_reader_gives_the_same_from_the_hub(hub, tmp_path, corpus, cached):
    assert publish(hub, tmp_path, corpus).returncode == 0
    program = f"""
import hashlib
from ldm_hf.dataset_builder.reader import open_datasets
for data in open_datasets("hf://datasets/{NAME}", cached={cached}):
    digest = hashlib.sha256()
    for index in range(data.num_chunks):
        chunk = data.chunk(index)
        digest.update(chunk.observations.tobytes() + chunk.reference_actions.tobytes())
    print(data.environment, digest.hexdigest())
"""
    hub.requests.clear()
    hub.cut_after("CliffWalking-v1/DQN-0/train", 5000)  # once: the client, or we, go on
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
        settings = {"data": data, "output": str(tmp_path / place), "model": "nano", "model_overrides": TOY_MODEL}
        settings |= {"steps": 2, "batch_size": 2, "log_with": "none", "environments": [CARTPOLE, PENDULUM]}
        path = tmp_path / f"{place}.yaml"
        path.write_text(json.dumps(settings))
        command = ("train", "--config", path)
        done = run_ldm(*command, env=environment(hub, tmp_path)) if place == "hub" else run_ldm_here(*command)
        assert done.returncode == 0, done.stderr
        outputs[place] = (tmp_path / place / "model/model.safetensors").read_bytes()
    assert outputs["hub"] == outputs["local"]


def test_whatever_the_hub_does_is_one_line(hub, tmp_path, corpus):
    one_line_error(publish(hub, tmp_path, corpus, token="hf_wrong"), "token", "HTTP 401")
    one_line_error(publish(hub, tmp_path, corpus, token="hf_other"), NAME, "HTTP 403")
    one_line_error(publish(hub, tmp_path, tmp_path / "nothing"), "holds no datasets")
    assert publish(hub, tmp_path, corpus).returncode == 0

    def evaluate(data):  # which reads the data first, as training does, and needs no model for it
        arguments = ("evaluate", tmp_path / "nothing", "--data", data, "--output", tmp_path / "o")
        return run_ldm(*arguments, env=environment(hub, tmp_path))

    one_line_error(evaluate("hf://datasets/writer/missing"), "hf://datasets/writer/missing", "no such repository")
    one_line_error(evaluate(f"hf://datasets/{NAME}@v9"), "no such revision")
    one_line_error(evaluate("hf://writer"), "is no address of a dataset")
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
from ldm_hf.cli import run_command
from ldm_hf.dataset_builder.reader import open_datasets
[data] = open_datasets("hf://datasets/{NAME}", [{CLIFF!r}])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run_command(lambda: data.chunk(0))
"""
    one_line_error(run_program(hub, tmp_path, program), "CliffWalking-v1", "File too large")


def test_chunks_are_streamed_in_few_requests(hub, tmp_path, corpus):
    assert publish(hub, tmp_path, corpus).returncode == 0
    program = f"""
from ldm_hf.dataset_builder.reader import open_datasets
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
from ldm_hf.cli import run_command
from ldm_hf.dataset_builder.reader import open_datasets
[data] = open_datasets("hf://datasets/{NAME}", [{CARTPOLE!r}], cached=False)
run_command(lambda: [data.chunk(index) for index in range(data.num_chunks)])
"""
    found = run_program(hub, tmp_path, program)
    one_line_error(found, f"hf://datasets/{NAME}/CartPole-v1/PPO-0/{path.name}", "damaged in chunk")
