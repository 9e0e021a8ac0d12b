"""Libraries that fail when they are added: what is found out, what is mended, and what is said to do next."""

import contextlib
import io
import sys
import types
from dataclasses import replace

import pytest
import typer

from conftest import run_ldm_here
from ldm_hf.cli.env import _json_object
from ldm_hf.env_registry.library import add
from ldm_hf.env_registry.library.add import AddRequest, add_library
from ldm_hf.env_registry.library.manifest import Manifest, read_manifest
from ldm_hf.env_registry.library.repair import diagnose_failure, diagnose_failures
from ldm_hf.env_registry.library.report import EnvironmentReport, read_report
from ldm_hf.env_registry.worker.compatibility import registering
from ldm_hf.errors import EnvironmentFailure

DATA = {"slug": "toy", "requirements": ["toy-env"], "python": "3.11", "modules": [], "packages": [], "licence": ""}
TOY = Manifest.from_data({**DATA, "homepage": "", "lock": ["toy-env==1", "numpy==2.0"]}, "the test")

MENDED = [
    ("AttributeError: `np.float_` was removed in the NumPy 2.0 release.", "numpy<2"),
    ("AttributeError: module 'numpy' has no attribute 'bool8'", "numpy<2"),
    ("ModuleNotFoundError: No module named 'pkg_resources'", "setuptools<81"),
    ("TypeError: only 0-dimensional arrays can be converted to Python scalars", "numpy<2"),
    ("step failed: ValueError: not enough values to unpack (expected 5, got 4)", "gym<0.26"),
    ("AttributeError: 'numpy.random._generator.Generator' object has no attribute 'randint'", "gym<0.26"),
    ("ModuleNotFoundError: No module named 'cv2'", "opencv-python-headless"),
    ("ModuleNotFoundError: No module named 'packaging.version'", "packaging"),
    ('DependencyNotInstalled: Box2D is not installed, run `pip install "gymnasium[box2d]"`', "gymnasium[box2d]"),
    ("ImportError: run pip install toy-env[render] to draw", "toy-env[render]"),
]


@pytest.mark.parametrize(("reason", "requirement"), MENDED)
def test_what_is_missing_is_added_once(reason, requirement):
    diagnosis = diagnose_failure(reason, TOY)
    assert diagnosis.repaired.requirements == ("toy-env", requirement) and diagnosis.repaired.lock == ()
    # What was tried already, is not tried again.
    assert diagnose_failure(reason, diagnosis.repaired).repaired is None


ADVISED = [
    (
        "TypeError: Grid.__init__() missing 2 required positional arguments: 'n' and 'size'",
        '\'{"n": ..., "size": ...}\'',
    ),
    (
        "Track.__init__() missing 1 required positional argument: 'rules' was raised from the environment creator for "
        "track-v0 with kwargs ({'map_name': 'maze'})",
        "'{\"rules\": ...}'",
    ),
    ("ModuleNotFoundError: No module named 'secret_module.part'", "the package that has secret_module"),
    ("ImportError: cannot import name 'Mapping' from 'collections' (collections/__init__.py)", "--python 3.9"),
    ("run pip install other-package[all]", "other-package[all]"),
    ("ImportError: libGLU.so.1: cannot open shared object file", "--system-package"),
    ("took 31 of 1000 random steps in the time allowed", "--timeout"),
    ("step failed: ValueError: too many values to unpack (expected 5)", "--only"),
    ("Failed to build. hint: `nle` (v0.9.1) was included because `minihack` (v1.0.2) depends on it", "'nle>0.9.1'"),
    ("make failed: URLError: <urlopen error [Errno -2] Name or service not known>", "where the network reaches"),
    ("FileNotFoundError: [Errno 2] No such file or directory: 'data.csv'", "its documentation says"),
]


@pytest.mark.parametrize(("reason", "advice"), ADVISED)
def test_what_cannot_be_mended_by_itself_says_what_to_do(reason, advice):
    diagnosis = diagnose_failure(reason, TOY)
    assert diagnosis.repaired is None and advice in diagnosis.advice


