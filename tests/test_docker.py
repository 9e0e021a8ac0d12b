"""Hostile environments in containers: the client survives, says what happened, and leaves nothing behind."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest

from ldm_hf.env_registry.library.manifest import Manifest
from ldm_hf.env_registry.providers import docker as containers
from ldm_hf.env_registry.providers.base import Limits
from ldm_hf.env_registry.providers.docker import OWNER_LABEL, DockerProvider, engine, engine_problem
from ldm_hf.env_registry.remote.vector_env import RemoteEnv, RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from ldm_hf.errors import EnvironmentFailure

PROBLEM = engine_problem()
REQUIRED = bool(os.environ.get("CI") or os.environ.get("LDM_REQUIRE_DOCKER"))
pytestmark = pytest.mark.skipif(
    PROBLEM is not None and not REQUIRED, reason=f"no containers here: {PROBLEM}; see docs/docker.md"
)

# Marks the processes of this run, also those that a killed parent started, among all others of the machine.
TOKEN_VARIABLE = "LDM_TEST_TOKEN"
TOKEN = os.environ.setdefault(TOKEN_VARIABLE, uuid.uuid4().hex)
PARENTS: set[str] = set()

HOSTILE = Manifest(
    slug="hostile",
    requirements=(str(Path(__file__).parent / "hostile"),),
    python="3.11",
    modules=("ldm_hostile", "ldm_behaved"),
    packages=("ldm_hostile", "ldm_behaved"),
    licence="Apache-2.0",
    homepage="",
    environment={TOKEN_VARIABLE: TOKEN},
)
LIMITS = Limits(memory=300 << 20, processes=64, file_size=16 << 20, tmp_size=32 << 20)
TIMEOUT = 10.0
DEADLINE = 60.0  # of a wait that ends as soon as it can


@pytest.fixture(scope="module")
def provider():
    if PROBLEM is not None:
        pytest.fail(f"a Docker engine is required here: {PROBLEM}")
    found = DockerProvider(HOSTILE)
    found.build()
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = leftovers()
    yield
    wait_until(lambda: leftovers() <= before, lambda: f"left behind: {leftovers() - before}")


def leftovers() -> set[str]:
    """What is there of this run: containers, processes inside or outside of them, socket folders; named shared memory."""
    if PROBLEM is not None:
        return set()
    listed = engine().containers.list(all=True, filters={"label": OWNER_LABEL}, ignore_removed=True)
    owners = {str(os.getpid()), *PARENTS}
    folders = [path for owner in owners for path in Path(tempfile.gettempdir()).glob(f"ldm-worker-{owner}-*")]
    return (
        {container.id for container in listed if container.labels[OWNER_LABEL] in owners}
        | {path.name for path in folders}
        | {str(process.pid) for process in psutil.process_iter() if is_ours(process)}
        # Those of process pools and of loaders are left out: other tests may run at the same time.
        | {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(("sem.mp-", "torch_"))}
    )


def is_ours(process: psutil.Process) -> bool:
    """Whether the process has a worker's variables, which all that a worker starts inherits."""
    try:
        return process.environ().get(TOKEN_VARIABLE) == TOKEN
    except psutil.Error:
        return False


def wait_until(condition, message):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def settings(provider, harm, **changes):
    return RemoteSettings(provider, f"Hostile/{harm}-v0", **{"limits": LIMITS, "step_timeout": TIMEOUT, **changes})


def third_step(env):
    """Two steps that are harmless, and the one that is not."""
    env.reset(seed=0)
    for count in (1, 2):
        observation, reward, *_ = env.step(0)
        assert (observation == count).all() and reward == 1.0
    return env.step(0)


