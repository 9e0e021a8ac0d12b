"""Rollouts by the protocol, one environment or many, and what is left of an evaluation."""

import json
import shutil
from dataclasses import asdict, replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

import ldm_hf.evaluation.players as players_module
import ldm_hf.evaluation.trial as trial_module
import odd_environments
from conftest import CARTPOLE, CLIFF, PENDULUM, run_ldm_here
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.env_registry import registry
from ldm_hf.errors import CheckpointError, EnvironmentFailure, InvalidValueError, UnsupportedSpaceError
from ldm_hf.evaluation import evaluate as evaluate_module
from ldm_hf.evaluation import showcase
from ldm_hf.evaluation.asynchronous import roll_out_as_ready
from ldm_hf.evaluation.evaluate import evaluate
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import EVALUATION_SEED, Protocol
from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.results import SEEN_SEED, judge
from ldm_hf.evaluation.rollout import evaluate_environment, roll_out
from test_remote_env import remote

SHORT = Protocol(episodes=2, rollouts=2)


class Diary(gymnasium.Env):
    """Episodes of known lengths and rewards, which remembers how it was treated."""

    observation_space = spaces.Discrete(100)
    action_space = spaces.Discrete(2)

    def __init__(self, lengths):
        self.lengths, self.seeds, self.episode, self.count, self.closed = lengths, [], -1, 0, False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.episode, self.count = self.episode + 1, 0
        return 10 * self.episode, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        over = self.count == self.lengths[self.episode]
        return 10 * self.episode + self.count, self.episode + 1.0, over, False, {}

    def close(self):
        self.closed = True


def make_from(monkeypatch, made):
    """Have rollouts use these environments: lists of them by id, each taken once."""
    waiting = {name: list(envs) for name, envs in made.items()}
    monkeypatch.setattr(trial_module, "make", lambda environment, **options: waiting[environment].pop(0))
    monkeypatch.setattr(trial_module, "is_isolated", lambda environment: False)


@pytest.fixture
def seen(monkeypatch):
    """What the policy was shown, step by step."""
    calls = []

    class Watched(players_module.LDMPolicy):
        def act(self, observations, *outcome):
            calls.append((list(observations), *map(list, outcome)))
            return super().act(observations, *outcome)

    monkeypatch.setattr(players_module, "LDMPolicy", Watched)
    return calls


def test_the_protocol(model, processor, monkeypatch, seen):
    """Two rollouts of three episodes, of different lengths; the context is kept, only the first reset is seeded."""
    made, told = [Diary([2, 3, 1, 9]), Diary([1, 1, 5, 9])], []
    make_from(monkeypatch, {"test/Diary-v0": made})
    result = evaluate_environment(
        model, processor, "test/Diary-v0", episodes=3, seed=2, progress=lambda done, total: told.append((done, total))
    )
    assert result.lengths == [[2, 3, 1], [1, 1, 5]]
    assert result.returns == [[2, 6, 3], [1, 2, 15]]
    assert result.mean_return == 29 / 6
    assert [env.seeds[0] for env in made] == [EVALUATION_SEED + 2000, EVALUATION_SEED + 2001]
    assert all(seed is None for env in made for seed in env.seeds[1:]) and all(env.closed for env in made)
    assert told == [(done, 6) for done in range(1, 7)]
    # After its one step, the second environment shows the reset's observation with the end of the episode before.
    assert seen[0] == ([0, 0],)
    assert seen[1] == ([1, 10], [1.0, 1.0], [False, True], [False, False])
    assert seen[2] == ([10, 20], [1.0, 2.0], [True, True], [False, False])
    # The first one has finished after six steps, and the second continues alone for one.
    assert [len(observations) for observations, *_ in seen] == [2, 2, 2, 2, 2, 2, 1]


