"""A call that is interrupted at any point is followed by the truth or by a typed error, never by answers to other calls.

The environments observe 1000 x episode + steps and can be asked for it: what a step returns must be what they say.
"""

import contextlib
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError

import ldm_hf.env_registry
from bridges import BRIDGES, ISOLATED, make, make_vec
from ldm_hf.errors import EnvironmentFailure

SOURCES = str(Path(ldm_hf.env_registry.__file__).parent)
ZEROS = np.zeros(2, int)
REFUSED = (EnvironmentFailure, AlreadyPendingCallError, NoAsyncCallError)


class Interrupt:
    """Raises an exception in place of the instruction number ``at`` that the bridge, or one function of it, executes."""

    def __init__(self, at=None, error=KeyboardInterrupt, function=None):
        self.at, self.error, self.function, self.seen = at, error, function, 0

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and self.function in (None, frame.f_code.co_name):
            self.seen += 1
            if self.seen == self.at:
                raise self.error
        return self._trace


CALLS = {
    "step": lambda envs: envs.step(ZEROS),
    "step_wait": lambda envs: (envs.step_async(ZEROS), envs.step_wait()),
    "send": lambda envs: (envs.send(ZEROS), envs.recv(2)),
    "reset": lambda envs: envs.reset(),
    "call": lambda envs: envs.call("truth"),
    "render": lambda envs: envs.render(),
}


def is_true(envs, observations, info):
    """Whether observations and infos are what the environments say now."""
    truth = np.array(envs.call("truth"))
    np.testing.assert_array_equal(observations[:, 0], truth)
    np.testing.assert_array_equal(info["clock"], truth)
    return truth


def go_on(envs):
    """What can be done after an interrupt: a step that is true or refused, then an episode from its start."""
    with contextlib.suppress(*REFUSED):
        observations, _, _, _, info = envs.step(ZEROS)
        is_true(envs, observations, info)
    for _ in range(3):  # A worker that was ended is replaced by the reset after the one that says so.
        try:
            observations, info = envs.reset()
        except AlreadyPendingCallError:
            for take in (envs.step_wait, lambda: envs.recv(2)):
                with contextlib.suppress(*REFUSED):
                    take()
        except EnvironmentFailure:
            pass
        else:
            break
    starts = is_true(envs, observations, info)
    assert (starts % 1000 == 0).all()
    for count in range(1, 4):
        observations, _, _, _, info = envs.step(ZEROS)
        assert (is_true(envs, observations, info) == starts + count).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bridge", ISOLATED)
def test_an_interrupt_at_any_instruction_shifts_nothing(bridge, call, error):
    envs = make_vec(bridge, 2, render_mode="rgb_array")
    envs.reset()
    with Interrupt() as counted:
        CALLS[call](envs)
    generator = np.random.default_rng(0)
    interrupted = 0
    for at in generator.integers(1, counted.seen, 8 if bridge == "docker" else 40):
        with contextlib.suppress(error, *REFUSED), Interrupt(int(at), error):
            CALLS[call](envs)
            interrupted -= 1
        interrupted += 1
        go_on(envs)
    assert interrupted > 4
    envs.close()


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_at_every_instruction_shifts_nothing(call):
    envs = make_vec("venv", 2, render_mode="rgb_array")
    envs.reset()
    with Interrupt() as counted:
        CALLS[call](envs)
    for at in range(1, counted.seen):
        with contextlib.suppress(KeyboardInterrupt, *REFUSED), Interrupt(at):
            CALLS[call](envs)
        go_on(envs)
    envs.close()


@pytest.mark.parametrize("bridge", BRIDGES)
def test_signals_at_random_times_shift_nothing(bridge):
    envs = make_vec(bridge, 2)
    envs.reset()
    generator = np.random.default_rng(1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    caught = 0
    try:
        for delay in generator.uniform(1e-4, 3e-3, 20 if bridge == "docker" else 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                for _ in range(50):
                    envs.step(ZEROS)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                caught += 1
            except REFUSED:
                signal.setitimer(signal.ITIMER_REAL, 0)
            go_on(envs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught > 5
    envs.close()


def test_the_step_after_an_interrupted_one_is_refused_until_a_reset():
    env = make("venv")
    env.reset()
    with pytest.raises(KeyboardInterrupt), Interrupt(1, function="read"):
        env.step(0)
    with pytest.raises(EnvironmentFailure, match=r"the last call was interrupted; call reset\(\)"):
        env.step(0)
    observation, _ = env.reset()
    assert observation.item() == 2000  # the same worker: its second episode
    assert [env.step(0)[0].item() for _ in range(3)] == [2001, 2002, 2003]
    env.close()


@pytest.mark.parametrize("bridge", ISOLATED)
def test_calls_out_of_order_are_gymnasium_s_errors_and_lose_nothing(bridge):
    envs = make_vec(bridge, 2)
    with pytest.raises(NoAsyncCallError, match="`step_wait` without any prior call"):
        envs.step_wait()
    envs.reset()
    envs.step_async(ZEROS)
    others = {
        "step_async": lambda: envs.step_async(ZEROS),
        "reset": envs.reset,
        "render": envs.render,
        "call": lambda: envs.call("truth"),
        "has": lambda: envs.has_attr("truth"),
        "set": lambda: envs.set_attr("gravity", 1.0),
        "diagnostics": envs.diagnostics,
    }
    for name, ask in others.items():
        with pytest.raises(AlreadyPendingCallError, match=f"`{name}` while waiting for a pending call to `step`"):
            ask()
    assert envs.step_wait()[0].tolist() == [[1001], [1001]]
    with pytest.raises(NoAsyncCallError):
        envs.step_wait()
    assert envs.step(ZEROS)[0].tolist() == [[1002], [1002]]
    assert envs.reset()[0].tolist() == [[2000], [2000]] and envs.step(ZEROS)[0].tolist() == [[2001], [2001]]
    envs.close()
