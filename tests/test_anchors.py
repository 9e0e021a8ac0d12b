"""Anchors and flags: what trivial policies get, what a return is worth beside them, and which references are degenerate."""

import contextlib
import json
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ldm_hf.dataset_builder.anchors import anchors as module
from ldm_hf.dataset_builder.anchors import assessment
from ldm_hf.dataset_builder.anchors.anchors import Anchors, measure_anchors
from ldm_hf.dataset_builder.anchors.flags import flags
from ldm_hf.dataset_builder.anchors.playing import Conduct, Episodes, play
from ldm_hf.dataset_builder.anchors.trivial_policies import MOST_CONSTANTS, constant_actions, trivial_policies
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.env_registry.known_scores import POLICY, RETURN, THRESHOLD, KnownScore
from ldm_hf.env_registry.registry import make_vec
from ldm_hf.errors import EnvironmentFailure

TAXI, CLIFF = "gymnasium/Taxi-v4", "gymnasium/CliffWalking-v1"
ALIVE = Conduct(1000, "", None, -0.1)


def _known(good, **more):
    return KnownScore(None, good, RETURN, more.pop("kind", POLICY), "here", "", more.pop("comparable", True), **more)


def _anchors(random=0.0, trivial=None, known=None, length=100.0, starts=20):
    samples = {name: Sample(mean, 1.0, 20) for name, mean in (trivial or {}).items()}
    return Anchors("a/b", Sample(random, 1.0, 20), Sample(length, 1.0, 20), samples, starts, known)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("anchors")


def test_constant_actions_of_taxi_get_what_its_rules_say(cache):
    found = measure_anchors(TAXI, cache)
    # 200 steps: moves cost 1 each, against a wall or not; picking up or putting down where that is forbidden costs 10.
    assert [found.trivial[f"always {action}"].mean for action in (0, 1, 2, 3)] == [-200] * 4
    assert found.trivial["always 5"].mean == -2000
    assert found.best_trivial[1].mean == -200 and found.best_trivial[1].size == 20
    assert found.random.size == 100 and found.random_length.mean <= 200 and found.starts > 50
    assert measure_anchors(TAXI, cache) == found  # and written, so that it is measured once


def test_what_was_measured_is_kept_for_the_installation_that_it_was_measured_with(cache, monkeypatch):
    measure_anchors(TAXI, cache)
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("it was measured again"))
    measure_anchors(TAXI, cache)
    for name, other in (
        ("library_version", lambda _: "0.0"),
        ("find_manifest", lambda _: SimpleNamespace(validation_key="other arguments")),
    ):
        with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception):
            patch.setattr(module, name, other)
            measure_anchors(TAXI, cache)


def test_a_damaged_file_is_measured_again(cache):
    found = measure_anchors(TAXI, cache)
    path = cache / "gymnasium" / "Taxi-v4.json"
    path.write_text(path.read_text()[:100])
    assert measure_anchors(TAXI, cache) == found
    assert json.loads(path.read_text())["anchors"]["environment"] == TAXI


class Road(gymnasium.Env):
    """Standing still (2) costs nothing for 100 steps; whoever moves crashes at once."""

    observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(5)
    _steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        return self.np_random.random(2, np.float32), -20.0 * (action != 2), bool(action != 2), self._steps >= 100, {}


def test_what_stands_still_is_played_in_the_time_that_crashes_leave():
    """Six policies, 120 steps of two environments: a share of 20 is too few for an episode of 100, the 210 left are not."""
    with contextlib.closing(SyncVectorEnv([Road] * 2, autoreset_mode=AutoresetMode.SAME_STEP)) as envs:
        played = module._trivial_samples(envs, 0, 120, 100)
    assert played["always 2"].mean == 0 and all(played[f"always {action}"].mean == -20 for action in (0, 1, 3, 4))
    still = Anchors("a/b", Sample(-20, 0, 20), Sample(1, 0, 20), played)
    assert flags([0.0] * 4, [100] * 4, ALIVE, still) == ["is no better than a trivial policy, always 2: 0 against 0"]


