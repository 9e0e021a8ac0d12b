"""Manifests, validation, reports and the catalogue; adding a library for real is under the marker slow."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import canary
import ldm_hf
from conftest import run_ldm, run_ldm_here
from ldm_hf.env_registry.library.add import environments_of, validate_all
from ldm_hf.env_registry.library.catalogue import catalogue_page
from ldm_hf.env_registry.library.distribution import find_distribution, lock_of
from ldm_hf.env_registry.library.manifest import Manifest, library_folders, load_manifests, read_manifest
from ldm_hf.env_registry.library.report import EnvironmentReport, Report, load_report, read_report
from ldm_hf.env_registry.library.validation import NUM_STEPS, validate
from ldm_hf.env_registry.providers import selection as providers
from ldm_hf.env_registry.providers.docker import DockerProvider, engine, engine_problem
from ldm_hf.env_registry.providers.venv import VenvProvider, build_variables
from ldm_hf.env_registry.registry import find_manifest
from ldm_hf.env_registry.remote.worker_process import installed
from ldm_hf.env_registry.worker.space_tree import describe
from ldm_hf.errors import ConfigError, EnvironmentFailure, UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import space_from_json, space_to_json
from test_remote_env import ODD, TESTS, Here

SHIPPED = sorted(library_folders()[0].glob("*.toml"))
SPACES = [
    gymnasium.spaces.Box(-np.inf, 3, (2,), np.float64),
    gymnasium.spaces.Box(np.array([0, 1]), np.array([5, 1]), dtype=np.int16),
    gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
    gymnasium.spaces.Discrete(3, start=-1),
    gymnasium.spaces.MultiDiscrete([[2, 3], [4, 5]]),
    gymnasium.spaces.MultiBinary([2, 3]),
    gymnasium.spaces.MultiBinary(4),
    gymnasium.spaces.Text(5, min_length=2, charset="abc"),
    gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2), stack=True),
    gymnasium.spaces.Graph(gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(3)),
    gymnasium.spaces.OneOf([gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(0, 1, (1,))]),
    gymnasium.spaces.Dict(b=gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)]), a=gymnasium.spaces.MultiBinary(1)),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_workers_describe_spaces_as_models_do(space):
    described = describe(space)
    assert described == space_to_json(space) and json.loads(json.dumps(described)) == described
    assert space_from_json(described) == space


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_manifests_are_whole(path):
    manifest = read_manifest(path)
    assert manifest.slug == path.stem and Manifest.from_toml(manifest.to_toml(), path.name) == manifest
    assert manifest.lock, "a library that the tool added has a lock"
    assert all("==" in line or " @ git+https://" in line for line in manifest.lock)
    report = read_report(path.with_suffix(".json"))
    assert report.slug == path.stem and report.python.startswith(manifest.python) and report.validated
    assert not [
        line for line in (path.read_text(), path.with_suffix(".json").read_text()) if "site-packages/.." in line
    ]
    for one in report.validated:
        assert one.steps == NUM_STEPS and one.max_episode_steps > 0 and one.steps_per_second > 0
        assert space_to_json(space_from_json(one.action_space)) == one.action_space


def test_enough_is_shipped():
    validated = {path.stem: len(read_report(path.with_suffix(".json")).validated) for path in SHIPPED}
    assert len(validated) >= 89 and sum(validated.values()) >= 2650
    assert {read_manifest(path).python for path in SHIPPED} >= {"3.8", "3.10", "3.11", "3.12"}


def test_the_catalogue_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "catalogue.md"
    assert page.read_text() == catalogue_page(), "run: ldm env catalogue docs/catalogue.md"


def test_what_is_no_manifest_is_told_by_its_name():
    with pytest.raises(ConfigError, match=r"x\.toml is not a library manifest"):
        Manifest.from_toml("slug = [", "x.toml")
    with pytest.raises(ConfigError, match=r"x\.toml is not a library manifest.*colour"):
        Manifest.from_toml('slug = "x"\ncolour = 1', "x.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lock = 'gym==0.21.0'", r"lock: input should be a valid array, got 'gym==0\.21\.0'"),
        ("lock = ['gym==0.21.0', 1]", r"lock\.1: input should be a valid string, got 1"),
        ("environment = {THREADS = 1}", r"environment\.THREADS: input should be a valid string, got 1"),
        ("default_max_episode_steps = true", "default_max_episode_steps: input should be a valid integer, got True"),
        ("entry_points = [{name = 'A-v0'}]", r"entry_points\.0\.entry_point: field required"),
        ("arguments = ['A-v0']", r"arguments\.0: input should be an object, got 'A-v0'"),
        (
            "reward_weights = [{pattern = '*', weights = [1, 0.5, '2']}]",
            r"reward_weights\.0\.weights\.2: input should be a valid number, got '2'",
        ),
        ("installer = 'conda'", "installer should be uv or pip, got 'conda'"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_by_its_key(line, message):
    whole = (
        "slug = 'x'\nrequirements = ['x']\npython = '3.8'\nmodules = []\npackages = []\nlicence = ''\nhomepage = ''\n"
    )
    assert Manifest.from_toml(whole, "x.toml").requirements == ("x",)
    with pytest.raises(ConfigError, match=r"^x\.toml is not a library manifest: .*" + message):
        Manifest.from_toml(whole + line, "x.toml")
    for slug in ("../x", "My_Library", ""):
        with pytest.raises(ConfigError, match="slug should be like 'my-library'"):
            Manifest.from_toml(whole.replace("'x'", f"'{slug}'", 1), "x.toml")


def test_an_installation_is_made_again_when_what_it_is_made_from_changes(tmp_path):
    keys = {
        replace(ODD, **change).build_key
        for change in ({}, {"python": "3.9"}, {"lock": ("a==1",)}, {"installer": "pip"}, {"system_packages": ("g++",)})
    }
    assert len(keys) == 5
    source = tmp_path / "library"
    source.mkdir()
    (source / "code.py").write_text("one = 1")
    local = replace(ODD, requirements=(str(source),))
    before = local.build_key
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "code.pyc").write_text("compiled")
    assert local.build_key == before
    (source / "code.py").write_text("one = 2")
    assert local.build_key != before
    assert replace(ODD, environment={}, default_max_episode_steps=3, superseded=("*",)).build_key == ODD.build_key


def test_a_provider_is_chosen_by_argument_then_variable_then_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_HOME", str(tmp_path))
    monkeypatch.delenv("LDM_PROVIDER", raising=False)
    here, apart = find_manifest("gymnasium"), find_manifest("procgen")
    assert providers.choose(here, "", None).name == "inprocess"
    monkeypatch.setattr(providers, "engine_problem", lambda: "there is none")
    assert providers.choose(apart, "", None).name == "venv"
    monkeypatch.setattr(providers, "engine_problem", lambda: None)
    monkeypatch.setattr(providers.DockerProvider, "is_built", lambda self: False)
    monkeypatch.setattr(providers.DockerProvider, "was_built", lambda self: False)
    assert providers.choose(apart, "", None).name == "docker"
    monkeypatch.setattr(providers.VenvProvider, "is_built", lambda self: True)
    assert providers.choose(apart, "", None).name == "venv"  # made already
    monkeypatch.setenv("LDM_PROVIDER", "docker")
    assert providers.choose(here, "", None).name == "docker" and providers.choose(here, "", "venv").name == "venv"
    monkeypatch.setenv("LDM_PROVIDER", "moon")
    with pytest.raises(ConfigError, match="inprocess, venv, docker, got 'moon'"):
        providers.choose(here, "", None)


def test_an_installation_of_another_definition_is_made_again_where_it_was(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LDM_HOME", str(tmp_path))
    monkeypatch.delenv("LDM_PROVIDER", raising=False)
    monkeypatch.setattr(providers, "engine_problem", lambda: None)
    for method in ("is_built", "was_built"):
        monkeypatch.setattr(providers.DockerProvider, method, lambda self: False)
    before = find_manifest("procgen")
    for slug in ("procgen", "other-procgen", "procgen-other"):
        folder = VenvProvider(replace(before, slug=slug)).folder
        folder.mkdir(parents=True)
        (folder / "installed.json").write_text('{"packages": []}')
    changed = replace(before, python="9.9")
    chosen = providers.choose(changed, "", None)
    assert chosen.name == "venv" and not chosen.is_built()
    with pytest.raises(EnvironmentFailure, match=r"there is no Python 9\.9 here"):
        chosen.build()
    assert caplog.messages == [
        "Installing procgen for Python 9.9 (again: what is here was made from another definition)"
    ]
    assert providers.choose(replace(changed, slug="other"), "", None).name == "docker"  # which none was ever made of
    monkeypatch.setattr(providers.DockerProvider, "was_built", lambda self: True)
    assert providers.choose(changed, "", None).name == "docker"  # both were made: no code leaves its container
    assert providers.choose(before, "", None).name == "venv"  # but the one that is up to date goes before it


def test_validation_reports_what_it_saw():
    report = validate(Here(ODD), EnvironmentReport("vector", "odd_environments:Counting"), timeout=60)
    assert report.failure is None and report.steps == 1000 and report.step_values == 5
    assert (report.vector_rewards, report.nonfinite_rewards, report.observations_outside_space) == (1000, 0, 0)
    assert (report.max_episode_steps, report.time_limit_is_default) == (7, True)
    assert report.deterministic and report.problems == () and report.render_modes == ("rgb_array",)
    outside = validate(Here(ODD), EnvironmentReport("outside"), timeout=60)
    # Of an episode's three observations 10, 20 and 30 all lie outside [-1, 1]; its reset's 0 does not.
    assert (outside.observations_outside_space, outside.nonfinite_rewards) == (1000, 1000)
    nested = validate(Here(ODD), EnvironmentReport("nested"), timeout=60)
    assert nested.failure is None and "space['map'] is a Graph space" in nested.problems[0]
    read = EnvironmentReport.from_json(json.loads(json.dumps(nested.to_json())))
    assert read == nested


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("three", "a step gave 3 values"),
        ("Hostile/exit-v0", "exited with status 7"),
        ("Hostile/hang_in_c-v0", "gave no answer within 2 s"),
        ("Missing-v0", "no registry knows"),
        ("not an id", "is not an environment id"),
    ],
)
def test_what_cannot_be_validated_is_listed_with_its_reason(name, reason):
    report = validate(Here(ODD), EnvironmentReport(name), timeout=2.0 if "2 s" in reason else 60)
    assert reason in report.failure and "\n" not in report.failure


def test_an_interrupted_validation_continues(tmp_path):
    provider = Here(ODD)
    found = [EnvironmentReport(name) for name in ("cost", "old", "three")]
    work_file = tmp_path / "odd.validation.jsonl"
    before = EnvironmentReport("old", failure="as it stands in the file")
    line = json.dumps({"manifest": provider.manifest.validation_key, **before.to_json()})
    limited = replace(provider.manifest, default_max_episode_steps=3)  # the same installation, used in another way
    assert limited.build_key == provider.manifest.build_key
    other = json.dumps({"manifest": limited.validation_key, **EnvironmentReport("cost", failure="no").to_json()})
    work_file.write_text(f'{line}\n{other}\n{{"half a li')
    reports = validate_all(provider, found, work_file=work_file, jobs=2, timeout=60)
    assert [report.name for report in reports] == ["cost", "old", "three"]
    assert reports[0].failure is None and reports[1] == before and "3 values" in reports[2].failure
    lines = work_file.read_text().split()
    assert validate_all(provider, found, work_file=work_file, jobs=2, timeout=60) == reports
    assert work_file.read_text().split() == lines  # there was nothing left to do


def test_a_library_s_environments_are_found_among_all_that_are_registered():
    registered = [
        {"id": name, "entry_point": entry_point, "registry": "gym", "reward_threshold": None, "nondeterministic": False}
        for name, entry_point in (
            ("Mine-v0", "odd_environments.sub:X"),
            ("Other-v0", "other:X"),
            ("Old-v0", "odd_environments:old"),
        )
    ]
    manifest = replace(ODD, entry_points=ODD.entry_points[:1], broken_entry_points=("odd_environments:old",))
    assert [one.name for one in environments_of(manifest, {"environments": registered})] == ["Mine-v0", "old"]


def test_reports_are_written_whole_and_a_user_s_own_win(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_HOME", str(tmp_path))
    folder = library_folders()[1]
    folder.mkdir()
    good = EnvironmentReport(
        "Own-v0", observation_space=space_to_json(SPACES[0]), action_space=space_to_json(SPACES[3]), max_episode_steps=5
    )
    environments = {"Own-v0": good, "Bad-v0": EnvironmentReport("Bad-v0", failure="it is broken")}
    report = Report("procgen", "9", "3.10", "venv", environments)
    report.write(folder / "procgen.json")
    own = replace(load_manifests()["procgen"], licence="ours")
    (folder / "procgen.toml").write_text(own.to_toml())
    assert load_report("procgen") == report and load_manifests()["procgen"] == own
    assert [spec.id for spec in ldm_hf.list_environments("procgen")] == ["procgen/Own-v0"]
    assert ldm_hf.spec("procgen/Own-v0").licence == "ours"
    with pytest.raises(UnknownEnvironmentError, match="could be validated: it is broken"):
        ldm_hf.make("procgen/Bad-v0")
    (folder / "procgen.json").write_text("{")
    with pytest.raises(ConfigError, match=r"procgen\.json is not a validation report"):
        load_report("procgen")


def test_installers_see_no_variable_of_the_user_s_but_what_finds_and_builds_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "UV_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    secrets = (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "PYTHONPATH",
        "UV_PUBLISH_TOKEN",
        "PIP_KEYRING",
        "XPATH",
    )
    needed = {"HTTPS_PROXY": "http://proxy:1", "no_proxy": "localhost", "PIP_INDEX_URL": "https://index", "CC": "gcc"}
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    for name, value in {**needed, "UV_DEFAULT_INDEX": "https://index", "LC_ALL": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").touch()
    variables = build_variables(tmp_path / "scratch")
    assert "secret" not in variables.values() and needed.items() <= variables.items()
    assert variables["UV_DEFAULT_INDEX"] == "https://index" and variables["LC_ALL"] == "C.UTF-8"
    assert variables["HOME"] == str(tmp_path / "scratch") and variables["UV_CACHE_DIR"] == str(tmp_path / ".cache/uv")
    assert variables["PIP_CONFIG_FILE"] == str(tmp_path / ".config/pip/pip.conf")
    assert "UV_CONFIG_FILE" not in variables  # there is none


def test_an_installation_does_not_obey_the_project_that_the_command_is_run_in(tmp_path, monkeypatch):
    """uv reads the pyproject.toml of the working directory, which may be this package's own."""
    (tmp_path / "pyproject.toml").write_text('[tool.uv]\nconstraint-dependencies = ["empty<1"]\n')
    source = tmp_path / "empty"
    source.mkdir()
    (source / "setup.py").write_text("from setuptools import setup\nsetup(name='empty', version='2')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_HOME", str(tmp_path / "home"))
    named = replace(
        ODD,
        slug="empty",
        python=".".join(map(str, sys.version_info[:2])),
        requirements=(str(source),),
        lock=(f"empty @ file://{source}",),
        build_requirements=("setuptools",),
    )
    provider = VenvProvider(named)
    provider.build()
    assert list(provider.folder.glob("lib/python*/site-packages/empty-2*"))


