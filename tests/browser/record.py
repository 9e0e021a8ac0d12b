#!/usr/bin/env python
"""Records what Python environments do, for ``environments.mjs``, which plays it again in JavaScript.

Of Gymnasium's the tests record it themselves. Libraries that a test machine may not have are recorded by
``python tests/browser/record.py``, after ``ldm env install minigrid minatar``, to ``traces.json`` beside it.
"""

import json
from pathlib import Path

import numpy as np

import ldm_hf
from ldm_hf.modeling.spaces_ldm import space_to_json

RECORDED = Path(__file__).with_name("traces.json")
IDS = [f"minigrid/MiniGrid-Empty-{name}-v0" for name in ("5x5", "6x6", "Random-5x5")] + ["minatar/MinAtar/Breakout-v1"]


def numbers(observation):
    """An observation as one list, or as a text of its digits, which is smaller; MiniGrid's mission is not read."""
    parts = [observation["direction"], observation["image"]] if isinstance(observation, dict) else [observation]
    values = np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)
    are_digits = values.size > 10 and not values.max() > 9
    return "".join(str(int(value)) for value in values) if are_digits else values.tolist()


def record(env, environment, steps, seed, exact_state=False):
    """A trace of random actions: what they brought, and the state that the environment was in after them."""
    draws = np.random.default_rng(seed)
    space = env.action_space
    trace = {"id": environment, "seed": seed, "start": numbers(env.reset(seed=seed)[0]), "steps": []}
    for _ in range(steps):
        action = (
            draws.integers(space.n) if hasattr(space, "n") else draws.uniform(space.low, space.high).astype(np.float32)
        )
        observation, reward, terminated, truncated, _ = env.step(action)
        step = {"action": np.asarray(action).tolist(), "observation": numbers(observation), "reward": float(reward)}
        step |= {"terminated": bool(terminated), "truncated": bool(truncated)}
        if exact_state:
            step["state"] = np.asarray(env.unwrapped.state, np.float64).tolist()
        if terminated or truncated:
            step["reset"] = numbers(env.reset()[0])
        trace["steps"].append(step)
    return trace


def main():
    traces = []
    for environment in IDS:
        env = ldm_hf.make(environment)
        trace = record(env, environment, 240 if "minigrid" in environment else 120, seed=3)
        spaces = {"observation": space_to_json(env.observation_space), "action": space_to_json(env.action_space)}
        traces.append(trace | {"spaces": spaces})
        env.close()
    RECORDED.write_text(json.dumps(traces, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