ENDS = {
    "segfault": "was killed by signal 11",
    "exit": "exited with status 7, its last output 'leaving early'",
    "system_exit": "exited with status 3",
    "raise_error": "step failed: ValueError: no such luck",
    "hang": "step gave no answer within 2 s",
    "hang_in_c": "step gave no answer within 2 s",
    "ignore_signals": "step gave no answer within 2 s",
    "garbage": "step was answered by garbage",
    "false_message": "step was answered by garbage",
    "wrong_shape": r"observation has shape \(7, 2\), the space says \(3,\)",
    "wrong_type": "step failed",
    "flood": "exited with status 5",
    "fork_bomb": "step gave no answer within 2 s",
    "eat_memory": "out of memory",
    "leave_a_process": "exited with status 0",
    "kill_supervisor": "the worker|gave no answer",
    "use_network": "Network is unreachable",
    "write_root": "Read-only file system",
    "fill_tmp": "No space left|File too large|killed by signal 25",
}


@pytest.mark.parametrize("harm", ENDS)
def test_harm_is_a_typed_error_within_the_timeout(provider, harm):
    timeout = 2.0 if "2 s" in ENDS[harm] else TIMEOUT
    env = RemoteEnv(settings(provider, harm, step_timeout=timeout))
    with pytest.raises(EnvironmentFailure, match=ENDS[harm]) as caught:
        third_step(env)
    assert "\n" not in str(caught.value) and f"hostile/Hostile/{harm}-v0" in str(caught.value)
    # The environment that failed is replaced by the next reset.
    observation, _ = env.reset(seed=1)
    assert (observation == 0).all() and (env.step(0)[0] == 1).all()
    env.close()


def test_a_container_has_no_privileges(provider):
    env = RemoteEnv(settings(provider, "privileges"))
    observation = third_step(env)[0]
    assert (observation == 0).all(), "root, capabilities or new privileges"
    env.close()


@pytest.mark.parametrize("harm", ["segfault", "hang", "garbage", "raise_error"])
def test_a_failing_environment_is_replaced_and_the_others_continue(provider, harm):
    envs = RemoteVectorEnv(
        settings(provider, harm, kwargs={"only": 1}, step_timeout=2.0, restart=True),
        3,
        num_workers=3,
        autoreset_mode="SameStep",
    )
    envs.reset(seed=0)
    actions = np.zeros(3, int)
    for _ in range(2):
        envs.step(actions)
    observations, rewards, terminated, truncated, info = envs.step(actions)
    assert observations[:, 0].tolist() == [3, 0, 3] and rewards.tolist() == [1, 0, 1]
    assert truncated.tolist() == [False, True, False] and not terminated.any()
    assert info["final_obs"][1].tolist() == [2, 2, 2] and info["_final_obs"].tolist() == [False, True, False]
    assert f"hostile/Hostile/{harm}-v0" in info["final_info"]["worker_failure"][1]
    assert envs.step(actions)[0][:, 0].tolist() == [4, 1, 4]
    envs.close()


def test_without_restart_the_others_keep_their_state(provider):
    envs = RemoteVectorEnv(settings(provider, "segfault", kwargs={"only": 1}), 2, num_workers=2)
    envs.reset(seed=0)
    actions = np.zeros(2, int)
    envs.step(actions)
    envs.step(actions)
    with pytest.raises(EnvironmentFailure, match="signal 11"):
        envs.step(actions)
    with pytest.raises(EnvironmentFailure, match=r"call reset\(\)"):
        envs.step(actions)
    assert (envs.reset(seed=5)[0] == 0).all() and (envs.step(actions)[0] == 1).all()
    envs.close()


def test_one_environment_with_restart_ends_its_episode(provider):
    env = RemoteEnv(settings(provider, "segfault", restart=True))
    observation, reward, terminated, truncated, info = third_step(env)
    assert (observation == 2).all() and (reward, terminated, truncated) == (0.0, False, True)
    assert "signal 11" in info["worker_failure"]
    env.reset(seed=3)
    assert (env.step(0)[0] == 1).all()
    env.close()


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_docker import *
envs = RemoteVectorEnv(settings(DockerProvider(HOSTILE), {harm!r}, step_timeout=600), 2, num_workers=2)
envs.reset(seed=0)
for _ in range(2): envs.step(np.zeros(2, int))
print("ready", flush=True)
envs.step(np.zeros(2, int))
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("harm", ["hang", "hang_in_c", "ignore_signals", "fork_bomb", "privileges"])
def test_nothing_outlives_a_killed_parent(provider, harm):
    code = PARENT.format(tests=str(Path(__file__).parent), harm=harm)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        PARENTS.add(str(parent.pid))
        assert parent.stdout.readline() == "ready\n"
        if harm == "privileges":  # nothing hangs: killed between steps
            assert parent.stdout.readline() == "done\n"
        assert len(engine().containers.list(filters={"label": f"{OWNER_LABEL}={parent.pid}"})) == 2
        parent.send_signal(signal.SIGKILL)
    # `nothing_is_left` waits for the containers to go.


