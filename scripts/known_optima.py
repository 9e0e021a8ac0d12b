"""Optima of small environments by dynamic programming, as rows of known_scores.tsv (docs/known_scores.md).

Run it with the Python of the library's isolated installation, whose path `ldm env doctor LIBRARY` shows, or any that has it:

    python scripts/known_optima.py gymnasium      # finite-horizon dynamic programming over the library's own P
    python scripts/known_optima.py gym-classics   # the same, over the library's model of each state and action
    python scripts/known_optima.py popgym         # what a policy that remembers everything gets, by playing it
    python scripts/known_optima.py minigrid       # shortest paths by breadth-first search, mean over 20 seeds
"""

import copy
import sys
from collections import deque

import numpy as np

try:
    import gymnasium
except ImportError:  # gym-classics, with the interface before
    import gym as gymnasium

SEEDS = 20
MOST_STATES = 20_000
_LIMIT = 1000  # where a library sets none: what the registry of ldm_hf sets


def finite_horizon(transitions, start, horizon):
    """The optimal expected undiscounted return within a time limit.

    Args:
        transitions: for each state a list over actions of lists of (probability, next state, reward, ends).
        start: probability of each state at the start.
        horizon: the time limit, in steps.
    """
    states, actions = len(transitions), max(map(len, transitions))
    entries = [
        (s, a, s2, p, r, ends)
        for s, row in enumerate(transitions)
        for a, ways in enumerate(row)
        for p, s2, r, ends in ways
    ]
    s, a, s2, p, r, ends = (np.array(column) for column in zip(*entries, strict=True))
    value = np.zeros(states)
    for _ in range(horizon):
        q = np.full((states, actions), -np.inf)
        q[s, a] = 0
        np.add.at(q, (s, a), p * (r + np.where(ends.astype(bool), 0, value[s2])))
        value = q.max(1)
    return float(start @ value)


def toy_text():
    """Gymnasium's environments that have a table of transitions."""
    for name in ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4"):
        env = gymnasium.make(name)
        horizon, table = env.spec.max_episode_steps or _LIMIT, env.unwrapped
        rows = [[table.P[s][a] for a in sorted(table.P[s])] for s in sorted(table.P)]
        best = finite_horizon(rows, np.asarray(table.initial_state_distrib), horizon)
        yield name, best, f"within {horizon} steps, over env.P"


def classics():
    """gym-classics' environments, from the model that each has of itself."""
    import gym_classics

    gym_classics.register()
    for name in (
        "ClassicGridworld",
        "CliffWalk",
        "DynaMaze",
        "FourRooms",
        "SparseGridworld",
        "WindyGridworld",
        "WindyGridworldKings",
        "WindyGridworldKingsNoOp",
        "WindyGridworldKingsStochastic",
    ):
        env = gymnasium.make(f"{name}-v0").unwrapped
        rows = [
            [[(p, int(s2), r, end) for s2, r, end, p in zip(*env.model(s, a), strict=True)] for a in env.actions()]
            for s in env.states()
        ]
        start = np.zeros(len(rows))
        for state in env._starts:
            start[env.encode(state)] += 1 / len(env._starts)
        yield f"{name}-v0", finite_horizon(rows, start, _LIMIT), f"within {_LIMIT} steps, over env.model"


def remembering():
    """POPGym's environments of memory, played by policies that remember all they were shown."""
    import popgym  # noqa: F401

    for level in ("Easy", "Medium", "Hard"):
        for name in (f"RepeatFirst{level}", f"RepeatPrevious{level}"):
            env = gymnasium.make(f"popgym-{name}-v0")
            lag = getattr(env.unwrapped, "k", None)
            returns = [_remembered(env, seed, lag) for seed in range(SEEDS)]
            yield f"popgym-{name}-v0", float(np.mean(returns)), f"by remembering, {SEEDS} episodes"


def _remembered(env, seed, lag):
    seen, total, ended = [env.reset(seed=seed)[0]], 0.0, False
    while not ended:
        action = seen[0] if lag is None else seen[max(0, len(seen) - lag)]
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(observation)
        total, ended = total + reward, terminated or truncated
    return total


def shortest_paths():
    """MiniGrid's environments that a search gets through, by the shortest path of each start."""
    import minigrid  # noqa: F401

    for name in (
        *(f"Empty-{size}" for size in ("5x5", "6x6", "8x8", "16x16", "Random-5x5", "Random-6x6")),
        *(f"DoorKey-{size}" for size in ("5x5", "6x6")),
        *(f"LavaGapS{size}" for size in (5, 6, 7)),
        *(f"LavaCrossingS9N{number}" for number in (1, 2, 3)),
        *(f"SimpleCrossingS9N{number}" for number in (1, 2, 3)),
        "DistShift1",
        "DistShift2",
        "MultiRoom-N2-S4",
    ):
        env = gymnasium.make(f"MiniGrid-{name}-v0").unwrapped
        lengths = []
        for seed in range(SEEDS):
            env.reset(seed=seed)
            lengths.append(_shortest(env))
            if lengths[-1] is None or ("Random" not in name and name.startswith(("Empty", "DistShift"))):
                break  # too large, or always the same
        if None in lengths:
            print(f"{name}: more than {MOST_STATES} states", file=sys.stderr)
            continue
        returns = [1 - 0.9 * length / env.max_steps for length in lengths]
        yield (
            f"MiniGrid-{name}-v0",
            float(np.mean(returns)),
            f"1 - 0.9 x shortest path / {env.max_steps}, of a search that sees the whole grid, {len(lengths)} seeds",
        )


def _shortest(env):
    """Steps of the shortest way to a reward; None if there are too many states."""
    env.gen_obs = lambda: None  # which nobody looks at, and takes most of the time
    begin = _snapshot(env)
    seen, waiting = {_key(env)}, deque([(begin, 0)])
    while waiting:
        state, steps = waiting.popleft()
        for action in range(6):
            _restore(env, state)
            _, reward, terminated, _, _ = env.step(action)
            if terminated and reward > 0:
                return steps + 1
            if not terminated and (key := _key(env)) not in seen:
                seen.add(key)
                waiting.append((_snapshot(env), steps + 1))
        if len(seen) > MOST_STATES:
            return None
    return None


def _snapshot(env):
    return [copy.copy(one) for one in env.grid.grid], env.agent_pos, env.agent_dir, copy.copy(env.carrying)


def _restore(env, state):
    cells, env.agent_pos, env.agent_dir, carrying = state
    env.grid.grid, env.carrying, env.step_count = [copy.copy(one) for one in cells], copy.copy(carrying), 0


def _key(env):
    cells = tuple(one and one.encode() for one in env.grid.grid)
    return cells, tuple(env.agent_pos), int(env.agent_dir), env.carrying and env.carrying.encode()


if __name__ == "__main__":
    found = {"gymnasium": toy_text, "gym-classics": classics, "popgym": remembering, "minigrid": shortest_paths}
    library = sys.argv[1]
    kind = "optimum" if library in ("gymnasium", "gym-classics") else "bound"
    for name, best, note in found[library]():
        row = (f"{library}/{name}", kind, "mean return", "", f"{best:.6g}", "", "yes", "scripts/known_optima.py", note)
        print(*row, sep="\t", flush=True)
