"""EnvPool stepping a Gymnasium environment, in a virtual environment of its own: ``envpool_peer.py ID NUM_ENVS THREADS``.

It reads a line of JSON for each request, {"seconds": ...}, and answers each with transitions per second.
"""

import json
import sys
import time

import envpool
import numpy as np

BATCHES = 64  # of actions, drawn beforehand and taken over and over, as of the other contenders


def main() -> None:
    """Answer requests until there are no more."""
    name, num_envs, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    envs = envpool.make_gymnasium(name, num_envs=num_envs, num_threads=threads, seed=0)
    space = envs.action_space
    space.seed(0)
    actions = [np.array([space.sample() for _ in range(num_envs)]) for _ in range(BATCHES)]
    envs.reset()
    print("ready", flush=True)
    for line in sys.stdin:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < json.loads(line)["seconds"]:
            envs.step(actions[count % BATCHES])
            count += 1
        print(json.dumps({"rate": count * num_envs / (time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    main()