def test_where_steps_are_slow_one_trivial_policy_is_played_all_the_same():
    """MountainCar's 200 steps in two environments, and time for 60 and 60 of them: all three actions outlast it."""
    with contextlib.closing(make_vec("gymnasium/MountainCar-v0", 2, autoreset_mode="SameStep")) as envs:
        assert {name: one.mean for name, one in module._trivial_samples(envs, 0, 60, 200).items()} == {"always 0": -200}
        assert module._trivial_samples(envs, 0, 60, None) == {}  # episodes may have no end


def test_a_single_start_is_seen():
    envs = make_vec(CLIFF, 2, autoreset_mode="SameStep", max_episode_steps=10)
    up = trivial_policies(envs.single_observation_space, envs.single_action_space)["always 0"]
    episodes = play(envs, up, 6, 0)
    envs.close()
    assert episodes.starts == 1
    assert episodes.returns == [-10] * 6 and episodes.lengths == [10] * 6
    assert episodes.conduct == Conduct(60, "0", None, -1.0)


def test_no_episode_is_favoured_for_being_short():
    envs = make_vec("gymnasium/CartPole-v1", 3, autoreset_mode="SameStep")
    policies = trivial_policies(envs.single_observation_space, envs.single_action_space)
    every = play(envs, policies["always 1"], 12, 5)
    some = play(envs, policies["always 1"], 12, 5, most_steps=60)  # ends within about two rounds of episodes
    none = play(envs, policies["always 1"], 12, 5, most_steps=3, at_least_one=False)
    envs.close()
    assert len(every.returns) == 12 and every.returns == every.lengths  # a reward of 1 a step
    assert 0 < len(some.returns) < 12 and len(some.returns) % 3 == 0  # as many of each environment
    assert none.returns == []


@pytest.mark.parametrize(
    ("space", "number"),
    [
        (spaces.Discrete(3, start=-1), 3),
        (spaces.Discrete(500), MOST_CONSTANTS),
        (spaces.MultiDiscrete([2, 3]), 6),
        (spaces.MultiBinary(3), 8),
        (spaces.Box(-2, 2, (2,)), 9),
        (spaces.Box(0, np.inf, (1,)), 3),
        (spaces.Box(-1, 1, (30,)), 19),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (1,))), 3),
        (spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2))), 4),
    ],
)
def test_constant_actions_lie_in_their_space_and_are_different(space, number):
    found = constant_actions(space)
    assert all(space.contains(action) for action in found)
    assert len({str(action) for action in found}) == len(found) == number


def test_share_is_the_place_between_random_and_known_good():
    known = _anchors(random=-10, known=_known(30))
    assert [known.share(value) for value in (-10, 10, 30, 50)] == [0, 0.5, 1, 1.5]
    assert known.solved(26) and not known.solved(25.9)
    for nothing in (None, _known(-20), _known(30, comparable=False)):
        assert _anchors(random=-10, known=nothing).share(5) is None
        assert _anchors(random=-10, known=nothing).solved(5) is None


def test_doing_nothing_does_not_solve_where_a_random_policy_does_harm():
    # Walking beside the cliff: 90 % of the way from -10,000 to -13 is less than standing still for 1,000 steps.
    cliff = _anchors(random=-10_000, trivial={"always 0": -1000}, known=_known(-13))
    assert cliff.share(-1000) > 0.9 and not cliff.solved(-1000)
    assert cliff.solved(-111) and not cliff.solved(-112)  # -1000 + 0.9 * 987 = -111.7


def test_what_the_library_calls_solved_is():
    assert _anchors(known=_known(1000, threshold=475.0)).solved(475)
    assert not _anchors(known=_known(1000, threshold=475.0)).solved(474)
    only_threshold = _anchors(known=_known(100, kind=THRESHOLD, threshold=100.0))
    assert only_threshold.solved(100) and not only_threshold.solved(99)


def test_a_good_reference_has_no_flag():
    assert flags([90, 91, 92, 93], [100] * 4, ALIVE, _anchors(trivial={"always 0": 10})) == []