def test_a_display_is_replaced_by_a_renderer_without_one():
    repaired = diagnose_failure("GLEW could not be initialized", TOY).repaired
    assert repaired.environment["MUJOCO_GL"] == "egl" and repaired.requirements == TOY.requirements
    assert diagnose_failure('NoSuchDisplayException: Cannot connect to "None"', TOY).repaired == repaired
    assert diagnose_failure("GLEW could not be initialized", repaired).repaired is None


def test_most_failures_decide():
    numpy, module = MENDED[0][0], MENDED[2][0]
    assert "numpy 1" in diagnose_failures([numpy, numpy, module], TOY).cause
    assert diagnose_failures(["unheard of", "never seen", numpy], TOY) is None and diagnose_failures([], TOY) is None


@pytest.fixture
def adding(monkeypatch, tmp_path):
    """Add a library whose environments fail until requirements are there; gives the lines, and what was installed."""
    installed, validated = [], []
    monkeypatch.setattr(add, "SAMPLED_FROM", 20)
    monkeypatch.setattr(add, "SAMPLE", 4)

    def run(needed, reason, names=("Toy-v0", "Toy-v1"), fail=lambda name, mended: not mended, registers=()):
        class Installed:
            name = "venv"

            def __init__(self, manifest):
                self.manifest = manifest

        def install(draft, pythons, provider_class):
            installed.append(draft.requirements)
            return Installed(draft), {"version": "1", "python": "3.11", "environments": [], "registers": registers}

        def validate_all(provider, found, **options):
            mended = set(needed) <= set(provider.manifest.requirements)
            validated.append([one.name for one in found])
            return [replace(one, failure=reason if fail(one.name, mended) else None) for one in found]

        for name, function in (("install", install), ("validate_all", validate_all)):
            monkeypatch.setattr(add, name, function)
        monkeypatch.setattr(add, "environments_of", lambda manifest, found: [EnvironmentReport(name) for name in names])
        request = AddRequest({**DATA, "slug": "toy"}, "3.11", None, None, "venv", 1, 9.0, 2**30, "*", tmp_path)
        return add_library(request)

    run.validated = validated
    return run, installed


def test_of_a_large_registry_a_sample_is_mended_and_can_be_used_first(adding, tmp_path):
    """24 environments, of which every sixth is validated, mended, validated again and written before the others are."""
    run, installed = adding
    names = [f"Toy-v{number:02}" for number in range(24)]
    lines = run(["numpy<2"], MENDED[0][0], names, lambda name, mended: not mended or name == "Toy-v01")
    seen = []
    for line in lines:
        seen.append(line)
        if "of a sample" in line:
            assert run.validated == [names[::6]] * 2
            assert len(read_report(tmp_path / "toy.json").validated) == 4
    assert run.validated == [names[::6]] * 2 + [names] and len(installed) == 2
    assert "toy: of a sample 4 environments validated, 0 failed. They can be used already; 20 others follow" in seen[-4]
    assert seen[-3:-1] == ["toy: 23 environments validated, 1 failed", f"  Toy-v01: {MENDED[0][0]}"]
    assert len(read_report(tmp_path / "toy.json").validated) == 23


def test_of_a_large_registry_that_cannot_be_mended_only_the_sample_is_tried(adding):
    run, _ = adding
    with pytest.raises(EnvironmentFailure, match="it exploded"):
        list(run(["x"], "it exploded", [f"Toy-v{number:02}" for number in range(24)]))
    assert [len(names) for names in run.validated] == [4]


def test_a_library_is_mended_and_tried_again(adding, tmp_path):
    run, installed = adding
    lines = list(run(["numpy<2"], MENDED[0][0]))
    assert installed == [("toy-env",), ("toy-env", "numpy<2")]
    assert "toy: it was written for numpy 1; trying again: add 'numpy<2' to what is installed" in lines
    assert lines[-2:] == [
        "toy: 2 environments validated, 0 failed",
        f"written: {tmp_path}/toy.toml, {tmp_path}/toy.json",
    ]


