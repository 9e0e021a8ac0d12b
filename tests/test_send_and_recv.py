"""Isolated environments that are ready are handed over without waiting for slower ones."""

import gymnasium
import numpy as np
import pytest

from ldm_hf.env_registry.remote.ready import wait_for_workers
from ldm_hf.env_registry.remote.vector_env import RemoteVectorEnv
from ldm_hf.errors import ConfigError, EnvironmentFailure, InvalidValueError
from test_remote_env import remote, settings


@pytest.mark.parametrize("num_workers", [2, 3])
def test_send_and_recv_give_the_steps_of_each_environment(num_workers):
    """In whatever order they are handed over, an environment sees its own actions, and gives what it gives alone."""
    ours = RemoteVectorEnv(settings("CartPole-v1", max_episode_steps=9), 3, num_workers=num_workers)
    theirs = [gymnasium.make("CartPole-v1", max_episode_steps=9) for _ in range(3)]
    ours.reset(seed=[4, 5, 6])
    for env, seed in zip(theirs, [4, 5, 6], strict=True):
        env.reset(seed=seed)
    counts, ended = np.zeros(3, int), np.zeros(3, bool)
    ours.send(np.zeros(3, int))
    while counts.min() < 30:
        observations, rewards, terminated, truncated, info = ours.recv(2)
        assert len(info["env_id"]) >= 2 and len(observations) == len(rewards) == len(info["env_id"])
        for place, index in enumerate(info["env_id"]):
            wanted = theirs[index].reset() if ended[index] else theirs[index].step(counts[index] // 2 % 2)
            np.testing.assert_equal(observations[place], wanted[0])
            if not ended[index]:
                assert (rewards[place], terminated[place], truncated[place]) == wanted[1:4]
            ended[index] = (terminated | truncated)[place]
            counts[index] += 1
        ours.send(counts[info["env_id"]] // 2 % 2, info["env_id"])
    ours.close()


def test_a_slow_environment_holds_no_other(tmp_path):
    gate = tmp_path / "open"
    envs = RemoteVectorEnv(settings("gated", kwargs={"file": str(gate)}), 3, num_workers=3)
    envs.reset(seed=0)
    envs.send(np.array([0, 1, 0]))
    seen = np.zeros(3, int)
    for _ in range(5):  # the others step while 1 holds its own
        observations, *_, info = envs.recv(2)
        assert info["env_id"].tolist() == [0, 2]
        seen[info["env_id"]] = np.round(observations[:, 0] * 100)
        envs.send(np.zeros(2, int), info["env_id"])
    assert seen.tolist() == [5, 0, 5]
    for call in (lambda: envs.step(np.zeros(3, int)), lambda: envs.step_async(np.zeros(3, int)), envs.reset):
        with pytest.raises(gymnasium.error.AlreadyPendingCallError, match="call `recv` first"):
            call()
    gate.touch()
    observations, *_, info = envs.recv(3)
    assert info["env_id"].tolist() == [0, 1, 2] and np.round(observations[:, 0] * 100).tolist() == [6, 1, 6]
    with pytest.raises(gymnasium.error.NoAsyncCallError, match="send"):
        envs.recv()
    assert np.round(envs.step(np.zeros(3, int))[0][:, 0] * 100).tolist() == [7, 2, 7]
    envs.close()


def test_what_is_sent_is_of_whole_workers_once():
    envs = RemoteVectorEnv(settings("old"), 4, num_workers=2)
    envs.reset(seed=0)
    for ids in ([0], [1, 0], [0, 1, 0, 1], [0, 1, 2], [4, 5], []):
        with pytest.raises(ConfigError, match="env_ids must be"):
            envs.send(np.zeros(len(ids), int), ids)
    with pytest.raises(InvalidValueError, match="there are 2 environments"):
        envs.send(np.zeros(4, int), [2, 3])
    envs.send(np.zeros(2, int), [2, 3])
    with pytest.raises(ConfigError, match="not stepping"):
        envs.send(np.zeros(2, int), [2, 3])
    envs.send(np.zeros(2, int), [0, 1])
    assert envs.recv(4)[-1]["env_id"].tolist() == [0, 1, 2, 3]
    envs.close()


@pytest.mark.parametrize(("harm", "reason"), [("exit", "status 7"), ("hang_in_c", "gave no answer within 1 s")])
@pytest.mark.parametrize("restart", [False, True])
def test_of_what_was_sent_a_failing_worker_spoils_only_its_own(harm, reason, restart):
    timeout = 1.0 if harm == "hang_in_c" else 60.0
    made = settings(f"Hostile/{harm}-v0", kwargs={"only": 1}, restart=restart, step_timeout=timeout)
    envs = RemoteVectorEnv(made, 2, num_workers=2)
    envs.reset(seed=0)
    for _ in range(2):
        envs.send(np.zeros(2, int))
        envs.recv(2)
    envs.send(np.zeros(2, int))
    steps = {}
    while len(steps) < 2:
        try:
            observations, _, _, truncated, info = envs.recv()
        except EnvironmentFailure as failure:
            assert not restart and reason in str(failure)
            steps[1] = None
            continue
        for place, index in enumerate(info["env_id"]):
            steps[int(index)] = observations[place].tolist(), bool(truncated[place])
    assert steps[0] == ([3, 3, 3], False) and steps[1] == (([2, 2, 2], True) if restart else None)
    if not restart:
        with pytest.raises(EnvironmentFailure, match=r"call reset\(\)"):
            envs.send(np.zeros(2, int))
    assert (envs.reset(seed=0)[0] == 0).all()
    envs.close()


def test_a_reset_need_not_be_waited_for(tmp_path):
    gate = tmp_path / "open"
    env = remote("gated", kwargs={"file": str(gate), "holds_resets": True})
    env.reset(seed=0)
    env.step(0)
    env.reset_async()
    for call in (lambda: env.step(0), env.reset, env.reset_async, env.step_wait):
        with pytest.raises((gymnasium.error.AlreadyPendingCallError, gymnasium.error.NoAsyncCallError)):
            call()
    assert wait_for_workers([env.awaited], 0) == []
    gate.touch()
    assert wait_for_workers([env.awaited]) == [0]
    assert env.reset_wait()[0].tolist() == [0, 0] and env.step(0)[1] == 1
    env.close()


def test_a_failure_does_not_take_along_what_is_ready_with_it():
    envs = RemoteVectorEnv(settings("Hostile/exit-v0", kwargs={"only": 1}), 3, num_workers=3)
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(3, int))
    envs.send(np.zeros(3, int))
    observations, *_, info = envs.recv(3)  # all have answered, or never will
    assert info["env_id"].tolist() == [0, 2] and observations[:, 0].tolist() == [3, 3]
    with pytest.raises(EnvironmentFailure, match="status 7"):
        envs.recv()
    with pytest.raises(gymnasium.error.NoAsyncCallError):
        envs.recv()
    envs.close()
