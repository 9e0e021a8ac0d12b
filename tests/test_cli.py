"""The command line, the quickstart and the README, as their users run them."""

import contextlib
import io
import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from huggingface_hub import ModelCard

import ldm_hf.quickstart as quickstart_module
from conftest import CARTPOLE, run_ldm, run_ldm_here
from ldm_hf.cli.main import run_command
from ldm_hf.errors import LDMError
from ldm_hf.quickstart import ENVIRONMENTS, quickstart
from ldm_hf.utils.processes import ChildFailure

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("quickstart",),
        ("train",),
        ("finetune",),
        ("average",),
        ("evaluate",),
        ("report",),
        ("env",),
        ("env", "list"),
        ("env", "info"),
        ("env", "doctor"),
        ("env", "add"),
        ("env", "install"),
        ("env", "check"),
        ("env", "catalogue"),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(command):
    done = run_ldm_here(*command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("env", "info", "gymnasium/CartPole-v7"), "did you mean gymnasium/CartPole-v1"),
        (("env", "doctor", "CartPole-v1"), "did you mean gymnasium/CartPole-v1"),
        (("env", "doctor", CARTPOLE, "--model", "nowhere"), "nowhere: no such folder"),
        (("env", "add"), "name what to install"),
        (("env", "add", "--from-manifest", "nowhere"), "no library is called 'nowhere'"),
        (("env", "add", "x", "--from-file", "nowhere.toml"), "nowhere.toml cannot be read"),
        (("env", "install", "nowhere"), "no library is called 'nowhere'"),
        (("env", "install", "gymnasium", "--provider", "moon"), "provider must be one of venv, docker, got 'moon'"),
        (("env", "check", "nowhere/X-v0"), "no library is called 'nowhere'"),
        (("train", "--data", "nowhere", "--output_dir", "x"), "nowhere holds no datasets"),
        (("train", "--config", "nowhere.yaml"), "nowhere.yaml cannot be read"),
        (("evaluate", "nowhere", "--data", "nowhere", "--output", "x"), "nowhere: no such folder"),
        (("evaluate", "nowhere", "--output", "x"), "nowhere: no such folder"),
        (("report", "nowhere.json"), "nowhere.json is not a report"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_clear_line(arguments, message, tmp_path):
    done = run_ldm(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*/*"))


def test_a_space_that_does_not_fit_names_count_and_limit(model, processor, tmp_path):
    model.config.max_observation_slots, before = 3, model.config.max_observation_slots
    model.config.save_pretrained(tmp_path)
    model.config.max_observation_slots = before
    done = run_ldm("env", "doctor", CARTPOLE, "--model", tmp_path)
    assert done.returncode == 1 and "takes 4 slots" in done.stderr and "the limit is 3" in done.stderr
    assert run_ldm("env", "doctor", CARTPOLE).stdout == f"{CARTPOLE} fits: 4 observation slots, 1 action slots\n"


def test_environments_are_listed():
    listed = run_ldm("env", "list", "gymnasium").stdout.splitlines()
    assert CARTPOLE in listed and "gymnasium/CartPole-v0" not in listed


SHORT = ("--budget", "small", "--transitions", "8192", "--candidates", "PPO", "--keep-unstable")


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".parquet", ".safetensors")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder in which a short quickstart ran, in two attempts that were interrupted and one that was not."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "pretrained").symlink_to(REPOSITORY / "pretrained")
    output = root / "runs/quickstart"
    run, broken = quickstart_module.run_child, {"train": True, "evaluate": True}

    def breaking_once(command, environment=None):
        for step in list(broken):
            if step in command and broken.pop(step):
                raise LDMError(f"interrupted before {step}")
        run(command, environment)

    patch = pytest.MonkeyPatch()
    patch.setattr(quickstart_module, "run_child", breaking_once)
    settings = {"jobs": 2, "seed": 0, "steps": 4, "environments": [CARTPOLE], "options": SHORT}
    with pytest.raises(LDMError, match="before train"):
        quickstart(output, **settings)
    built = times(output / "data/gymnasium/CartPole-v1")
    assert built
    with pytest.raises(LDMError, match="before evaluate"):
        quickstart(output, **settings)
    trained = (output / "model/model.safetensors").read_bytes()
    quickstart(output, **settings)
    # What an attempt finished, later ones left alone.
    assert times(output / "data/gymnasium/CartPole-v1") == built
    assert (output / "model/model.safetensors").read_bytes() == trained
    patch.undo()
    with pytest.raises(ChildFailure, match="build"):  # which says that the folder holds data of other settings
        quickstart(output, **{**settings, "seed": 1})
    return root


def test_the_quickstart_leaves_what_it_promises(workspace):
    output = workspace / "runs/quickstart"
    report = json.loads((output / "report.json").read_text())
    assert [result["id"] for result in report["environments"]] == [CARTPOLE]
    assert all(
        {"normalized_score", "mean_return", "first10", "last10"} <= set(result) for result in report["environments"]
    )
    assert (output / "threshold_curve.png").read_bytes().startswith(b"\x89PNG")
    for card in (output / "README.md", output / "model/README.md"):
        found = ModelCard.load(card)
        assert found.data.pipeline_tag == "reinforcement-learning" and "ldm_hf.load(" in found.text
    assert not list(output.rglob("*.partial*"))


@pytest.mark.parametrize(("level", "shown"), [(None, True), ("info", True), ("error", False), ("nonsense", True)])
def test_the_log_is_as_loud_as_transformers_is(monkeypatch, level, shown):
    def command():
        logging.getLogger("ldm_hf.env_registry.registry").info("a line")
        sys.exit(0)

    if level is not None:
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", level)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit):
        run_command(command)
    assert errors.getvalue() == ("a line\n" if shown else "")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_readme_programs_run_as_written(workspace, index):
    program = blocks("python")[index]
    assert len([line for line in program.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    # Streaming readers of `datasets` may abort while the interpreter ends; what counts is what ran before.
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint('done', flush=True)"],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stderr


@pytest.fixture
def beside_quickstart(workspace, tmp_path) -> Path:
    """A folder from which README's commands see the quickstart and the examples, and write beside them."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(workspace / "runs/quickstart")
    for name in ("examples", "pretrained"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def readme_commands() -> str:
    """As written, but for the length of the training run and of the evaluation."""
    commands = "".join(blocks("bash"))
    return commands.replace("train.yaml", "train.yaml --max_steps 3").replace(CARTPOLE, f"{CARTPOLE} --episodes 1")


def test_readme_commands_do_what_they_say(beside_quickstart):
    """One after another in this process; the launcher is part of the quickstart."""
    commands = readme_commands().replace("accelerate launch --quiet -m ldm_hf train", "ldm train").splitlines()
    assert [line.split()[:2] for line in commands] == [
        ["ldm", name] for name in ("rollout", "train", "evaluate", "report", "rollout")
    ]
    said = ""
    for line in commands:
        done = run_ldm_here(*line.split()[1:], cwd=beside_quickstart)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert (beside_quickstart / "runs/example/model/config.json").exists() and CARTPOLE in said
    assert (beside_quickstart / "out.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_readme_commands_run_as_written(beside_quickstart):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", readme_commands()],
        cwd=beside_quickstart,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (beside_quickstart / "runs/example/model/config.json").exists() and CARTPOLE in done.stdout


def test_a_rollout_is_printed_and_filmed(workspace, tmp_path):
    import imageio.v3 as imageio

    model = workspace / "runs/quickstart/model"
    for name in ("out.gif", "out.mp4"):
        done = run_ldm_here("rollout", model, CARTPOLE, "--episodes", 2, "--video", tmp_path / name)
        assert done.returncode == 0, done.stderr
        lengths = [int(steps) for steps in re.findall(r"return \d+, (\d+) steps", done.stdout)]
        assert len(lengths) == 2 and re.search(r"^mean return \d", done.stdout, re.MULTILINE)
        frames = imageio.imread(tmp_path / name)
        assert frames.shape[1:] == (400, 600, 3)
        # Each episode shows its reset and its steps. A GIF keeps an image that does not change for longer instead.
        assert len(frames) == sum(lengths) + 2 or (name == "out.gif" and len(frames) <= sum(lengths) + 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gif", "out.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MODEL", CARTPOLE, "--video", "out.avi"), "should end in .mp4 or .gif"),
        (("MODEL", "gymnasium/CartPol-v1"), "did you mean gymnasium/CartPole-v1"),
        (("nothing", CARTPOLE), "nothing: no such folder"),
    ],
)
def test_a_rollout_that_cannot_be_is_one_line(workspace, tmp_path, arguments, message):
    model = workspace / "runs/quickstart/model"
    done = run_ldm_here("rollout", *(model if part == "MODEL" else part for part in arguments), cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1 and len(lines) == 1 and message in lines[0], done.stderr


def test_the_example_that_acts_runs(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["act.py"])
    runpy.run_path(str(REPOSITORY / "examples/act.py"), run_name="__main__")
    assert "episode 2: return" in capsys.readouterr().out


def readme_snippet(heading: str) -> str:
    """The first block of Python under a heading of the README."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n")[1].split("```python\n")[1].split("```")[0]


STREAMING = {
    "example": [str(REPOSITORY / "examples/stream_dataset.py")],
    "readme": ["-c", readme_snippet("Stream a dataset")],
}
# Files as Python's, as those of the Hub are, which end the process if another thread reads them: one of Arrow's may be at
# it, or hold it, when Python ends, which aborts the process.
ONE_THREAD = """
import io, os, threading
from ldm_hf.dataset_builder.format.storage import FolderStorage

class File(io.FileIO):
    def read(self, size=-1):
        if threading.current_thread() is not threading.main_thread():
            os._exit(99)
        return super().read(size)

FolderStorage.open = lambda self, path: File(str(self._folder / path))
"""


def streamed(workspace, name: str, preamble: str = "") -> None:
    """Run a documented program in a process of its own, to the end of that."""
    command = STREAMING[name]
    if preamble:
        program = command[1] if command[0] == "-c" else Path(command[0]).read_text(encoding="utf-8")
        command = ["-c", preamble + program]
    done = subprocess.run([sys.executable, *command], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "terminate called" not in done.stderr, (done.returncode, done.stderr)
    assert ("consecutive transitions" in done.stdout) if name == "example" else done.stdout.count("\n") == 3


@pytest.mark.parametrize("name", STREAMING)
def test_programs_that_stream_end_well(workspace, name):
    """No thread of Arrow's reads a Python file."""
    streamed(workspace, name, ONE_THREAD)


@pytest.mark.long
@pytest.mark.parametrize("preamble", ["", ONE_THREAD])
@pytest.mark.parametrize("name", STREAMING)
def test_programs_that_stream_always_end_well(workspace, name, preamble):
    for _ in range(20):
        streamed(workspace, name, preamble)


def test_children_end_with_their_owner(tmp_path):
    """A killed command leaves no process behind that continues writing."""
    child = (
        "import os, sys, time; from ldm_hf.utils.processes import exit_with_owner; exit_with_owner();"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    owner = f"import sys; from ldm_hf.utils.processes import run_child; run_child([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", owner]) as running:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert running.poll() is None and time.sleep(0.05) is None
        left = psutil.Process(int((tmp_path / "pid").read_text()))
        os.kill(running.pid, signal.SIGKILL)
    left.wait(timeout=60)  # psutil.TimeoutExpired fails the test


@pytest.mark.slow
@pytest.mark.alone  # races are given processor time, in which less is learned beside other work
def test_the_whole_quickstart_reaches_80_percent(tmp_path):
    """As a newcomer runs it, killed on the way, within its time and memory."""
    command = [sys.executable, "-m", "ldm_hf", "quickstart", "--output", str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True) as running:
        while not list(tmp_path.glob("data/gymnasium/CartPole-v1/*/train-00000-of-00001.parquet")):
            assert running.poll() is None and time.sleep(0.1) is None
        os.kill(running.pid, signal.SIGKILL)
    slices = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/_races/*/*/*/slice-?/result.json")}
    done = subprocess.run(command, check=False)
    assert done.returncode == 0
    # Slices that were done are not repeated; a run that is kept may give way to a longer one, which continues it.
    assert slices and all(path.stat().st_mtime_ns == written for path, written in slices.items())
    report = json.loads((tmp_path / "report.json").read_text())
    assert {result["id"] for result in report["environments"]} == set(ENVIRONMENTS)
    # From random to reference: the first 10 % of a race of 90 seconds are a few episodes, at times as good as the last.
    assert all(result["random_score"] >= 0.8 for result in report["environments"]), report
    assert sum(result["normalized_score"] >= 0.8 for result in report["environments"]) >= 3, report