@pytest.fixture
def fresh_engine():
    engine.cache_clear()
    yield
    engine.cache_clear()


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:1", "unix:///nowhere/docker.sock"])
def test_an_engine_out_of_reach_is_one_clear_line(monkeypatch, fresh_engine, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    problem = engine_problem()
    assert problem.startswith(("no Docker engine answers", "the Docker engine at")) and "\n" not in problem
    with pytest.raises(EnvironmentFailure, match="Docker engine"):
        DockerProvider(HOSTILE).build()


def test_an_engine_behind_tcp_is_refused_even_if_it_answers(monkeypatch, fresh_engine):
    class Client:
        api = type("Api", (), {"base_url": "http://10.0.0.1:2375"})

        def ping(self):
            return True

    monkeypatch.setattr("docker.from_env", lambda **_: Client())
    assert engine_problem().startswith("the Docker engine at http://10.0.0.1:2375 is not reached by a Unix socket")
    Client.api.base_url = "http+docker://ssh"
    assert "http+docker://ssh" in engine_problem()


def test_an_image_that_is_missing_is_never_taken_from_a_registry(provider, monkeypatch):
    missing = DockerProvider(dataclasses.replace(HOSTILE, slug="never-built"))
    asked = []
    monkeypatch.setattr("docker.models.images.ImageCollection.pull", lambda *args, **_: asked.append(args))
    with pytest.raises(EnvironmentFailure, match="container of 'never-built' did not start: 404"):
        RemoteEnv(settings(missing, "exit"))
    assert asked == []


def test_an_image_of_another_definition_is_known(provider):
    changed = DockerProvider(dataclasses.replace(HOSTILE, system_packages=("g++",)))
    assert provider.was_built() and changed.was_built() and not changed.is_built()
    for slug in ("host", "hostile-too"):
        assert not DockerProvider(dataclasses.replace(HOSTILE, slug=slug)).was_built()


def test_a_build_that_fails_says_why_and_leaves_no_container(provider):
    manifest = dataclasses.replace(HOSTILE, slug="broken", requirements=("/nowhere/at-all",))
    before = {found.id for found in engine().containers.list(all=True)}
    with pytest.raises(EnvironmentFailure, match=r"image of 'broken' could not be built: .*/nowhere/at-all") as caught:
        DockerProvider(manifest).build()
    assert "\n" not in str(caught.value) and not DockerProvider(manifest).is_built()
    assert {found.id for found in engine().containers.list(all=True)} <= before


def test_containers_of_a_process_that_is_gone_are_removed(provider, monkeypatch):
    with subprocess.Popen(["true"]) as gone:
        pass
    labels = containers._labels()
    elsewhere = {**labels, OWNER_LABEL: str(gone.pid), "ldm-hf.pids": "another-machine/1"}
    made = [
        engine().containers.create(provider.tag, ["sleep", "3600"], labels=one)
        for one in ({**labels, OWNER_LABEL: str(gone.pid)}, {**labels, OWNER_LABEL: str(gone.pid)}, labels, elsewhere)
    ]
    made[1].start()  # as if its supervisor stayed
    RemoteEnv(settings(provider, "exit")).close()
    left = {found.id for found in engine().containers.list(all=True, ignore_removed=True)}
    for container in made[2:]:
        container.remove(force=True)
    assert [container.id in left for container in made] == [False, False, True, True]
