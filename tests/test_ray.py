"""A real Ray cluster of several raylets on this machine, one of which is killed while it works."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import run_ldm
from ldm_hf.dataset_builder.format.records import RunRecord

pytest.importorskip("ray")
pytestmark = pytest.mark.long
CARTPOLE = "gymnasium/CartPole-v1"


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    # Ray passes the driver's address on to its children; two nodes of two cores beside a head that works on nothing.
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    running.nodes = [running.add_node(num_cpus=2) for _ in range(2)]
    running.wait_for_nodes()
    yield running
    running.shutdown()


def results(out: Path) -> list[Path]:
    return sorted(out.glob("gymnasium/*/*/run.json"))


def test_a_node_that_is_killed_loses_no_run(cluster, tmp_path):
    out = tmp_path / "data"
    arguments = ["build", CARTPOLE, "gymnasium/Acrobot-v1", "--budget", "small", "--transitions", "20000"]
    arguments += ["--keep-unstable", "--output", str(out), "--executor", "ray", "--address", cluster.address]
    for name in ("A2C", "PPO", "PPO-short-rollouts"):
        arguments += ["--candidates", name]
    command = [sys.executable, "-m", "ldm_hf", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        while not list(out.glob("gymnasium/*/*.partial-*")):  # a run is being recorded
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.05)  # polling another process; nothing depends on how long it takes
        lost = cluster.nodes[0]
        cluster.remove_node(lost, allow_graceful=False)
        printed, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, errors
    records = [RunRecord.read(path.parent) for path in results(out)]
    assert len(records) == 6 and not any(record.failed for record in records), printed
    assert not list(out.rglob("*.partial-*"))
    before = [path.stat().st_mtime_ns for path in results(out)]
    again = run_ldm(*arguments)
    assert again.returncode == 0 and [path.stat().st_mtime_ns for path in results(out)] == before


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    for address in ("127.0.0.1:1", "auto"):
        done = run_ldm(
            *(
                "build",
                CARTPOLE,
                "--budget",
                "paper",
                "--candidates",
                "A2C",
                "--transitions",
                2000,
                "--output",
                tmp_path,
            ),
            *("--executor", "ray", "--address", address),
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert done.returncode == 1 and len(lines) == 1, done.stderr
        assert lines[0].startswith(f"error: no Ray cluster at {address}: ") and "Traceback" not in done.stderr
