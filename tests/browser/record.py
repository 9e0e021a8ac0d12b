#!/usr/bin/env python
"""Records what Python environments do, for ``environments.mjs``, which plays it again in JavaScript.

Of Gymnasium's the tests record it themselves. Libraries that a test machine may not have are recorded by
``python tests/browser/record.py``, after ``ldm env install minigrid minatar``, to ``traces.json.gz`` beside it.
"""

import gzip
import json
from pathlib import Path

import numpy as np

import ldm_hf
from ldm_hf.modeling.spaces_ldm import space_to_json

RECORDED = Path(__file__).with_name("traces.json.gz")
IDS = [f"minigrid/MiniGrid-Empty-{name}-v0" for name in ("5x5", "6x6", "Random-5x5")] + ["minatar/MinAtar/Breakout-v1"]


def recorded():
    """The traces that were recorded."""
    return json.loads(gzip.decompress(RECORDED.read_bytes()))


def numbers(observation):
    """An observation as one list, or as a text of digits, which is smaller; MiniGrid's mission is not read.

    Of MinAtar's planes a digit of 16 is a cell: bit i of it is plane i.
    """
    parts = [observation["direction"], observation["image"]] if isinstance(observation, dict) else [observation]
    values = np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)
    if np.asarray(parts[0]).dtype == bool:
        return "".join(f"{cell:x}" for cell in values.astype(int).reshape(-1, 4) @ [1, 2, 4, 8])
    are_digits = values.size > 10 and not values.max() > 9
    return "".join(str(int(value)) for value in values) if are_digits else values.tolist()


def follow(observation, draws):
    """An action of Breakout that goes where the ball will come down, or beside it, where it turns: it gets behind walls."""
    (_, paddle), (row, ball), (before, trail) = (np.argwhere(observation[..., plane])[0] for plane in (0, 1, 2))
    steps = 8 - row if row > before else row + 4  # a ball that rises will turn at the wall, which has three rows
    place = (ball + (ball - trail) * steps) % 20
    aim = min(place, 19 - place) + int(draws.random() < 0.1)
    return int(np.sign(paddle - aim)) % 3


def record(env, environment, steps, seed, exact_state=False, act=None):
    """A trace of actions, random ones or those of ``act``: what they brought, and the state that the environment was in."""
    draws = np.random.default_rng(seed)
    space = env.action_space
    observation, _ = env.reset(seed=seed)
    trace = {"id": environment, "seed": seed, "start": numbers(observation), "steps": []}
    for _ in range(steps):
        if act is not None:
            action = act(observation, draws)
        elif hasattr(space, "n"):
            action = draws.integers(space.n)
        else:
            action = draws.uniform(space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        step = {"action": np.asarray(action).tolist(), "observation": numbers(observation), "reward": float(reward)}
        step |= {end: True for end, came in (("terminated", terminated), ("truncated", truncated)) if came}
        if exact_state:
            step["state"] = np.asarray(env.unwrapped.state, np.float64).tolist()
        if terminated or truncated:
            observation, _ = env.reset()
            step["reset"] = numbers(observation)
        trace["steps"].append(step)
    return trace


def main():
    traces = []
    for environment in IDS:
        env = ldm_hf.make(environment)
        is_game = environment.startswith("minatar")
        trace = record(env, environment, 3000 if is_game else 240, seed=3, act=follow if is_game else None)
        spaces = {"observation": space_to_json(env.observation_space), "action": space_to_json(env.action_space)}
        traces.append(trace | {"spaces": spaces})
        env.close()
    RECORDED.write_bytes(gzip.compress(json.dumps(traces, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    main()
