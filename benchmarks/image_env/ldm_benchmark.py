"""A 64x64x3 environment of nearly no cost: what is timed is how its images travel."""

import gymnasium
import numpy as np

SIZE, SQUARE, EPISODE = 64, 8, 500


class MovingSquare(gymnasium.Env):
    """A square on a fixed random background; the action moves it left or right, time moves it down."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._background = self.np_random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        self._column = int(self.np_random.integers(SIZE - SQUARE))
        self._time = 0
        return self._frame(), {}

    def step(self, action):
        self._time += 1
        self._column = min(max(self._column + (1 if action else -1), 0), SIZE - SQUARE)
        return self._frame(), float(action), False, self._time >= EPISODE, {}

    def _frame(self):
        frame = self._background.copy()
        row = self._time % (SIZE - SQUARE)
        frame[row : row + SQUARE, self._column : self._column + SQUARE] = 255
        return frame


gymnasium.register("LdmBenchmark/MovingSquare-v0", entry_point=MovingSquare)