@pytest.mark.parametrize(
    ("returns", "lengths", "conduct", "anchors", "reason"),
    [
        ([0.1, -0.1, 0.0], [100] * 3, ALIVE, _anchors(), "is no better than random"),
        ([5, 5.2, 4.9], [100] * 3, ALIVE, _anchors(trivial={"always 1": 5}), "a trivial policy, always 1"),
        ([2.9, 3, 3.1], [100] * 3, ALIVE, _anchors(known=_known(500)), "is 0.6% of the way from random to known good"),
        ([5, 6], [9, 9], Conduct(18, "", -10.0, -0.1), _anchors(random=-50), "ends its episodes after 9 steps"),
        ([5, 6], [100] * 2, Conduct(200, "0 0", None, 0.1), _anchors(random=-50), "always does the same: 0 0"),
        ([5, 5, 5], [100] * 3, ALIVE, _anchors(random=-50, starts=1), "every episode begins alike"),
        ([0, 0, 0], [100] * 3, ALIVE, _anchors(random=-50, starts=1), "every episode begins alike"),
        # An aircraft in single precision: 135.17706 and 135.18999.
        ([135.177, 135.19], [100] * 2, ALIVE, _anchors(random=-50, starts=1), "every episode begins alike"),
    ],
)
def test_each_kind_of_degenerate_reference_is_named(returns, lengths, conduct, anchors, reason):
    (found,) = flags(returns, lengths, conduct, anchors)
    assert reason in found


def test_one_start_is_no_flag_where_chance_comes_later():
    assert flags([5.0, 5.05, 4.95], [100] * 3, ALIVE, _anchors(random=-50, starts=1)) == []


def test_rounding_makes_nobody_better_than_a_trivial_policy():
    # A motor that is switched off at once: -10 by the reference, -10.000000000000002 by the constant action.
    off = Anchors(
        "a/b", Sample(-10.4, 0.6, 100), Sample(2.5, 1.0, 100), {"always -1": Sample(-10.000000000000002, 0, 20)}
    )
    (found,) = flags([-10.0] * 10, [1] * 10, None, off)
    assert "a trivial policy, always -1" in found


def test_a_goal_that_ends_an_episode_is_no_way_out():
    bonus = Conduct(18, "", 20.0, -1.0)
    assert flags([5, 6], [9, 9], bonus, _anchors(random=-50)) == []
    # Acrobot and MountainCar cost 1 a step until the goal: the sooner, the better.
    assert flags([-9, -10, -9], [9, 10, 9], Conduct(28, "", -1.0, -1.0), _anchors(random=-100)) == []
    # Reaching known good shows that the end is the goal, whatever its last step costs.
    penalty = Conduct(28, "", -2.0, -1.0)
    assert flags([-9, -10, -9], [9, 10, 9], penalty, _anchors(random=-100, known=_known(-9))) == []
    assert flags([-9, -10, -9], [9, 10, 9], penalty, _anchors(random=-100)) != []


def test_a_policy_that_reaches_the_most_there_is_from_many_starts_is_not_flagged():
    assert flags([500.0] * 5, [500] * 5, Conduct(2500, "", None, 1.0), _anchors(random=20)) == []


def test_an_environment_that_cannot_be_measured_costs_no_run(monkeypatch):
    def breaks(environment):
        raise EnvironmentFailure(f"{environment} broke")

    monkeypatch.setattr(assessment, "measure_anchors", breaks)
    assert assessment.assess(Episodes([1.0], [1], ALIVE, 1, 1), CLIFF) is None


def test_without_trivial_policies_it_is_measured_once_and_again_when_they_are_wanted(tmp_path):
    short = measure_anchors("gymnasium/CartPole-v1", tmp_path, trivial=False)
    assert short.trivial == {} and short.random.size == 100
    whole = measure_anchors("gymnasium/CartPole-v1", tmp_path)
    # Random play falls after about 22 steps, always the same action after 8 to 10, and 1 is paid for each.
    assert whole.random == short.random and 15 < whole.random.mean < 30
    assert all(8 <= whole.trivial[f"always {action}"].mean <= 11 for action in (0, 1))
    assert measure_anchors("gymnasium/CartPole-v1", tmp_path, trivial=False) == whole
