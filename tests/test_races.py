"""Races: who continues, what a slice leaves for the next, what is written, and what a kill costs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import run_ldm
from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.anchors.flags import ALIKE
from ldm_hf.dataset_builder.build.anchor_job import AnchorJob, read_anchors
from ldm_hf.dataset_builder.build.budgets import choose_budget
from ldm_hf.dataset_builder.build.costs import run_seconds
from ldm_hf.dataset_builder.build.pipeline import run_build
from ldm_hf.dataset_builder.build.plan import make_plan
from ldm_hf.dataset_builder.build.race.field import order
from ldm_hf.dataset_builder.build.race.race import best_slice, core_seconds, first_seconds, places, sizes, stand
from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.build.race.race_build import RaceBuild
from ldm_hf.dataset_builder.build.race.race_plan import estimate_races
from ldm_hf.dataset_builder.build.race.slice_jobs import KeepJob, SliceJob
from ldm_hf.dataset_builder.build.race.slice_results import RECORDING, SliceResult, read_kept
from ldm_hf.dataset_builder.build.race.zoo import tuned
from ldm_hf.dataset_builder.build.settings import BuildSettings
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.dataset_builder.format.storage import open_storages
from ldm_hf.dataset_builder.reference.candidates import Candidate, choose_pool, pool
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.repository.replay import replay
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.dataset_builder.repository.verification import check_repository
from ldm_hf.env_registry.known_scores import known_score
from ldm_hf.env_registry.registry import spec
from ldm_hf.errors import ConfigError
from ldm_hf.executors.base import JobResult
from ldm_hf.finetuning.episodes import recorded_episodes

CARTPOLE, PENDULUM = "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1"


def result(deterministic, training=None, confirmed=(), failure=None, rate=100.0):
    """A slice of which all episodes returned the same."""
    lasting = Sample(deterministic if training is None else training, 0.0, 10)
    return SliceResult(failure, 100, 100, lasting, (float(deterministic),) * 5, tuple(confirmed), 100, rate)


def failed():
    return SliceResult("failed: it broke")


def test_the_time_of_a_race_is_divided_among_rounds_that_take_the_same():
    assert sizes(8) == [8, 4, 2, 1] and sizes(5) == [5, 3, 2, 1] and sizes(1) == [1, 1, 1, 1]
    # 8 slices of 1, 4 of 2, 2 of 4 and 1 of 8 seconds; alone: 1 + 2 + 4 + 8.
    assert first_seconds(8, 320) == 10 and first_seconds(1, 30) == 2
    budget = RaceBudget(core_minutes=320 / 60)
    assert [budget.slice_seconds(number, 8) for number in range(6)] == [10, 20, 40, 80, 80, 80]


def test_more_cores_shorten_a_race_to_a_point():
    """Rounds of 8, 4, 2 and 1 slices, each of twice the time: 32 of a core; on two cores 4 x 1, 2 x 2, 4 and 8 pass."""
    assert [core_seconds(60, jobs) for jobs in (1, 2, 8, 64)] == [60, 60 * 32 / 20, 60 * 32 / 15, 60 * 32 / 15]
    assert RaceBudget(32).least_seconds == 15 * 60
    assert core_seconds(60, 8, candidates=3) == 60 * (3 + 2 * 2 + 4 + 8) / 15


def test_the_worse_half_is_dropped_and_the_rest_continues():
    runs = {name: [result(value)] for name, value in {"a": 1, "b": 4, "c": 3, "d": 2}.items()}
    standing = stand(runs, None)
    assert standing.missing == ("b", "c") and standing.number == 1 and not standing.is_over
    assert standing.order == ("b", "c", "d", "a")
    assert standing.dropped == {"a": "slice 0: place 4 of 4", "d": "slice 0: place 3 of 4"}
    # Places by deterministic and by training returns count alike: c, second and first, is above d, third and second.
    mixed = {"c": result(3, training=9), "d": result(2, training=5), "b": result(4, training=0)}
    assert places(mixed) == {"c": 1, "d": 3, "b": 2}
    assert places({"a": result(1), "b": result(1)}) == {"a": 1, "b": 1}
    for name, last in (("b", 1), ("c", 2)):
        runs[name] += [result(last), result(last), result(last)]
    standing = stand(runs, None)
    assert standing.is_over and standing.number == 3 and standing.order == ("c", "b", "d", "a")


def test_a_slice_that_fails_puts_its_candidate_out_with_the_reason():
    runs = {"a": [failed()], "b": [result(1)], "c": [result(0)]}
    standing = stand(runs, None)
    assert standing.missing == ("b",) and standing.order == ("b", "c", "a")
    assert standing.dropped["a"] == "slice 0: failed: it broke"
    nobody = stand({"a": [failed()], "b": [failed()]}, None)
    assert nobody.is_over and nobody.order == ("b", "a")


def test_a_race_ends_where_known_good_is_reached_and_confirmed():
    near = result(96, confirmed=[94.0, 98.0])
    runs = {"a": [result(50)], "b": [near], "c": []}
    standing = stand(runs, 95)
    assert standing.is_over and standing.order == ("b", "a", "c")
    assert standing.dropped["c"] == "slice 0: b reached known good"
    # What its few episodes showed, the further ones must show as well.
    assert stand({**runs, "b": [result(96, confirmed=[50.0])]}, 95).missing == ("c",)
    assert stand(runs, None).missing == ("c",)


def test_the_best_that_learns_late_passes_the_first_round_only():
    runs = {name: [result(value)] for name, value in {"p": 4, "q": 3, "r": 2, "late": 1}.items()}
    families = {"p": "rollouts", "q": "rollouts", "r": "rollouts", "late": "replay"}
    assert stand(runs, None, families).missing == ("p", "late")
    assert stand(runs, None).missing == ("p", "q")
    for name in ("p", "late"):
        runs[name].append(runs[name][0])
    assert stand(runs, None, families).missing == ("p",)


def test_the_best_slice_is_the_last_that_is_not_significantly_lower():
    assert best_slice([result(1), result(5), result(2)]) == 1  # samples that do not vary are compared by their means
    noisy = [replace(result(0), deterministic=(9.0, 11.0, 10.0)), replace(result(0), deterministic=(8.0, 12.0, 9.0))]
    assert best_slice(noisy) == 1
    assert best_slice([result(1), result(5), failed()]) == 1


def test_the_field_is_what_did_well_on_the_library_and_what_was_tuned_first():
    every = ["A2C", "PPO-normalized", "SAC", "zoo-PPO", "zoo-SAC"]
    assert order(every, []) == ["zoo-PPO", "zoo-SAC", "PPO-normalized", "SAC", "A2C"]
    # A2C won twice: (0.5 + 0 + 0) / 3; PPO-normalized came last twice: (0.5 + 1 + 1) / 3; SAC is unknown: 0.5.
    races = [("A2C", "PPO-normalized"), ("A2C", "PPO-normalized")]
    assert order(every[:3], races) == ["A2C", "SAC", "PPO-normalized"]


def test_candidates_that_would_hardly_begin_to_learn_do_not_race():
    budget, described = RaceBudget(1.0), spec(PENDULUM)
    incompatible = budget.incompatible(described, pool())
    assert incompatible["DQN"] == "DQN does not act in Box spaces"
    seconds = 10_000 / described.steps_per_second  # until then TD3-noise costs what the environment costs
    assert incompatible["TD3-noise"] == f"it takes {seconds:,.0f} seconds until it learns for the first time"
    assert "TD3-noise" not in RaceBudget(30.0).incompatible(described, pool())
    assert "SAC" not in incompatible
    # Where all are slow, the two that learn first race.
    only = {name: pool()[name] for name in ("PPO", "PPO-long-rollouts", "PPO-normalized")}
    assert list(RaceBudget(1e-3).incompatible(described, only)) == ["PPO-long-rollouts"]
    images = spec("ale-py/ALE/Pong-v5")
    assert budget.incompatible(images, pool())["TRPO"] == "its updates are slow on images"


def test_amounts_of_a_race():
    assert choose_budget("race", core_minutes=3) == RaceBudget(3)
    with pytest.raises(ConfigError, match="a race is given time, not transitions"):
        choose_budget("race", 1000)
    with pytest.raises(ConfigError, match="core minutes are of the budget race; paper counts transitions"):
        choose_budget("paper", None, 3)
    with pytest.raises(ConfigError, match="core minutes must be above 0"):
        choose_budget("race", None, 0.0)


def test_the_estimate_of_races_by_hand():
    budget, names = RaceBudget(2), ("A2C", "PPO")
    chosen = choose_pool(names)
    budget = replace(budget, tuned=False)
    plan = make_plan([CARTPOLE, PENDULUM], chosen, budget, 0)
    found = estimate_races(plan, chosen, budget)
    # Fields of 2 race 2, 1, 1 and 1 slices.
    assert (found.environments, found.slices, found.core_hours) == (2, 10, pytest.approx(4 / 60))
    first = 120 / (2 + 2 + 4 + 8)
    expected = [15 * first / run_seconds(spec(CARTPOLE), chosen[name], 1) for name in names]
    assert found.least[0] == pytest.approx(min(expected), rel=0.01) and found.most[0] == pytest.approx(
        max(expected), rel=0.01
    )


def test_what_was_tuned_for_an_environment_races_there():
    found = tuned(PENDULUM)
    assert {"zoo-PPO", "zoo-SAC", "zoo-TQC"} <= set(found) and tuned("gymnasium/Taxi-v4") == {}
    assert found["zoo-SAC"].hyperparameters == {"learning_rate": 0.001}
    assert found["zoo-SAC"].source == "RL Zoo 2.9.2, tuned for Pendulum-v1"
    assert tuned("gymnasium/Hopper-v5")["zoo-SAC"].source.endswith("tuned for Hopper-v4")  # the only version that was
    assert found["zoo-PPO"].normalize is False and found["zoo-PPO"].num_envs == 4
    chosen = choose_pool(("PPO",))
    [environment] = make_plan([PENDULUM], chosen, RaceBudget(), 0).groups[0].environments
    assert "zoo-SAC" in environment.candidates
    [environment] = make_plan([PENDULUM], chosen, RaceBudget(tuned=False), 0).groups[0].environments
    assert environment.candidates == ("PPO",)


SMALL = {
    "PPO": (
        CARTPOLE,
        Candidate("PPO", {"n_steps": 32, "batch_size": 32, "learning_rate": "linear_0.01"}, 2, True),
        300,
    ),
    "DQN": (CARTPOLE, Candidate("DQN", {"learning_starts": 50, "batch_size": 16, "buffer_size": 250}), 300),
    "SAC": (
        PENDULUM,
        Candidate("SAC", {"batch_size": 8, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]}}),
        60,
    ),
    "ARS": (CARTPOLE, Candidate("ARS", {"n_delta": 2, "n_top": 1}, 1, True, "LinearPolicy"), 300),
    "A2C": (PENDULUM, Candidate("A2C", {"use_sde": True}, 2, True), 700),
}


def slice_job(root, name, number, target=None):
    environment, candidate, transitions = SMALL[name]
    request = RunRequest(environment, candidate, 5000, seed=3, keep="all")
    return SliceJob(request, root, number, transitions, 3 * transitions, target, 1.0, 0)


def test_the_rate_of_a_slice_is_that_of_learning(tmp_path):
    """What a transition costs before anything is learned says nothing of what later ones cost."""
    job = slice_job(tmp_path, "DQN", 0)
    late = replace(job.request.candidate, hyperparameters={"learning_starts": 10_000})
    job = replace(job, request=replace(job.request, candidate=late), transitions=100)
    job.execute()
    found = SliceResult.read(job.folder)
    assert found.failure is None and found.rate == 0 and found.total == found.transitions >= 100
    slice_job(tmp_path, "ARS", 0).execute()
    assert SliceResult.read(slice_job(tmp_path, "ARS", 0).folder).rate > 0


class Killed(BaseException):
    """What ends a process at any place."""


@pytest.mark.parametrize("name", SMALL)
def test_a_run_in_slices_is_the_same_whether_it_was_killed_or_not(tmp_path, name):
    """Each slice follows from the state that the one before it left, and from nothing else of the process."""
    for number in range(3):
        slice_job(tmp_path / "one", name, number).execute()

    def kill(stage, done, total):
        if done > total // 2:
            raise Killed

    for number in range(3):
        job = slice_job(tmp_path / "other", name, number)
        if number:
            with pytest.raises(Killed):
                job.execute(kill)
            assert not job.is_done
        job.execute()
    results = []
    for number in range(3):
        folders = [slice_job(tmp_path / which, name, number).folder for which in ("one", "other")]
        one, other = (load_file(folder / "policy/policy.safetensors") for folder in folders)
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
        recorded = [np.load(folder / RECORDING / "numbers.npz") for folder in folders]
        assert all(np.array_equal(recorded[0][key], recorded[1][key]) for key in recorded[0].files)
        for path in (folders[0] / RECORDING).glob("*-*"):
            assert path.read_bytes() == (folders[1] / RECORDING / path.name).read_bytes()
        both = [SliceResult.read(folder) for folder in folders]
        timeless = [replace(result, rate=0, overhead=0, seconds=0) for result in both]
        assert timeless[0] == timeless[1] and timeless[0].failure is None
        results.append(timeless[0])
    # It continues: its policy changes, its transitions add up.
    assert [result.total for result in results] == list(np.cumsum([result.transitions for result in results]))
    last = [slice_job(tmp_path / "one", name, number).folder / "policy/policy.safetensors" for number in (1, 2)]
    before, after = map(load_file, last)
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    # The state that was used is gone, the last one is there.
    states = [path.parent.name for path in (tmp_path / "one").rglob("state.pt")]
    assert states == ["slice-2"]


@pytest.mark.parametrize("name", ["PPO", "ARS", "A2C"])
def test_the_slices_of_a_run_are_written_as_one_that_replays(tmp_path, name):
    for number in range(3):
        slice_job(tmp_path, name, number).execute()
    request = slice_job(tmp_path, name, 0).request
    job = KeepJob(request, tmp_path, 1, 1.0, 0)
    job.execute()
    record = RunRecord.read(request.folder(tmp_path))
    results = [SliceResult.read(slice_job(tmp_path, name, number).folder) for number in range(2)]
    assert record.info.num_streams == 2 * request.candidate.num_envs
    assert record.info.hyperparameters["slices"] == [result.transitions for result in results]
    assert record.info.num_transitions >= sum(result.transitions for result in results)
    assert json.loads(job.result.read_text())["best"] == 1
    update_repository(tmp_path / "gymnasium")
    [storage] = open_storages(tmp_path / "gymnasium")
    [found] = check_repository(storage)
    assert not found.defects and found.rows == record.info.num_transitions
    again = replay(found.dataset)
    assert (again.rows, again.different) == (record.info.num_transitions, 0), again.first
    # Whoever learns from the end of the training learns from the end of its last slice.
    slices = [one.stream // request.candidate.num_envs for one in recorded_episodes([found.dataset])]
    assert slices == sorted(slices) and set(slices) == {0, 1}
    # The labels are those of the slice that is the best, not of the last.
    policy = load_file(request.folder(tmp_path) / "policy/policy.safetensors")
    best = load_file(slice_job(tmp_path, name, 1).folder / "policy/policy.safetensors")
    assert all(np.array_equal(policy[key], best[key]) for key in best)


def anchors(environment, random=0.0):
    known = known_score(environment)
    return Anchors(environment, Sample(random, 1.0, 20), Sample(9.0, 1.0, 20), {}, 2, known)


class Script:
    """An executor whose jobs end at once with what a test wrote: returns by candidate and slice, and who is dropped."""

    def __init__(self, returns, dropped=(), seconds=1.0, reason="no improvement"):
        self.reason = reason
        self.returns, self.dropped, self.seconds, self.started, self.waiting = returns, dropped, seconds, [], []

    def has_room(self, job):
        return not self.waiting

    def submit(self, job):
        self.started.append(job.name)
        self.waiting.append(job)

    def wait(self, seconds):
        [job] = self.waiting
        self.waiting = []
        if isinstance(job, AnchorJob):
            job._write(anchors(job.request.environment), None)
        elif isinstance(job, KeepJob):
            reason = self.reason if job.request.candidate.name in self.dropped else None
            RunRecord(job.request.environment, job.request.name, reason or "by the script", None).write(
                job.request.folder(job.root)
            )
            job.finish(reason, (1.0,))
        else:
            values = self.returns[job.request.candidate.name]
            job.folder.mkdir(parents=True)
            (job.folder / "state.pt").write_bytes(b"")
            (job.folder / RECORDING).mkdir()
            value = values[min(job.number, len(values) - 1)]
            near = None not in (job.target, value) and value >= job.target
            made = result(value, confirmed=[value] * 2 if near else ()) if value is not None else failed()
            replace(made, seconds=self.seconds).write(job.folder)
        return [JobResult(job)]

    def messages(self):
        return []

    def close(self):
        pass


NAMES = ("A2C", "PPO", "PPO-normalized", "TRPO", "TRPO-normalized", "TRPO-short-rollouts")


def a_race(root, environments=(CARTPOLE,), names=NAMES, minutes=1.0):
    chosen, budget = choose_pool(names), RaceBudget(minutes, tuned=False)
    return RaceBuild(make_plan(environments, chosen, budget, 0), BuildSettings(chosen, budget), root)


def table(root, environment="CartPole-v1"):
    return json.loads((root / f"_races/gymnasium/{environment}/race.json").read_text())


def test_a_race_from_its_field_to_the_run_that_is_kept(tmp_path):
    returns = {name: [place] for place, name in enumerate(NAMES)}
    script, said = Script(returns, seconds=100.0), []
    run_build(a_race(tmp_path), script, said.append)
    slices = [name for name in script.started if "slice" in name]
    assert (
        script.started[0] == f"{CARTPOLE} anchors" and script.started[-1] == f"{CARTPOLE} TRPO-short-rollouts written"
    )
    assert [sum(name.endswith(f"slice {number}") for name in slices) for number in range(4)] == [6, 3, 2, 1]
    rows = {row["candidate"]: row for row in table(tmp_path)["candidates"]}
    assert rows["TRPO-short-rollouts"]["result"] == "kept" and rows["A2C"]["result"] == "slice 0: place 6 of 6"
    assert rows["TRPO-normalized"]["result"] == "slice 2: place 2 of 2"
    # What is left of recordings and states is the winner's, which may be given more time; the same again runs nothing.
    left = [*tmp_path.rglob("state.pt"), *tmp_path.rglob(RECORDING)]
    assert left and all(path.parent.parent.name == "TRPO-short-rollouts-0" for path in left)
    again = Script(returns)
    run_build(a_race(tmp_path), again, said.append)
    assert again.started == []


def test_who_is_dropped_loses_its_recording_but_for_those_who_may_be_resumed(tmp_path):
    build = a_race(tmp_path)
    script = Script({name: [place] for place, name in enumerate(NAMES)})
    while not any(name.endswith("slice 1") for name in script.started):
        script.submit(build.jobs()[0])
        script.wait(0)
    kept = {path.parent.parent.name for path in tmp_path.rglob("state.pt")}
    assert kept == {f"{name}-0" for name in NAMES[2:]}


def test_a_slice_that_is_being_made_is_left_alone_when_its_race_ends(tmp_path):
    build = a_race(tmp_path)
    script = Script({name: [0.0] for name in NAMES})
    script.submit(build.jobs()[0])
    script.wait(0)
    jobs = build.jobs()
    winner, running = jobs[0], jobs[-1]
    recording = running.folder.with_name(f"{running.folder.name}.partial-0123abcd") / RECORDING
    recording.mkdir(parents=True)
    script.returns[winner.request.candidate.name] = [500.0]  # known good, which ends the race
    script.submit(winner)
    script.wait(0)
    assert [job.name for job in build.jobs([running.name])] == [f"{CARTPOLE} {winner.request.candidate.name} written"]
    assert recording.is_dir()
    script.submit(running)
    script.wait(0)
    build.close()
    assert running.is_done and not (running.folder / RECORDING).exists() and not (running.folder / "state.pt").exists()


def test_a_runner_up_catches_up_where_the_winner_is_not_fit(tmp_path):
    returns = {name: [place] for place, name in enumerate(NAMES)}
    script = Script(returns, dropped=("TRPO-short-rollouts",), seconds=100.0)
    run_build(a_race(tmp_path), script, lambda line: None)
    tail = script.started[script.started.index(f"{CARTPOLE} TRPO-short-rollouts written") + 1 :]
    assert tail == [f"{CARTPOLE} TRPO-normalized slice 3", f"{CARTPOLE} TRPO-normalized written"]
    # A runner-up of one that is degenerate is written as it is.
    script = Script(returns, dropped=NAMES[-1:], seconds=100.0, reason="degenerate: it never acts")
    run_build(a_race(tmp_path / "degenerate"), script, lambda line: None)
    assert script.started[-2:] == [f"{CARTPOLE} TRPO-short-rollouts written", f"{CARTPOLE} TRPO-normalized written"]
    # Three at most are tried.
    script = Script(returns, dropped=NAMES, seconds=100.0)
    run_build(a_race(tmp_path / "none"), script, lambda line: None)
    assert sum(name.endswith("written") for name in script.started) == 3


def test_an_environment_on_which_all_fail_has_records_that_say_so(tmp_path):
    script = Script({name: [None] for name in NAMES})
    run_build(a_race(tmp_path), script, lambda line: None)
    records = [RunRecord.read(path.parent) for path in tmp_path.glob("gymnasium/*/*/run.json")]
    assert len(records) == len(NAMES) and all(record.dropped == "slice 0: failed: it broke" for record in records)
    build = a_race(tmp_path)
    assert build.forget_failures() == len(NAMES) and build.jobs()


def test_time_that_is_left_goes_to_the_run_that_is_nearest_to_solved(tmp_path):
    """CartPole's known good is 500: 300 is nearer to solved than Acrobot's random policy."""
    names = ("A2C", "PPO")
    script = Script({"A2C": [100, 200, 250, 300, 350, 400, 490], "PPO": [0]}, seconds=10.0)
    run_build(a_race(tmp_path, names=names, minutes=4), script, lambda line: None)
    # A race of two takes 5 slices, 50 of 240 seconds. A slice more is estimated at 8 of 16 parts of 240, and takes 10.
    more = [name for name in script.started if name.startswith(f"{CARTPOLE} A2C slice")]
    assert more[4:] == [f"{CARTPOLE} A2C slice {number}" for number in (4, 5, 6)]
    assert script.started[-1] == f"{CARTPOLE} A2C written"
    assert table(tmp_path)["candidates"][1]["confirmed"][-1] == 490  # known good is reached: it ends with time left


def test_failures_after_a_run_was_kept_leave_it_in_place(tmp_path):
    """The slice that continues it fails, is tried again, and is no better; then its longer run cannot be written."""
    returns = {"A2C": [100, 200, 250, 300, 350, None], "PPO": [0]}
    run_build(a_race(tmp_path, names=("A2C", "PPO"), minutes=4), Script(returns, seconds=10.0), lambda line: None)
    folder = tmp_path / "gymnasium/CartPole-v1/A2C-0"
    kept = (folder / "run.json").read_text()
    build, again = (
        a_race(tmp_path, names=("A2C", "PPO"), minutes=4),
        Script({**returns, "A2C": [*returns["A2C"][:5], 10]}),
    )
    assert build.forget_failures() == 1 and (folder / "run.json").read_text() == kept
    run_build(build, again, lambda line: None)
    assert f"{CARTPOLE} A2C slice 5" in again.started and (folder / "run.json").read_text() == kept
    [race] = build._races
    record = replace(RunRecord.read(folder), dropped=None)  # the script says of all that it dropped them
    record.write(folder)
    race._keep_job("A2C").fail("failed: its process died")
    assert RunRecord.read(folder) == record and read_kept(race._keep_job("A2C").result)["dropped"].startswith("failed")


def test_a_build_that_is_given_more_time_continues_the_run_that_is_kept(tmp_path):
    names = ("A2C", "PPO")
    returns = {"A2C": [100, 200, 250, 300, 350, 400, 490], "PPO": [0]}
    first = Script(returns, seconds=48.0)
    run_build(a_race(tmp_path, names=names, minutes=4), first, lambda line: None)
    assert first.started[-1] == f"{CARTPOLE} A2C written"
    build, more = a_race(tmp_path, names=names, minutes=12), Script(returns, seconds=1.0)
    assert [job.seconds for job in build.jobs()] == [
        120.0
    ]  # as the race that it began with: 8 of 16 parts of 240 seconds
    run_build(build, more, lambda line: None)
    assert more.started[:2] == [f"{CARTPOLE} A2C slice 4", f"{CARTPOLE} A2C written"]
    assert table(tmp_path)["core_minutes"] == 4
    assert table(tmp_path)["candidates"][1]["confirmed"][-1] == 490
    # The run reached known good: nothing of it is kept for later. Time that was given cannot be taken back.
    assert not list(tmp_path.rglob("state.pt")) and not list(tmp_path.rglob(RECORDING))
    with pytest.raises(ConfigError, match="12 core minutes per environment, got 4"):
        a_race(tmp_path, names=names, minutes=4)


def test_more_time_gives_another_chance_where_no_run_was_fit(tmp_path):
    returns = {"A2C": [100, 200, 250, 300, 350], "PPO": [0]}
    run_build(
        a_race(tmp_path, names=("A2C", "PPO"), minutes=4), Script(returns, ("A2C", "PPO"), 48.0), lambda line: None
    )
    assert all(row["result"].endswith("dropped: no improvement") for row in table(tmp_path)["candidates"])
    more = Script(returns, ("PPO",), 48.0)
    run_build(a_race(tmp_path, names=("A2C", "PPO"), minutes=12), more, lambda line: None)
    assert more.started[:2] == [f"{CARTPOLE} A2C slice 4", f"{CARTPOLE} A2C written"]
    assert table(tmp_path)["candidates"][1]["result"] == "kept"
    # One that gains most by a trivial policy does so for longer, too.
    degenerate = Script(returns, ("A2C", "PPO"), 48.0, "degenerate: it never acts")
    run_build(a_race(tmp_path / "other", names=("A2C", "PPO"), minutes=4), degenerate, lambda line: None)
    assert not list((tmp_path / "other").rglob("state.pt"))
    assert a_race(tmp_path / "other", names=("A2C", "PPO"), minutes=8).jobs() == []


def test_no_core_waits_for_a_race_that_waits_for_its_last_slice(tmp_path):
    build = a_race(tmp_path, (CARTPOLE, PENDULUM), names=("A2C", "PPO"))
    first = build.jobs()
    assert [job.name for job in first] == [f"{CARTPOLE} anchors"]
    assert [job.name for job in build.jobs([first[0].name])] == [f"{PENDULUM} anchors"]


def test_a_race_on_real_environments_survives_kills(tmp_path):
    arguments = ["build", CARTPOLE, "--core-minutes", 0.25, "--jobs", 2, "--output", tmp_path]
    for name in ("A2C-8-envs", "TRPO-short-rollouts", "DQN"):
        arguments += ["--candidates", name]
    command = [sys.executable, "-m", "ldm_hf", *map(str, arguments)]
    for number in range(2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
            while len(list(tmp_path.rglob("result.json"))) < 2 * number + 1 and driver.poll() is None:
                time.sleep(0.05)  # polling another process; nothing depends on how long it takes
            os.kill(driver.pid, signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    done = run_ldm(*arguments)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    rows = table(tmp_path)["candidates"]
    assert len(rows) == 3 and all(row["transitions"] for row in rows if not row["result"].endswith("known good"))
    kept = [f"{row['candidate']}-0" for row in rows if row["result"] == "kept"]
    assert not list(tmp_path.rglob("*.partial-*"))
    assert {path.parent.parent.name for path in tmp_path.rglob("state.pt")} <= set(kept)
    for storage in open_storages(tmp_path):
        for found in check_repository(storage):
            assert not found.defects and replay(found.dataset).different == 0
    assert read_anchors(tmp_path / "_races/gymnasium/CartPole-v1/anchors.json").known.good == 500


def test_known_good_is_confirmed_once_the_run_can_be_written(tmp_path):
    job = replace(
        slice_job(tmp_path, "A2C", 0, target=-1e9), transitions=100
    )  # twice 200 steps at most, of 2 environments
    job.execute()
    few = SliceResult.read(job.folder)
    assert few.failure is None and len(few.deterministic) == 5 and few.confirmed == ()
    slice_job(tmp_path, "A2C", 1, target=-1e9).execute()
    assert len(SliceResult.read(slice_job(tmp_path, "A2C", 1).folder).confirmed) == 15


def assessed(monkeypatch, *reasons):
    """Have every policy that is written be found to have these flags."""

    def assess(episodes, environment):
        return replace(Assessment.of(episodes, anchors(environment, random=9.0)), flags=list(reasons))

    monkeypatch.setattr("ldm_hf.dataset_builder.reference.run.assess", assess)


def test_an_environment_that_breaks_under_a_trivial_policy_has_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm_hf.dataset_builder.reference.run.assess", lambda episodes, environment: None)
    slice_job(tmp_path, "PPO", 0).execute()
    job = KeepJob(slice_job(tmp_path, "PPO", 0).request, tmp_path, 0, 1.0, 0)
    job.execute()
    assert read_kept(job.result)["dropped"] is None and RunRecord.read(job.request.folder(tmp_path)).info.flags == []


def test_a_run_that_is_degenerate_gives_way_to_one_that_is_not(tmp_path, monkeypatch):
    jobs = []
    for name in ("ARS", "PPO"):
        for number in range(2):
            slice_job(tmp_path, name, number).execute()
        jobs.append(KeepJob(slice_job(tmp_path, name, 0).request, tmp_path, 1, 1.0, 0))
    first, second = (job.request.folder(tmp_path) for job in jobs)
    assessed(monkeypatch, "always does the same: 1")
    jobs[0].execute()
    assert read_kept(jobs[0].result)["dropped"] == "degenerate: always does the same: 1"
    assert RunRecord.read(first).dropped is None and list(
        first.glob("train-*")
    )  # the data of the best there is, flagged
    # That all episodes begin alike is not a fault of the run, of which another would be free.
    assessed(monkeypatch, f"returns 9 in every episode, {ALIKE}")
    jobs[1].execute()
    assert read_kept(jobs[1].result)["dropped"] is None and list(second.glob("train-*"))
    assert RunRecord.read(first).dropped == "another run is kept: PPO-3" and not list(first.glob("*.parquet"))