def test_environments_of_a_batch_do_not_disturb_each_other(model, processor):
    player = ModelPlayer(model, processor)
    order = []
    names = [CLIFF, CARTPOLE, PENDULUM]
    together = roll_out(player, names, SHORT, finished=lambda name, _: order.append(name))
    alone = [roll_out(player, [name], SHORT)[0] for name in names]
    assert [result.lengths for result in together] == [result.lengths for result in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.returns, other.returns, rtol=1e-4)
    # Each is handed on when its own last episode ends.
    steps = {name: max(map(sum, result.lengths)) for name, result in zip(names, together, strict=True)}
    assert order == sorted(names, key=steps.__getitem__)


class Blind(Diary):
    """Shows something that is not a number at the end of its first step."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, **arguments):
        super().reset(**arguments)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.full(2, np.nan, np.float32), *super().step(action)[1:]


class Rich(Diary):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float("inf"), *rest


class Broken(Diary):
    def step(self, action):
        raise AttributeError("the simulation\nexploded")


def make_breaking(monkeypatch):
    """Have rollouts use four environments of which three break, each in its own way."""
    made = {
        "test/Blind-v0": [Blind([9, 9]), Blind([9, 9])],
        "test/Broken-v0": [Broken([1]), Broken([1])],
        "test/Diary-v0": [Diary([2, 3]), Diary([2, 2])],
        "test/Rich-v0": [Rich([1, 1]), Rich([1, 1])],
    }
    make_from(monkeypatch, made)
    return made


def test_what_breaks_leaves_the_batch_and_the_others_continue(model, processor, monkeypatch, seen):
    made = make_breaking(monkeypatch)
    finished = {}
    results = roll_out(ModelPlayer(model, processor), list(made), SHORT, finished=finished.__setitem__)
    assert finished == dict(zip(made, results, strict=True))
    blind, broken, diary, rich = results
    assert isinstance(blind.failure, InvalidValueError)
    assert str(broken.failure) == "test/Broken-v0 broke while it was rolled out: the simulation exploded"
    assert str(rich.failure) == "test/Rich-v0 gave a reward of inf: nothing can be scored"
    assert diary.failure is None and diary.returns == [[2, 6], [2, 4]]
    assert all(env.closed for envs in made.values() for env in envs)
    # All eight act, the broken and the rich leave, the blind spoil a call, which is made again without them.
    assert [len(call[0]) for call in seen] == [8, 4, 2, 2, 2, 1]
    assert seen[2] == ([1, 1], [1.0, 1.0], [False, False], [False, False])
    assert seen[3] == ([10, 10], [1.0, 1.0], [True, True], [False, False])
    assert seen[-1] == ([12], [2.0], [False], [False])


def test_a_crash_and_a_hang_of_isolated_environments(model, processor, monkeypatch):
    crashing, hanging = "odd/Hostile/segfault-v0", "odd/Hostile/hang_in_c-v0"

    def make(environment, *, step_timeout, **options):
        if environment == CARTPOLE:
            return registry.make(environment)
        return remote(environment.partition("/")[2], step_timeout=step_timeout)

    monkeypatch.setattr(trial_module, "make", make)
    monkeypatch.setattr(trial_module, "is_isolated", lambda environment: environment != CARTPOLE)
    protocol = Protocol(episodes=1, rollouts=1, step_timeout=1.0)
    crash, hang, fine = roll_out(ModelPlayer(model, processor), [crashing, hanging, CARTPOLE], protocol)
    assert isinstance(crash.failure, EnvironmentFailure) and "killed by signal 11" in str(crash.failure)
    assert isinstance(hang.failure, EnvironmentFailure) and "gave no answer within 1 s" in str(hang.failure)
    assert fine.failure is None and len(fine.returns[0]) == 1


def test_isolated_environments_take_their_steps_at_the_same_time(model, processor, monkeypatch, tmp_path):
    """Each waits for the other's step: one after the other, the first would never end its own."""
    monkeypatch.setattr(
        trial_module, "make", lambda name, **_: remote("meeting", kwargs={"folder": str(tmp_path)}, step_timeout=30)
    )
    monkeypatch.setattr(trial_module, "is_isolated", lambda name: True)
    (result,) = roll_out(ModelPlayer(model, processor), ["odd/meeting"], Protocol(episodes=1, rollouts=2))
    assert result.failure is None and result.lengths == [[3], [3]]