def test_a_lock_holds_packages_and_what_the_user_named(tmp_path):
    named = replace(ODD, requirements=(str(tmp_path), "gym"), lock=())
    source_of = VenvProvider(named).source_of
    frozen = [
        "# a comment",
        "numpy==2.1.0",
        "torch==2.6.0+cpu",
        "pip==25",
        f"mine @ file://{tmp_path}",
        "-e git+https://x",
    ]
    frozen.append("gym @ git+https://github.com/openai/gym@0123456")
    lock = lock_of(named, frozen, source_of)
    assert lock == ("numpy==2.1.0", "torch==2.6.0", f"mine @ file://{tmp_path}", frozen[-1])
    inside = DockerProvider(named)
    assert lock_of(named, [f"mine @ file:///build/sources/0/{tmp_path.name}"], inside.source_of) == lock[2:3]
    # What is installed says so itself: it could name any file, whose contents would be copied into the next image.
    for line in (
        "mine @ file:///etc",
        "mine @ file:///build/sources/1/x",
        "--index-url=https://evil",
        "a==1 --hash=x",
        "a",
    ):
        for provider in (VenvProvider(named), inside):
            with pytest.raises(EnvironmentFailure, match="odd installed what cannot be locked"):
                lock_of(named, [line], provider.source_of)


