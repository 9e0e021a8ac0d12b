"""Writes the package's copy of RL Zoo's tuned hyperparameters: src/ldm_hf/dataset_builder/build/race/zoo.json.

    pip download rl_zoo3 --no-deps
    python scripts/update_zoo.py rl_zoo3-*.whl

What cannot be a candidate is left out, and printed with the reason: entries that wrap the environment, which makes it
another task; exploration noise and normalisation of kinds that candidates do not have; replay of other goals.
"""

import argparse
import ast
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

OUTPUT = Path(__file__).parents[1] / "src/ldm_hf/dataset_builder/build/race/zoo.json"
ALGORITHMS = ("A2C", "ARS", "DDPG", "DQN", "PPO", "QRDQN", "SAC", "TD3", "TQC", "TRPO")
DROPPED = (
    "n_timesteps",
    "policy",
    "n_envs",
    "normalize",
    "noise_type",
    "noise_std",
    "optimize_memory_usage",
    "callback",
)
WRAPPING = ("env_wrapper", "frame_stack", "vec_env_wrapper", "env_kwargs", "replay_buffer_class")


class Unfit(Exception):
    """Why an entry cannot be a candidate."""


def candidate(algorithm: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the zoo as fields of a candidate, as JSON data; ``Unfit`` if it is none."""
    for key in WRAPPING:
        if entry.get(key) not in (None, {}, []):
            raise Unfit(f"{key}: {entry[key]}")
    hyperparameters = {key: plain(key, value) for key, value in entry.items() if key not in DROPPED + WRAPPING}
    if "noise_type" in entry:
        if entry["noise_type"] != "normal":
            raise Unfit(f"noise_type: {entry['noise_type']}")
        hyperparameters["action_noise"] = float(entry["noise_std"])
    found: dict[str, Any] = {"num_envs": int(entry.get("n_envs", 1)), "hyperparameters": hyperparameters}
    if normalized(algorithm, entry.get("normalize", False)):
        found["normalize"] = True
    if entry.get("policy") == "LinearPolicy":
        found["policy"] = "LinearPolicy"
    return found


def normalized(algorithm: str, value: Any) -> bool:
    """Whether an entry normalises as a candidate does: observations and rewards, of ARS observations only."""
    value = literal(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        observations, rewards = value.get("norm_obs", True), value.get("norm_reward", True)
        if set(value) - {"norm_obs", "norm_reward"} or observations != (rewards or algorithm == "ARS"):
            raise Unfit(f"normalize: {value}")
        return bool(observations)
    return bool(value)


def plain(key: str, value: Any) -> Any:
    """A hyperparameter as JSON data."""
    if isinstance(value, str) and value.startswith("lin_"):
        return f"linear_{value.removeprefix('lin_')}"
    if key == "policy_kwargs" and isinstance(value, str):
        return literal(value)
    return value


def literal(text: str) -> Any:
    """The value of ``dict(...)``, a literal, or the name of a class such as ``nn.ReLU``; nothing is run."""
    return _value(ast.parse(text.strip(), mode="eval").body, text)


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): _value(keyword.value, text) for keyword in node.keywords}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
        return node.attr
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part, text) for part in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise Unfit(f"cannot be read: {text}") from error


def main() -> None:
    """Write the table, and print what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    path = parser.parse_args().wheel
    version = path.name.split("-")[1]
    tuned: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    with zipfile.ZipFile(path) as wheel:
        [licence] = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
        licence_text = wheel.read(licence).decode()
        for algorithm in ALGORITHMS:
            entries = yaml.safe_load(wheel.read(f"rl_zoo3/hyperparams/{algorithm.lower()}.yml"))
            for environment, entry in entries.items():
                if environment in ("default", "atari"):
                    continue
                try:
                    tuned.setdefault(environment, {})[algorithm] = candidate(algorithm, entry)
                except Unfit as reason:
                    left_out[f"{algorithm} on {environment}: {reason}"] += 1
    values = {
        "about": f"Hyperparameters that RL Zoo (rl_zoo3 {version}) tuned for an environment; scripts/update_zoo.py",
        "source": "https://github.com/DLR-RM/rl-baselines3-zoo",
        "version": version,
        "licence": licence_text,
        "tuned": {name: dict(sorted(found.items())) for name, found in sorted(tuned.items()) if found},
    }
    OUTPUT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print("\n".join(sorted(left_out)))
    print(
        f"{sum(map(len, tuned.values()))} candidates of {len(values['tuned'])} environments; {len(left_out)} left out"
    )


if __name__ == "__main__":
    main()
