"""The job graph: what is planned, what runs when, what is kept, and what a killed driver leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces

from conftest import run_ldm, run_ldm_here
from ldm_hf.cli.common import make_executor
from ldm_hf.dataset_builder.build.budgets import BUDGETS, Budget, choose_budget
from ldm_hf.dataset_builder.build.costs import run_seconds
from ldm_hf.dataset_builder.build.jobs import Job, _write_curve
from ldm_hf.dataset_builder.build.pipeline import Build, run_build
from ldm_hf.dataset_builder.build.plan import _shares, estimate, make_plan
from ldm_hf.dataset_builder.build.settings import BuildSettings
from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.dataset_builder.reference.candidates import choose_pool, pool
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.repository.publish import publish
from ldm_hf.env_registry.registry import spec
from ldm_hf.errors import ConfigError, DatasetFormatError, StorageError, UnknownEnvironmentError
from ldm_hf.executors.base import JobResult
from ldm_hf.executors.local import LocalExecutor
from ldm_hf.utils.files import sole_writer
from test_dataset_builder import some_info

CARTPOLE, ACROBOT, PENDULUM = "gymnasium/CartPole-v1", "gymnasium/Acrobot-v1", "gymnasium/Pendulum-v1"
PAPER = ("--budget", "paper")
NAMES = ("A2C", "ARS", "PPO", "TRPO")


def test_a_plan_ranks_together_what_competes_on_the_same_environments():
    plan = make_plan([CARTPOLE, PENDULUM, ACROBOT], pool(), BUDGETS["paper"], seed=0)
    by_environment = {one.spec.id: group for group in plan.groups for one in group.environments}
    assert by_environment[CARTPOLE] is by_environment[ACROBOT] is not by_environment[PENDULUM]
    assert {"DQN", "QRDQN", "PPO", "ARS"} <= set(by_environment[CARTPOLE].candidates)
    assert {"SAC", "TQC", "TD3", "DDPG", "A2C-normalized"} <= set(by_environment[PENDULUM].candidates)
    assert "SAC" not in by_environment[CARTPOLE].candidates and "DQN" not in by_environment[PENDULUM].candidates
    assert by_environment[CARTPOLE].ranked_on == (ACROBOT, CARTPOLE)
    incompatible = by_environment[CARTPOLE].environments[0].incompatible
    assert (
        incompatible["SAC"] == "SAC does not act in Discrete spaces"
        and incompatible["PPO-images"] == "it is made for images"
    )


def test_a_library_is_planned_as_a_whole_up_to_a_number():
    budget = replace(BUDGETS["paper"], max_environments=10)
    plan = make_plan(["minigrid"], pool(), budget, seed=0)
    ids = {one.spec.id for group in plan.groups for one in group.environments}
    assert len(ids) == 10 and all(name.startswith("minigrid/") for name in ids)
    assert ids == {
        one.spec.id for group in make_plan(["minigrid"], pool(), budget, 0).groups for one in group.environments
    }
    assert ids != {
        one.spec.id for group in make_plan(["minigrid"], pool(), budget, 1).groups for one in group.environments
    }
    [group] = plan.groups
    assert len(group.ranked_on) == 5 and "PPO-images" in group.candidates and "ARS" not in group.candidates


def test_what_cannot_be_built_is_left_out_with_the_reason():
    plan = make_plan([CARTPOLE, "gym-algorithmic/Copy-v0"], pool(), BUDGETS["paper"], seed=0)
    assert "does not act in Tuple" in plan.left_out["gym-algorithmic/Copy-v0"]
    with pytest.raises(ConfigError, match="none of gym-algorithmic/Copy-v0 can be built"):
        make_plan(["gym-algorithmic/Copy-v0"], pool(), BUDGETS["paper"], seed=0)
    with pytest.raises(UnknownEnvironmentError, match="no library is called 'nothing'"):
        make_plan(["nothing"], pool(), BUDGETS["paper"], seed=0)
    # With no more candidates than are trained there is no ranking, for which a run might be too short.
    budget = choose_budget("small", 20_000)
    for names, fits in [(("PPO", "A2C"), True), (("PPO", "A2C", "TRPO", "ARS"), False)]:
        [group] = make_plan([CARTPOLE], choose_pool(names), budget, 0).groups
        assert ("PPO" in group.candidates) == fits
    with pytest.raises(ConfigError, match="no candidate is called PPG"):
        choose_pool(("PPG",))


def test_budgets():
    small = BUDGETS["small"]
    assert BUDGETS["paper"] == Budget(3_000_000, {}, 1.0, 5, 3, 250)
    assert small.run_transitions(pool()["DQN"]) == 15_000 and small.ranking_transitions(pool()["PPO"]) == 15_000
    assert "begins to learn after 10,000 of 1,500" in small.shortfall(pool()["TD3-noise"], 200)
    assert "fewer than 10 episodes of 200" in small.shortfall(pool()["SAC"], 200)
    assert "begins to learn after 16,384 of 15,000" in small.shortfall(pool()["PPO-long-rollouts"], 100)
    assert small.shortfall(pool()["PPO-long-rollouts"], 100, ranked=False) is None
    assert small.shortfall(pool()["SAC"], 100) is None and small.shortfall(pool()["PPO"], 10**6) is None
    assert choose_budget("small", 1000).run_transitions(pool()["SAC"]) == 100
    with pytest.raises(ConfigError, match="budget must be one of race, paper, small"):
        choose_budget("large", None)


@pytest.mark.parametrize(
    ("sizes", "expected"), [([3], [3]), ([10], [5]), ([8, 2], [4, 1]), ([9, 9, 9], [2, 2, 1]), ([1] * 7, [1] * 7)]
)
def test_five_environments_are_shared_by_the_kinds_of_a_library(sizes, expected):
    assert _shares(sizes, 5) == expected


def test_the_estimate_by_hand():
    plan = make_plan([CARTPOLE], choose_pool(NAMES), BUDGETS["paper"], seed=0)
    found = estimate(plan, pool(), BUDGETS["paper"])
    seconds = [run_seconds(spec(CARTPOLE), pool()[name], 3_000_000) for name in NAMES]
    assert (found.ranking_runs, found.runs, found.transitions) == (4, 3, 21_000_000)
    assert found.core_hours * 3600 == pytest.approx(sum(seconds) + 0.75 * sum(seconds))
    assert found.bytes == pytest.approx(3 * 3_000_000 * (4 + 2 + 1) * 3)


class Script:
    """An executor whose jobs end at once with results that a test wrote."""

    def __init__(self, results, slots=2):
        self.results, self.slots, self.started, self.waiting = results, slots, [], []

    def has_room(self, job):
        return len(self.waiting) < self.slots

    def submit(self, job):
        self.started.append(job.name)
        self.waiting.append(job)

    def wait(self, seconds):
        job, self.waiting = self.waiting[0], self.waiting[1:]
        result = self.results(job)
        if isinstance(result, str):
            return [JobResult(job, result)]
        if job.ranking:
            _write_curve(job.result, result, None)
        elif result is None:
            job.fail("failed: by the script")
        else:
            write_run(job, result)
        return [JobResult(job)]

    def messages(self):
        return []

    def close(self):
        pass


def curve(first: float, last: float) -> LearningCurve:
    return LearningCurve(Sample(first, 1, 50), Sample(last, 1, 50), [1, 2], [first, last])


def write_run(job: Job, result: LearningCurve) -> None:
    described = spec(job.request.environment)
    info = replace(
        some_info(spaces.Discrete(2), spaces.Discrete(2), 0),
        environment=described.id,
        run=job.request.name,
        observation_space=described.observation_space,
        action_space=described.action_space,
        curve=result,
    )
    folder = job.result.parent
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00001.parquet").write_bytes(b"")
    RunRecord(described.id, info.run, None, info).write(folder)


def a_build(root, environments=(CARTPOLE, ACROBOT), names=("A2C", "ARS", "PPO", "TRPO", "DQN"), seed=0):
    chosen = choose_pool(names)
    plan = make_plan(environments, chosen, BUDGETS["paper"], seed)
    return Build(plan, BuildSettings(chosen, BUDGETS["paper"], seed), root)


ORDER = {"PPO": 50, "DQN": 40, "TRPO": 30, "A2C": 20, "ARS": 10}


def by_order(job):
    return curve(0, ORDER[job.request.candidate.name])


def test_the_best_three_of_the_ranking_are_trained_on_each_environment(tmp_path):
    executor, said = Script(by_order), []
    run_build(a_build(tmp_path), executor, said.append)
    ranked = [name for name in executor.started if name.startswith("ranking")]
    assert len(ranked) == 10 and executor.started[:10] == ranked
    assert sorted(executor.started[10:]) == sorted(
        f"{environment} {name}" for environment in (CARTPOLE, ACROBOT) for name in ("PPO", "DQN", "TRPO")
    )
    # DQN reaches 80 % and TRPO 60 % of PPO's improvement: both are below 95 %.
    runs = pq.read_table(tmp_path / "gymnasium/runs.parquet").to_pylist()
    assert [run["run"] for run in runs if run["kept"]] == ["PPO-0", "PPO-0"]
    assert runs[1]["reason"] == "" and "reaches 80.0% of the best run, PPO-0" in runs[0]["reason"]
    assert not list((tmp_path / "gymnasium/CartPole-v1/DQN-0").glob("*.parquet"))
    assert "gymnasium/CartPole-v1 PPO: 0 -> 50" in said
    # The same again runs nothing; another environment is trained with what was chosen.
    again = Script(by_order)
    run_build(a_build(tmp_path), again, said.append)
    assert again.started == []
    more = Script(by_order)
    run_build(a_build(tmp_path, (CARTPOLE, ACROBOT, "gymnasium/MountainCar-v0")), more, said.append)
    assert more.started == [f"gymnasium/MountainCar-v0 {name}" for name in more_names(more)]
    assert set(more_names(more)) == {"PPO", "DQN", "TRPO"}


def more_names(executor):
    return [name.split()[-1] for name in executor.started]


def test_a_few_candidates_need_no_ranking(tmp_path):
    executor = Script(by_order)
    run_build(a_build(tmp_path, (CARTPOLE,), ("PPO", "A2C")), executor, lambda line: None)
    assert sorted(executor.started) == [f"{CARTPOLE} A2C", f"{CARTPOLE} PPO"]


def test_failures_are_results_and_crashes_are_tried_once_more(tmp_path):
    def results(job):
        if job.ranking:
            return None if job.request.candidate.name == "PPO" else by_order(job)
        return {"DQN": by_order(job), "TRPO": None, "A2C": "its process died"}[job.request.candidate.name]

    executor, said = Script(results), []
    run_build(a_build(tmp_path, (CARTPOLE,)), executor, said.append)
    runs = {run["run"]: run for run in pq.read_table(tmp_path / "gymnasium/runs.parquet").to_pylist()}
    assert set(runs) == {"A2C-0", "DQN-0", "TRPO-0"}  # the candidate that failed in the ranking is its last
    assert runs["DQN-0"]["kept"] and runs["TRPO-0"]["reason"] == "failed: by the script"
    assert runs["A2C-0"]["reason"] == "failed: its process died" and executor.started.count(f"{CARTPOLE} A2C") == 2
    assert f"{CARTPOLE} A2C: its process died; once more" in said
    again = Script(by_order)
    run_build(a_build(tmp_path, (CARTPOLE,)), again, said.append)
    assert again.started == []
    build = a_build(tmp_path, (CARTPOLE,))
    assert build.forget_failures() == 3 and build.forget_failures() == 0
    run_build(build, again, said.append)
    # PPO is ranked first now, so that the best three are without A2C.
    assert sorted(again.started) == [f"{CARTPOLE} PPO", f"{CARTPOLE} TRPO", f"ranking {CARTPOLE} PPO"]


def test_a_library_that_taught_nothing_has_a_card_and_nothing_to_publish(tmp_path):
    run_build(
        a_build(tmp_path, (CARTPOLE,)), Script(lambda job: by_order(job) if job.ranking else None), lambda line: None
    )
    assert pq.read_metadata(tmp_path / "gymnasium/manifest.parquet").num_rows == 0
    card = (tmp_path / "gymnasium/README.md").read_text()
    assert "configs:" not in card and "failed: by the script" in card
    with pytest.raises(DatasetFormatError, match="lists a run that was kept"):
        publish(tmp_path, "writer")
    with pytest.raises(UnknownEnvironmentError, match="has no data of any environment; it has none"):
        open_datasets(tmp_path)


def test_a_folder_belongs_to_its_settings(tmp_path):
    a_build(tmp_path)
    with pytest.raises(ConfigError, match="built with another seed; choose another --output"):
        a_build(tmp_path, seed=1)
    with pytest.raises(ConfigError, match="built with another pool"):
        a_build(tmp_path, names=("PPO",))
    settings = json.loads((tmp_path / "build.json").read_text())
    del settings["format"]  # as of format version 2, whose curves are not comparable
    (tmp_path / "build.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="built with another format"):
        a_build(tmp_path)


def a_job(root, environment=CARTPOLE, name="PPO", transitions=2000, ranking=True):
    return Job(RunRequest(environment, pool()[name], transitions, 0), root, ranking, 1.0, 2**29)


def finish(executor, number):
    ended = []
    while len(ended) < number:
        ended += executor.wait(60)
    return ended


def test_local_processes_run_jobs_and_outlive_crashes(tmp_path, monkeypatch):
    executor = LocalExecutor(2)
    try:
        jobs = [a_job(tmp_path, name="A2C"), a_job(tmp_path, name="SAC")]  # the second cannot act in CartPole
        for job in jobs:
            assert executor.has_room(job)
            executor.submit(job)
        assert not executor.has_room(a_job(tmp_path))
        assert {ended.crash for ended in finish(executor, 2)} == {None}
        assert jobs[0].curve().last.size > 0 and jobs[1].curve() is None
        assert "cannot be trained on" in json.loads(jobs[1].result.read_text())["failure"]
        assert any(message.stage == "training" for message in executor.messages())
        killed = a_job(tmp_path, transitions=10**7)
        executor.submit(killed)
        while not any(message.name == killed.name for message in executor.messages()):
            assert not executor.wait(0.1)  # it trains
        for child in psutil.Process().children():
            if is_python(child):
                child.kill()
        [ended] = finish(executor, 1)
        assert "its process died" in ended.crash and not killed.is_done
        executor.submit(jobs[0])
        assert finish(executor, 1)[0].crash is None
    finally:
        executor.close()
    assert not [
        child for child in psutil.Process().children(recursive=True) if child.status() != "zombie" and is_python(child)
    ]


def test_processes_that_die_before_they_have_a_job_cost_nobody_a_run(tmp_path):
    """Whoever is killed while idle or starting takes all processes of the pool along: no job is to blame."""
    executor = LocalExecutor(2)
    try:
        job = a_job(tmp_path, name="A2C")
        executor.submit(job)
        killed: set[int] = set()
        for _ in range(2):
            while len(starting := [each for each in workers() if each.pid not in killed]) < 2:
                assert not executor.wait(0.05)
            for process in starting:
                process.kill()  # and let the pool be the one that waits for it
            killed |= {process.pid for process in starting}
        assert [ended.crash for ended in finish(executor, 1)] == [None] and job.curve() is not None
    finally:
        executor.close()


def workers():
    children = psutil.Process().children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE and is_python(child)]


def is_python(process):
    return "multiprocessing" in " ".join(process.cmdline()) and "resource_tracker" not in " ".join(process.cmdline())


def test_no_more_jobs_than_memory_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm_hf.executors.local.available_memory", lambda: 10 * 2**30)
    executor = LocalExecutor(8)
    try:
        large = replace(a_job(tmp_path), memory=5 * 2**30)
        executor._running = {object(): large}
        assert not executor.has_room(large) and executor.has_room(replace(large, memory=3 * 2**30))
        executor._running = {}
        assert executor.has_room(replace(large, memory=2**50))  # alone, it may try
    finally:
        executor.close()
    with pytest.raises(ConfigError, match="jobs must be at least 1"):
        LocalExecutor(0)


def test_a_full_disk_ends_the_build(tmp_path):
    class Full(Script):
        def wait(self, seconds):
            raise StorageError("no room")

    with pytest.raises(StorageError, match="no room"):
        run_build(a_build(tmp_path), Full(by_order), lambda line: None)


BUILD = ("--budget", "small", "--transitions", 6000, "--jobs", 2, "--keep-unstable")
CHOSEN = [part for name in ("A2C", "PPO-short-rollouts", "A2C-8-envs") for part in ("--candidates", name)]


@pytest.mark.parametrize(
    ("environments", "kills"),
    [((CARTPOLE,), (1,)), pytest.param((CARTPOLE, ACROBOT), (1, 3), marks=pytest.mark.slow)],
    ids=["once", "twice"],
)
def test_a_driver_that_is_killed_repeats_no_finished_run(tmp_path, environments, kills):
    """Killed with -9 in the middle: nothing runs on, nothing half written is read, nothing is made again."""
    out = tmp_path / "data"
    arguments = ("build", *environments, *BUILD, *CHOSEN, "--output", out)
    command = [sys.executable, "-m", "ldm_hf", *map(str, arguments)]
    finished: dict = {}
    for wanted in kills:
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
            process = psutil.Process(driver.pid)
            while len(list(out.glob("gymnasium/*/*/run.json"))) < wanted:
                assert driver.poll() is None
                time.sleep(0.05)  # polling another process; nothing depends on how long it takes
            children = process.children(recursive=True)
            os.kill(driver.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        found = {path: path.stat().st_mtime_ns for path in out.glob("gymnasium/*/*/run.json")}
        assert finished.items() <= found.items()
        finished = found
    done = run_ldm_here(*arguments)
    assert done.returncode == 0, done.stderr
    records = {path: path.stat().st_mtime_ns for path in out.glob("gymnasium/*/*/run.json")}
    assert len(records) == 3 * len(environments)
    # A run that the curation dropped has its record rewritten; its policy is as it was.
    for path, modified in finished.items():
        assert records[path] == modified or RunRecord.read(path.parent).dropped.startswith("reaches")
    assert not list(out.rglob("*.partial-*"))
    for dataset in open_datasets(out):
        assert sum(len(dataset.chunk(index)) for index in range(dataset.num_chunks)) == dataset.num_transitions
    assert "kept" in done.stdout and all(environment in done.stdout for environment in environments)
    again = run_ldm_here(*arguments)
    assert again.returncode == 0 and {path: path.stat().st_mtime_ns for path in records} == records


def test_long_runs_end_with_their_driver(tmp_path):
    arguments = (
        "build",
        CARTPOLE,
        *PAPER,
        "--transitions",
        10**8,
        "--candidates",
        "A2C",
        "--jobs",
        1,
        "--output",
        tmp_path,
    )
    command = [sys.executable, "-m", "ldm_hf", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        while not list(tmp_path.glob("gymnasium/*/*.partial-*/recording/action-*")):
            assert driver.poll() is None
            time.sleep(0.05)  # polling another process; nothing depends on how long it takes
        # A second build in this folder says so at once, whatever would run it.
        for more in ((), ("--executor", "ray", "--address", "127.0.0.1:1"), ("--retry-failed",)):
            second = run_ldm_here(*arguments, *more)
            assert second.returncode == 1 and second.stderr.count("\n") == 1
            assert second.stderr.startswith(f"error: another process is writing to {tmp_path}: ")
        assert not (tmp_path / "gymnasium/CartPole-v1/A2C-0").exists()
        children = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert children and not alive
    with sole_writer(tmp_path):
        pass


def test_a_build_of_which_every_run_failed_exits_with_1(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_PROVIDER", "docker")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    done = run_ldm_here("build", CARTPOLE, "--core-minutes", 0.1, "--jobs", 1, "--output", tmp_path)
    assert done.returncode == 1 and "Connection refused" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("every run failed")


def test_a_candidate_that_was_asked_for_and_does_not_fit_says_why(tmp_path):
    names = [part for name in ("SAC", "DQN", "A2C") for part in ("--candidates", name)]
    done = run_ldm_here(
        "build",
        CARTPOLE,
        PENDULUM,
        *PAPER,
        "--transitions",
        100_000,
        *names,
        "--output",
        tmp_path,
        "--executor",
        "none",
    )
    assert done.stderr.splitlines() == [
        f"left out: SAC on {CARTPOLE}: SAC does not act in Discrete spaces",
        f"left out: DQN on {PENDULUM}: DQN does not act in Box spaces",
        "error: executor must be local or ray, got 'none'",
    ]


def test_gpus_are_shared_by_a_cluster_only(tmp_path):
    with pytest.raises(ConfigError, match=r"--gpus 0\.5 is a share of a GPU of a Ray cluster: add --executor ray"):
        make_executor("local", 1, "auto", 0.5, tmp_path)


def test_an_interrupt_is_one_line(tmp_path):
    """Ctrl-C is sent to the driver and to its workers alike."""
    arguments = (
        "build",
        CARTPOLE,
        *PAPER,
        "--transitions",
        10**8,
        "--candidates",
        "A2C",
        "--jobs",
        2,
        "--output",
        tmp_path,
    )
    command = [sys.executable, "-m", "ldm_hf", *map(str, arguments)]
    command = ["env", "--default-signal=INT", *command]  # which shells ignore in what they run in the background
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as driver:
        while not list(tmp_path.glob("gymnasium/*/*.partial-*")):
            assert driver.poll() is None
            time.sleep(0.05)  # polling another process; nothing depends on how long it takes
        os.killpg(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "interrupted: the same command continues" in errors
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors


@pytest.mark.long
def test_the_small_budget_teaches_something(tmp_path):
    """The README's command, with the whole pool."""
    done = run_ldm("build", CARTPOLE, ACROBOT, "--budget", "small", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    datasets = open_datasets(tmp_path)
    assert [dataset.environment for dataset in datasets] == [ACROBOT, CARTPOLE]
    for dataset in datasets:
        assert dataset.info.last10 > dataset.info.first10 and all(
            info.num_transitions >= 15_000 for info in dataset.runs
        )


def test_the_plan_as_printed():
    done = run_ldm_here("build", CARTPOLE, "minigrid", *PAPER, "--dry-run", "--cores", 608)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "SAC does not act in Discrete spaces" in text and "3,000,000 and 3,000,000" in text
    assert "core hours" in text and "On 608 cores" in text and "504 to record" in text
    done = run_ldm_here("build", "gymnasium/Nothing-v0", "--dry-run")
    assert done.returncode == 1 and done.stderr.startswith("error: gymnasium has no environment 'Nothing-v0'")


def test_jobs_say_what_broke(tmp_path):
    job = a_job(tmp_path)
    job.result.parent.mkdir(parents=True)
    job.result.write_text("{")
    with pytest.raises(DatasetFormatError, match="is not a result of a ranking"):
        job.curve()
