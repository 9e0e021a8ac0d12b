"""Test the ranges of setup.cfg: their oldest and newest releases, installed for real, on several Pythons.

Each combination gets a virtual environment of its own (8 GB each where PyTorch comes with CUDA, most of it shared by hard
links with uv's cache), the tests of model, data and training, and a small run from ``ldm build`` to ``ldm rollout``. Every
minor release of transformers in the range is then tested with the model only. Prints a Markdown table; exit status 1 if
anything failed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import uv
from packaging.requirements import Requirement
from packaging.version import Version

from ldm_hf.env_registry.providers.venv import find_python

ROOT = Path(__file__).parent.parent
SHOWN = (
    "torch",
    "transformers",
    "huggingface_hub",
    "datasets",
    "accelerate",
    "gymnasium",
    "stable_baselines3",
    "numpy",
)
MODEL_TESTS = ("modeling", "modeling_integrations", "transformers", "processing", "policy", "pretrained", "spaces")
DATA_TESTS = (
    "recorder",
    "curation",
    "candidates",
    "dataset_builder",
    "hub",
    "training",
    "evaluation",
    "scores",
    "cli",
    "agent",
)


@dataclass
class Combination:
    """What is installed: a Python, an end of the ranges, and requirements that narrow them."""

    name: str
    python: str
    resolution: str = "highest"
    requirements: list[str] = field(default_factory=list)
    model_only: bool = False


COMBINATIONS = [
    Combination("oldest", "3.10", "lowest-direct"),
    Combination("newest on the oldest Python", "3.10"),
    # What images for GPUs had when 5.17 was the newest release.
    Combination(
        "one release back", "3.12", requirements=["transformers==5.17.*", "huggingface_hub<2", "torch==2.11.*"]
    ),
    Combination("newest", "3.13"),
]


def main() -> None:
    """Run the combinations that the command line names, by default all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="name of a combination, such as 'oldest'; repeatable")
    parser.add_argument("--folder", type=Path, help="where environments are created; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [each for each in COMBINATIONS + _releases() if not arguments.only or each.name in arguments.only]
        if not chosen:
            sys.exit(f"there is no combination {arguments.only}; there are {[each.name for each in COMBINATIONS]}")
        print("|".join(["", "", "Python", *SHOWN, "tests", "end to end", "minutes", ""]))
        print("|---" * (len(SHOWN) + 5) + "|", flush=True)
        succeeded = [_test(each, folder) for each in chosen]
    sys.exit(not all(succeeded))


def _releases() -> list[Combination]:
    """The newest release of each minor version of transformers that setup.cfg allows."""
    (allowed,) = (
        each
        for each in map(Requirement, metadata.requires("ldm_hf") or ())
        if each.name == "transformers" and each.marker is None
    )
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = re.search(r"Available versions: (.*)", listed)
    newest: dict[tuple[int, ...], Version] = {}
    for version in map(Version, versions[1].split(", ") if versions else ()):
        if version in allowed.specifier:
            newest[version.release[:2]] = max(version, newest.get(version.release[:2], version))
    return [
        Combination(f"transformers {version}", "3.12", requirements=[f"transformers=={version}"], model_only=True)
        for version in sorted(newest.values())
    ]


def _test(combination: Combination, folder: Path) -> bool:
    """Install one combination, test it and print its row."""
    start = time.perf_counter()
    environment = folder / re.sub(r"\W+", "-", combination.name)
    log = environment.with_suffix(".log")
    with log.open("w") as output:
        python = _install(combination, environment, output)
        tests = _run_tests(combination, python, output)
        end_to_end = "" if combination.model_only else _run_end_to_end(environment, python, output)
    versions = _versions(python)
    minutes = (time.perf_counter() - start) / 60
    print(
        "|".join(["", combination.name, combination.python, *versions, tests, end_to_end, f"{minutes:.0f}", ""]),
        flush=True,
    )
    succeeded = "failed" not in tests + end_to_end and "error" not in tests
    if not succeeded:
        print(f"{combination.name}: see {log}", file=sys.stderr)
    return succeeded


def _install(combination: Combination, environment: Path, output) -> Path:
    """Resolve setup.cfg towards an end of its ranges, without the project's own constraints, and install what was found."""
    binary = uv.find_uv_bin()
    _run([binary, "venv", "--quiet", "--clear", "--python", find_python(combination.python), environment], output)
    python, narrowed, found = environment / "bin/python", environment / "narrowed.txt", environment / "found.txt"
    narrowed.write_text("".join(f"{requirement}\n" for requirement in combination.requirements))
    resolve = [
        binary,
        "pip",
        "compile",
        "--no-config",
        "--quiet",
        "--python-version",
        combination.python,
        "--extra",
        "test",
    ]
    resolve += ["--resolution", combination.resolution, "--constraint", narrowed, "--output-file", found]
    _run([*resolve, ROOT / "setup.cfg"], output)
    install = [binary, "pip", "install", "--no-config", "--python", python]
    _run([*install, "--requirement", found, "pip"], output)
    _run([*install, "--no-deps", "--editable", ROOT], output)
    return python


def _run_tests(combination: Combination, python: Path, output) -> str:
    names = MODEL_TESTS if combination.model_only else MODEL_TESTS + DATA_TESTS
    files = [ROOT / f"tests/test_{name}.py" for name in names]
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not long", *files]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(list(map(str, command)), check=False, cwd=ROOT, **piped)
    output.write(done.stdout)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)\b", done.stdout.splitlines()[-1])
    return ", ".join(counts) or "failed to start"


def _run_end_to_end(environment: Path, python: Path, output) -> str:
    """From an environment's id to a rollout of the model; "passed", or the command that failed."""
    data, run = environment / "e2e/data", environment / "e2e/run"
    cartpole = "gymnasium/CartPole-v1"
    settings = {"data": data, "output_dir": run, "max_steps": 20, "train_batch_size": 4, "context_length": 32}
    commands = [
        [
            "build",
            cartpole,
            "--budget",
            "small",
            "--transitions",
            8192,
            "--candidates",
            "PPO",
            "--keep-unstable",
            "--output",
            data,
        ],
        ["train", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))],
        ["evaluate", run / "model", "--data", data, "--output", environment / "e2e/report", "--episodes", 2],
        ["rollout", run / "model", cartpole, "--episodes", 1],
    ]
    for command in commands:
        if not _run([python, "-m", "ldm_hf", *command], output, check=False):
            return f"{command[0]} failed"
    return "passed"


def _run(command: list, output, check: bool = True) -> bool:
    output.write(f"$ {' '.join(map(str, command))}\n")
    output.flush()
    done = subprocess.run(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, check=check)
    return done.returncode == 0


def _versions(python: Path) -> list[str]:
    program = f"from importlib.metadata import version\nfor name in {SHOWN}: print(version(name).partition('+')[0])"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()


if __name__ == "__main__":
    main()