def test_environments_that_act_as_they_are_ready_are_played_as_in_batches(model, processor):
    player, names, told = ModelPlayer(model, processor), [CLIFF, CARTPOLE, PENDULUM], []
    batch = roll_out(player, names, SHORT)
    ready = roll_out_as_ready(player, names, SHORT, at_once=2, progress=lambda *each: told.append(each))
    assert [result.lengths for result in ready] == [result.lengths for result in batch]
    for one, other in zip(ready, batch, strict=True):
        np.testing.assert_allclose(one.returns, other.returns, rtol=1e-4)
    assert sorted(told) == sorted((name, done) for name in names for done in range(1, 5))


@pytest.mark.parametrize("holds_resets", [False, True])
def test_a_slow_environment_holds_no_other(model, processor, monkeypatch, tmp_path, holds_resets):
    """The slow one is let act only when all others, of which one begins where another ended, are finished."""
    gate, finished = tmp_path / "open", []

    def make(environment, **options):
        if environment != "odd/gated":
            return remote("old")
        return remote("gated", kwargs={"file": str(gate), "length": 2, "holds_resets": holds_resets}, step_timeout=60)

    def end(environment, result):
        assert result.failure is None
        finished.append(environment)
        if len(finished) == 3:
            gate.touch()

    monkeypatch.setattr(trial_module, "make", make)
    monkeypatch.setattr(trial_module, "is_isolated", lambda environment: True)
    if not holds_resets:  # then its first step
        act = players_module.LDMPolicy._take
        monkeypatch.setattr(
            players_module.LDMPolicy, "_take", lambda self, slots: [1 + 0 * a for a in act(self, slots)]
        )
    names = ["odd/gated", "odd/a", "odd/b", "odd/c"]
    results = roll_out_as_ready(ModelPlayer(model, processor), names, SHORT, at_once=2, finished=end)
    assert finished == ["odd/a", "odd/b", "odd/c", "odd/gated"]
    assert [result.lengths for result in results] == [[[2, 2], [2, 2]], *[[[3, 3], [3, 3]]] * 3]


def test_what_breaks_leaves_and_the_next_begins(model, processor, monkeypatch):
    made = make_breaking(monkeypatch)
    finished = {}
    player = ModelPlayer(model, processor)
    results = roll_out_as_ready(player, list(made), SHORT, at_once=2, finished=finished.__setitem__)
    blind, broken, diary, rich = results
    assert finished == dict(zip(made, results, strict=True))
    assert isinstance(blind.failure, InvalidValueError) and "simulation exploded" in str(broken.failure)
    assert "reward of inf" in str(rich.failure)
    assert diary.failure is None and diary.returns == [[2, 6], [2, 4]]
    assert all(env.closed for envs in made.values() for env in envs)