TEN = [f"Toy-v{number}" for number in range(10)]


def test_a_part_that_fails_is_mended_where_it_is_a_tenth(adding):
    run, installed = adding
    reason = MENDED[0][0]
    lines = list(run(["numpy<2"], reason, TEN, lambda name, mended: name == "Toy-v3" and not mended))
    assert installed == [("toy-env",), ("toy-env", "numpy<2")]
    assert "toy: 10 environments validated, 0 failed" in lines
    installed.clear()
    lines = list(run(["numpy<2"], reason, [*TEN, "Toy-v10"], lambda name, mended: name == "Toy-v3" and not mended))
    assert installed == [("toy-env",)] and "toy: 10 environments validated, 1 failed" in lines


def test_a_repair_that_makes_it_worse_is_taken_back(adding, tmp_path):
    run, installed = adding
    lines = list(run(["numpy<2"], MENDED[0][0], TEN, lambda name, mended: mended or name == "Toy-v3"))
    assert len(installed) == 2 and "toy: that did not help, and is taken back" in lines
    assert "toy: 9 environments validated, 1 failed" in lines
    assert read_manifest(tmp_path / "toy.toml").requirements == ("toy-env",)


def test_what_stays_broken_ends_with_the_reason_and_what_to_do(adding):
    run, installed = adding
    with pytest.raises(
        EnvironmentFailure, match="no environment of toy could be validated: it was written for numpy 1"
    ):
        list(run(["something else"], MENDED[0][0]))
    assert len(installed) == 2  # the repair did not help, and is not tried once more
    with pytest.raises(EnvironmentFailure, match=r"it requires arguments; give them: --kwargs '\{\"n\": \.\.\.\}'"):
        list(run(["x"], "make failed: TypeError: __init__() missing 1 required positional argument: 'n'"))
    with pytest.raises(EnvironmentFailure, match=r"Toy-v0: it exploded"):
        list(run(["x"], "it exploded"))
    with pytest.raises(EnvironmentFailure, match="it registers none; name its modules by --module"):
        list(run([], "", names=()))


def test_what_can_be_mended_is_not_tried_with_every_python(monkeypatch):
    tried = []

    def fails(draft, provider_class):
        tried.append(draft.python)
        raise EnvironmentFailure(reason)

    monkeypatch.setattr(add, "_install", fails)
    for reason, pythons in ((MENDED[2][0], ["3.11"]), ("no wheel for this Python", ["3.11", "3.10"])):
        tried.clear()
        with pytest.raises(EnvironmentFailure, match=reason.replace(".", r"\.")):
            add.install(TOY, ("3.11", "3.10"), object)
        assert tried == pythons


def test_a_library_that_registers_when_asked_is_asked(adding, monkeypatch):
    run, _ = adding
    seen = []

    def validate_all(provider, found, **options):
        seen.append(provider.manifest.register)
        return [EnvironmentReport("Toy-v0")] if provider.manifest.register else []

    lines = run([], "", names=(), registers=["toy:register_envs", "toy:register_more"])
    monkeypatch.setattr(add, "validate_all", validate_all)
    assert "toy: its import registers nothing; trying again: call its function by --register toy:register_envs" in list(
        lines
    )
    assert seen == [(), ("toy:register_envs",)]


def test_functions_that_register_need_no_argument(monkeypatch):
    toy = types.ModuleType("toy")
    toy.register_envs = lambda backend="gymnasium", *more, **options: None
    toy.register = lambda name: None
    toy.make = lambda: None
    toy.registered = True
    monkeypatch.setitem(sys.modules, "toy", toy)
    assert registering(["toy"]) == ["toy:register_envs"]


def test_arguments_are_json_objects():
    assert _json_object('{"n": 4}') == {"n": 4}
    for text in ("{n: 4}", "[4]"):
        with pytest.raises(typer.BadParameter, match="--kwargs"):
            _json_object(text)
    with contextlib.redirect_stderr(io.StringIO()):
        assert run_ldm_here("env", "add", "toy", "--kwargs", "[4]").returncode == 2
