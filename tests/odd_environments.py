"""Environments of every form that libraries have; classes only, so that a manifest names them by their entry point."""

import os
import pathlib
import time

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding


def dies(*_):
    """What a driver of graphics does that finds no screen."""
    os.abort()


BOX = spaces.Box(-1, 1, (2,), np.float32)


class Counting:
    """Observes how often it was stepped; ``kind`` says in which form."""

    observation_space = BOX
    action_space = spaces.Discrete(3)
    metadata = {"render.modes": ["rgb_array"], "video.frames_per_second": 12}

    def __init__(self, kind="old", length=3, render_mode=None):
        self.kind, self.length = kind, length
        self.seeds = []

    @property
    def unwrapped(self):
        return self

    def seed(self, seed=None):
        self.seeds.append(seed)
        return [seed]

    def reset(self):
        self.count = 0
        return np.zeros(2)

    def step(self, action):
        assert type(action) is int, type(action)  # as nasim wants it
        self.count += 1
        observation, done = np.full(2, self.count / 10), self.count >= self.length
        return {
            "old": lambda: (observation, self.count, done, {"action": action}),
            "cut": lambda: (observation, 1.0, done, {"TimeLimit.truncated": done}),
            "cost": lambda: (observation, 1.0, 2.5, done, False, {}),
            "vector": lambda: (observation, np.array([1.0, 10.0, 100.0]), done, False, {}),
            "outside": lambda: (observation * 100, float("inf"), done, False, {}),
            "column": lambda: (observation[:, None], np.array([1.5]), np.array([done]), np.bool_(False), {}),
            "lists": lambda: (observation.tolist(), Foreign(2.0), done, False, {}),
            "endless": lambda: (observation, 0.0, False, {}),
            "three": lambda: (observation, 0.0, done),
        }[self.kind]()

    def render(self, mode="human"):
        return np.full((4, 6, 4), self.count, np.uint8)

    def close(self):
        pass


class Foreign:
    """A number of another framework."""

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)


class Deaf(gymnasium.Env):
    """Draws where it starts, and takes a seed by its method only: reset ignores it, as those of Meta-World do."""

    observation_space = BOX
    action_space = spaces.Discrete(3)

    def seed(self, seed):
        self.np_random, seed = seeding.np_random(seed)
        return [seed]

    def reset(self, *, seed=None, options=None):
        super().reset()
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}


class Around(gymnasium.Env):
    """Hands everything on to the environment in it, its seed also by a method that this one does not have."""

    observation_space = BOX
    action_space = spaces.Discrete(3)

    def __init__(self):
        self.inner = gymnasium.make("CartPole-v1").unwrapped

    def seed(self, seed):
        self.inner.seed(seed)

    def reset(self, **kwargs):
        return self.inner.reset(**kwargs)[0][:2], {}

    def step(self, action):
        return self.inner.step(action % 2)[0][:2], 0.0, True, False, {}


class Nested(gymnasium.Env):
    """Observes and takes values of every kind of space."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "parts": spaces.Tuple([spaces.Discrete(5, start=2), spaces.MultiBinary(3)]),
            "mission": spaces.Text(20),
            "seen": spaces.Sequence(spaces.Box(0, 9, (2,), np.float32)),
            "map": spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
        }
    )
    action_space = spaces.Dict({"move": spaces.MultiDiscrete([3, 4]), "push": BOX, "jump": spaces.Discrete(2, start=1)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(0), {"options": options or {}, "nested": {"depth": 1}}

    def step(self, action):
        assert self.action_space.contains(action), action
        total = int(np.sum(action["move"]) + action["jump"])
        return self._observe(total), float(action["push"].sum()), False, False, {"total": total, "name": "step"}

    def _observe(self, number):
        return {
            "image": np.full((8, 8, 3), number, np.uint8),
            "parts": (2 + number % 5, np.array([1, 0, 1], np.int8)),
            "mission": f"go{number}",
            "seen": tuple(np.full(2, index, np.float32) for index in range(number % 4)),
            "map": spaces.GraphInstance(np.zeros((2, 2), np.float32), np.array([2]), np.array([[0, 1]])),
        }


class Meeting(gymnasium.Env):
    """A step of it ends when another one has begun the same step."""

    observation_space = BOX
    action_space = spaces.Discrete(3)

    def __init__(self, folder):
        self.folder, self.count = pathlib.Path(folder), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        (self.folder / f"{os.getpid()}-{self.count}").touch()
        while len(list(self.folder.glob(f"*-{self.count}"))) < 2:
            time.sleep(0.01)
        return np.zeros(2, np.float32), 1.0, self.count == 3, False, {}


class Gated(gymnasium.Env):
    """Counts its steps. Until a file exists, it holds steps with the action 1, and later episodes' resets if asked to."""

    observation_space = BOX
    action_space = spaces.Discrete(3)

    def __init__(self, file, length=99, holds_resets=False):
        self.file, self.length, self.holds_resets = pathlib.Path(file), length, holds_resets
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.count = self.episodes + 1, 0
        if self.holds_resets and self.episodes > 1:
            self._wait()
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if action == 1:
            self._wait()
        self.count += 1
        return np.full(2, self.count / 100, np.float32), float(self.count), self.count == self.length, False, {}

    def _wait(self):
        while not self.file.exists():
            time.sleep(0.01)


class Speaking(gymnasium.Env):
    """Says what to do, in other words at every step."""

    observation_space = spaces.Dict({"place": spaces.Discrete(4), "said": spaces.Dict({"task": spaces.Text(99)})})
    action_space = spaces.Discrete(3)
    TEXTS = ("Go to the red ball", "open, then GO", "", "the the the the the the")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._seen(), {}

    def step(self, action):
        self.count += 1
        return self._seen(), 0.0, self.count == 3, False, {}

    def _seen(self):
        return {"place": self.count, "said": {"task": self.TEXTS[self.count]}}