def test_an_environment_that_breaks_is_named(model, processor, monkeypatch):
    made = [Broken([1]), Broken([1])]
    make_from(monkeypatch, {"test/Broken-v0": made})
    with pytest.raises(EnvironmentFailure, match=r"test/Broken-v0 broke .*: the simulation exploded"):
        evaluate_environment(model, processor, "test/Broken-v0")
    assert all(env.closed for env in made)
    make_from(monkeypatch, {"test/Wide-v0": [Diary([1])]})
    with monkeypatch.context() as patch, pytest.raises(UnsupportedSpaceError):
        patch.setattr(Diary, "action_space", spaces.MultiBinary(1000))
        evaluate_environment(model, processor, "test/Wide-v0")


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_evaluation_writes_everything_and_repeats_nothing(folder, data, tmp_path, monkeypatch):
    references = open_datasets(data, [CARTPOLE, CLIFF])
    report = evaluate(folder, references, tmp_path, SHORT)
    written = json.loads((tmp_path / "report.json").read_text())
    assert [result["id"] for result in written["environments"]] == [CARTPOLE, CLIFF]
    first = written["environments"][0]
    info = references[0].info
    assert (first["first10"], first["last10"]) == (info.first10, info.last10)
    assert first["mean_return"] == np.mean(first["returns"])
    assert first["normalized_score"] == (first["mean_return"] - info.first10) / (info.last10 - info.first10)
    assert np.shape(first["returns"]) == (2, 2)
    assert first["versions"]["evaluation"]["library"] == first["versions"]["data"]["library"]
    assert written["summaries"]["library"]["gymnasium"]["environments"] == 2
    assert written["protocol"] == {"episodes": 2, "rollouts": 2, "seed": EVALUATION_SEED}
    assert Report.load(tmp_path / "report.json") == Report.load(tmp_path) == report
    for image in ("threshold_curve.png", "scores.png"):
        with Image.open(tmp_path / image) as opened:
            assert min(opened.size) > 200
    assert all((tmp_path / name).stat().st_size for name in ("README.md", "tables.md", "report.html"))

    def never(*arguments, **options):
        raise AssertionError("a finished environment was evaluated again")

    monkeypatch.setattr(evaluate_module, "roll_out", never)
    assert evaluate(folder, references, tmp_path, SHORT) == report
    with pytest.raises(AssertionError, match="evaluated again"):  # another protocol is another result
        evaluate(folder, references, tmp_path, Protocol(episodes=3, rollouts=2))


def test_what_a_context_is_worth(folder, data, model, processor, tmp_path, monkeypatch):
    """Episodes with an empty context are rollouts of one episode each, and are played once."""
    [reference] = open_datasets(data)[:1]
    protocol = Protocol(episodes=3, rollouts=2)
    before = evaluate(folder, [reference], tmp_path, protocol).environments[0]
    assert before.cleared_returns == [] and before.cleared_mean is None and before.context_verdict == ""
    result = evaluate(folder, [reference], tmp_path, protocol, cleared=True).environments[0]
    alone = evaluate_environment(model, processor, reference.environment, episodes=1, rollouts=6)
    assert result.cleared_returns == [value for rollout in alone.returns for value in rollout]
    assert result.returns == before.returns
    monkeypatch.setattr("ldm_hf.evaluation.evaluate.roll_out", None)
    assert evaluate(folder, [reference], tmp_path, protocol, cleared=True).environments == [result]
    tables = (tmp_path / "tables.md").read_text()
    assert "What a context of earlier episodes is worth" in tables
    assert ">context cleared</button>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("kept", "cleared", "verdict"),
    [
        ([9, 10, 11, 10, 9, 11], [1, 2, 1, 2, 1, 2], "helps"),
        ([1, 2, 1, 2, 1, 2], [9, 10, 11, 10, 9, 11], "harms"),
        ([1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 2, 1], "makes no difference"),
        ([5, 5, 5], [5, 5, 5], "makes no difference"),
    ],
)
def test_the_verdict_on_a_context(folder, data, tmp_path, kept, cleared, verdict):
    result = judge(open_datasets(data)[0].info, [kept], [[1] * len(kept)])
    assert replace(result, cleared_returns=[float(value) for value in cleared]).context_verdict == verdict


def test_an_interrupted_evaluation_continues(folder, data, tmp_path, monkeypatch):
    references = open_datasets(data, [CARTPOLE, CLIFF])
    real, asked = trial_module.make, []

    def make(environment, **options):
        asked.append(environment)
        if environment == CARTPOLE:
            raise KeyboardInterrupt
        return real(environment, **options)

    monkeypatch.setattr(trial_module, "make", make)
    # One environment a batch: the one of longer episodes comes first, and is finished when the other is stopped.
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, references, tmp_path, Protocol(1, 1), batch_rows=1)
    assert asked[0] == CLIFF and asked[-1] == CARTPOLE and not (tmp_path / "report.json").exists()
    monkeypatch.setattr(trial_module, "make", real)
    ended = []
    evaluate(folder, references, tmp_path, Protocol(1, 1), progress=lambda name, done: ended.append((name, done)))
    assert ended[0] == (CLIFF, 1) and json.loads((tmp_path / "report.json").read_text())["format"] == 1