def test_an_installation_describes_its_packages():
    frozen, distributions = installed(Here(ODD))
    assert f"gymnasium=={gymnasium.__version__}" in frozen
    manifest = replace(ODD, requirements=("Gymnasium[mujoco]>=1",))
    found = find_distribution(manifest, (), distributions)
    assert (found.name, found.version, found.licence) == ("gymnasium", gymnasium.__version__, "MIT")
    assert found.modules == ("gymnasium",) and found.homepage.startswith("https://")
    with pytest.raises(ConfigError, match="installed no package 'odd'"):
        find_distribution(ODD, (), distributions)
    with pytest.raises(EnvironmentFailure, match="cannot be read"):
        find_distribution(ODD, (), [{"name": "odd", "version": "1", "headers": 3, "modules": []}])


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["venv", "docker"])
def test_an_installer_sees_no_secret_and_in_a_container_no_host(provider, tmp_path, monkeypatch):
    if provider == "docker" and engine_problem() is not None:
        pytest.skip(f"no containers here: {engine_problem()}")
    monkeypatch.setenv("LDM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MY_TOKEN", "a secret of the user")
    before = set(engine().images.list(name="ldm-hf/canary")) if provider == "docker" else set()
    source = canary.write(tmp_path / "ldm-canary", tmp_path / "marked")
    done = run_ldm_here(
        "env", "add", source, "gymnasium", "--slug", "canary", "--provider", provider, "--python", "3.11"
    )
    assert done.returncode == 0, done.stderr
    assert "1 environments validated, 0 failed" in done.stdout
    # A virtual environment keeps no privileges apart: its installer writes where the user may.
    assert (tmp_path / "marked" / "marker").exists() == (provider == "venv")
    env = ldm_hf.make("canary/Canary-v0", provider=provider)
    seen = env.get_wrapper_attr("seen")()
    env.close()
    assert "PATH" in seen and "a secret of the user" not in seen.values()
    assert seen["HOME"] != str(Path.home()) or provider == "docker"  # whose root has a home of the same name
    manifest = load_manifests()["canary"]
    assert f"ldm-canary @ file://{source}" in manifest.lock and manifest.modules == ("ldm_canary",)
    if provider == "docker":
        DockerProvider(manifest).remove()
        assert set(engine().images.list(name="ldm-hf/canary")) == before  # nor is that left which was resolved in


@pytest.mark.slow
def test_a_library_is_added_listed_checked_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_HOME", str(tmp_path))
    hostile = str(TESTS / "hostile")
    done = run_ldm("env", "add", hostile, "--slug", "hostile", "--only", "Hostile/[pr]*", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "hostile: 1 environments validated, 1 failed" in done.stdout
    assert "Hostile/raise_error-v0" in done.stdout and "no such luck" in done.stdout
    assert run_ldm("env", "list", "hostile").stdout.split() == ["hostile/Hostile/privileges-v0"]
    assert "as its report says" in run_ldm("env", "check", "hostile").stdout
    env = ldm_hf.make("hostile/Hostile/privileges-v0", provider="venv")
    env.reset(seed=0)
    assert (env.step(0)[0] == 1).all()
    env.close()
    with pytest.raises(EnvironmentFailure, match="not installed here"):
        ldm_hf.make("hostile/Hostile/privileges-v0", provider="inprocess")
    failed = run_ldm("env", "add", "no-such-package-anywhere", "--python", "3.11")
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith(
        "error: no-such-package-anywhere cannot"
    )
