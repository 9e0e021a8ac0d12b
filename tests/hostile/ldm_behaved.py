"""Environments that do nothing wrong, to see whether what they do arrives: fixtures of the tests of the bridge."""

import base64
import collections
import pickle

import gymnasium
import numpy as np


class Clock(gymnasium.Env):
    """Observes 1000 x episode + steps, and says the same in its info and when it is asked."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(4)
    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 5}
    gravity = 9.5

    def __init__(self, length=100, step_info=None, render_mode=None):
        self.length, self.step_info, self.render_mode = length, step_info, render_mode
        self.episode = self.steps = 0

    def truth(self, plus=0):
        return 1000.0 * self.episode + self.steps + plus

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.truth()]), {"clock": self.truth(), "options": options}

    def step(self, action):
        self.steps += 1
        info = {"clock": self.truth()} if self.step_info is None else self.step_info
        return np.array([self.truth()]), float(action), self.steps >= self.length, False, info

    def render(self):
        if self.render_mode == "ansi":
            return f"{self.truth():g}"
        return np.full((4, 6, 3), self.steps, np.uint8)

    def action_masks(self):
        return np.arange(4) == self.steps % 4


class Masked(Clock):
    """Takes the actions that its mask allows, and no others."""

    def step(self, action):
        if not self.action_masks()[action]:
            raise ValueError(f"action {action} is masked at step {self.steps}")
        return super().step(action)


class Giver(gymnasium.Env):
    """Observes 1 in resets, and what it was made to give, as a Python object, in its one step."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, dtype, value, high=200):
        self.observation_space = gymnasium.spaces.Box(0, high, (), np.dtype(dtype).type)
        self.value = value

    def reset(self, *, seed=None, options=None):
        return self.observation_space.dtype.type(1), {}

    def step(self, action):
        return self.value, 0.0, True, False, {}


for _kind in (Clock, Masked, Giver):
    gymnasium.register(f"Behaved/{_kind.__name__}-v0", entry_point=_kind, max_episode_steps=500)

_unpickled = collections.Counter()


def unpickled(functions, render_mode=None):
    """The next environment of a list of functions that make one each, which a test of Gymnasium's sent."""
    _unpickled[functions] += 1
    made = pickle.loads(base64.b64decode(functions))
    return made[(_unpickled[functions] - 1) % len(made)]()