def test_seeds_of_the_data_are_not_evaluated_unnoticed(folder, data, tmp_path):
    (reference,) = open_datasets(data, [CARTPOLE])
    protocol = Protocol(1, 2)
    assert evaluate(folder, [reference], tmp_path / "apart", protocol).environments[0].flags == []
    # Four environments, the last of which began with the second rollout's seed.
    reference.runs = [replace(reference.info, seed=EVALUATION_SEED - 2, num_streams=4)]
    assert SEEN_SEED in evaluate(folder, [reference], tmp_path / "same", protocol).environments[0].flags
    reference.runs = [replace(reference.info, seed=EVALUATION_SEED - 4, num_streams=4)]
    assert SEEN_SEED not in evaluate(folder, [reference], tmp_path / "before", protocol).environments[0].flags


def test_a_failure_is_a_row_and_is_tried_again(folder, data, tmp_path, monkeypatch):
    references = open_datasets(data, [CARTPOLE, CLIFF])
    broken = {CLIFF}
    asked = []

    def make(environment, **options):
        asked.append(environment)
        return remote("Hostile/exit-v0") if environment in broken else registry.make(environment)

    monkeypatch.setattr(trial_module, "make", make)
    report = evaluate(folder, references, tmp_path, SHORT)
    fine, failed = report.environments
    assert fine.failure is None and fine.normalized_score is not None
    assert "exited with status 7" in failed.failure and failed.normalized_score is None
    assert failed.first10 == references[1].info.first10 and report.summary.failed == 1
    assert f"{CLIFF}: {failed.failure}" in report.warnings
    broken.clear()
    asked.clear()
    again = evaluate(folder, references, tmp_path, SHORT)
    assert set(asked) == {CLIFF} and again.environments[1].failure is None
    assert asdict(again.environments[0]) == asdict(fine)


def test_videos_are_extra_and_never_spoil_a_score(folder, data, tmp_path):
    references = open_datasets(data, [CARTPOLE, CLIFF])
    protocol = Protocol(episodes=1, rollouts=1)
    plain = evaluate(folder, references[:1], tmp_path / "plain", protocol)
    report = evaluate(folder, references[:1], tmp_path / "shown", protocol, videos=3)
    assert report.environments == plain.environments
    (video,) = report.videos.values()
    assert (tmp_path / "shown" / video["file"]).stat().st_size > 1000
    assert "data:video/mp4;base64," in (tmp_path / "shown" / "report.html").read_text()
    # Of a report that was made without any.
    shutil.copytree(folder, tmp_path / "model")
    shutil.copyfile(tmp_path / "plain" / "report.json", tmp_path / "model" / "report.json")
    done = run_ldm_here("report", tmp_path / "model", "--videos", 1, "--output", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page" / "report.html").read_text().count("data:video/mp4;base64,") == 1
    assert not (tmp_path / "page" / "videos").exists()
    refused = run_ldm_here("report", tmp_path / "plain", "--videos", 1, "--output", tmp_path / "page")
    assert refused.returncode == 1 and "in the folder of its model" in refused.stderr


def test_drawing_that_ends_its_process_is_a_note(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(showcase, "_record", odd_environments.dies)
    report = evaluate(folder, open_datasets(data, [CARTPOLE, CLIFF]), tmp_path, Protocol(1, 1), videos=2)
    assert {video["note"] for video in report.videos.values()} == {"drawing it ended the process (exit code -6)"}
    assert len(report.videos) == 2 and (tmp_path / "report.json").exists()


def test_other_folders_are_no_models(folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        evaluate(tmp_path, [], tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="type 'bert'; it must be 'ldm'"):
        evaluate(tmp_path, [], tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        evaluate(tmp_path, [], tmp_path)
