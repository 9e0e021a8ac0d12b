"""A learner's step in Stable-Baselines3 beside sbx, whose algorithms are jitted: processor time, compiling apart.

    python -m venv FOLDER && FOLDER/bin/pip install torch sbx-rl && FOLDER/bin/python benchmarks/jitted.py

It needs nothing of this package, and sbx is not among its requirements. The first steps are those that compile.
"""

import importlib
import os
import time

FIRST = 300
RUNS = (("SAC", "Pendulum-v1", 1500), ("TD3", "Pendulum-v1", 1500), ("PPO", "CartPole-v1", 20_000))


def measure(library: str, algorithm: str, environment: str, steps: int) -> tuple[float, float]:
    """Seconds of the first steps, and milliseconds of each of those after them."""
    learner = getattr(importlib.import_module(library), algorithm)("MlpPolicy", environment, seed=0, device="cpu")
    start = time.process_time()
    learner.learn(FIRST)
    compiled = time.process_time()
    learner.learn(steps, reset_num_timesteps=False)
    return compiled - start, (time.process_time() - compiled) / steps * 1e3


def main() -> None:
    """Measure and print."""
    os.environ.update(
        OMP_NUM_THREADS="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    for algorithm, environment, steps in RUNS:
        for library in ("stable_baselines3", "sbx"):
            first, each = measure(library, algorithm, environment, steps)
            name = f"{algorithm}, {environment}, {library}"
            print(f"{name}: first {FIRST} steps {first:.1f} s, then {each:.2f} ms a step", flush=True)


if __name__ == "__main__":
    main()
