"""What is installed: the core for acting, extras for what some commands need, the lock for a checkout."""

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ldm_hf.errors import MissingDependencyError
from ldm_hf.utils import dependencies

REPOSITORY = Path(__file__).parent.parent
CONFIG = ConfigParser(interpolation=None)
CONFIG.read(REPOSITORY / "setup.cfg")
CORE = [Requirement(line) for line in CONFIG["options"]["install_requires"].split("\n") if line]
EXTRAS = {
    extra: [Requirement(line) for line in text.split("\n") if line]
    for extra, text in CONFIG["options.extras_require"].items()
}
LOCK = [
    Requirement(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]
PYTHONS = ("3.10.0", "3.11.0", "3.12.0", "3.13.0")


def locked(python: str) -> dict[str, Requirement]:
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    return {
        canonicalize_name(each.name): each for each in LOCK if each.marker is None or each.marker.evaluate(environment)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_what_setup_cfg_asks_for(python):
    """`make lock` was run after the last change of setup.cfg."""
    lock = locked(python)
    for requirement in itertools.chain(CORE, *EXTRAS.values()):
        environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
        if requirement.name == "ldm_hf" or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        (pin,) = lock[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), f"{requirement}: {pin}; make lock"


@pytest.mark.skipif(Path(sys.prefix) != REPOSITORY / ".venv", reason="the Makefile's environment is the locked one")
def test_what_the_makefile_installed_is_the_lock():
    lock = locked(".".join(map(str, sys.version_info[:3])))
    # Not all of sys.path: ray puts a folder with its own copies of packages on it.
    installed = list(importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]))
    assert len(installed) > 100
    for distribution in installed:
        name = canonicalize_name(distribution.name)
        if name not in ("pip", "ldm-hf"):
            assert name in lock, f"{name} is installed and not locked"
            assert lock[name].specifier.contains(distribution.version), f"{name} {distribution.version}: {lock[name]}"


def test_a_model_acts_with_the_core_alone():
    """A process in which what only extras bring cannot be imported lists, describes, makes and acts."""
    core = {canonicalize_name(each.name) for each in CORE}
    added = {canonicalize_name(each.name) for extra in EXTRAS.values() for each in extra} - core - {"ldm-hf"}
    modules = {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if added & set(map(canonicalize_name, names)) and module not in ("tests", "jinja2", "google")
    }
    assert {"pyarrow", "scipy", "accelerate", "datasets", "stable_baselines3", "matplotlib", "pebble"} <= modules
    program = f"""
import sys
sys.modules |= dict.fromkeys({sorted(modules)!r})
sys.argv = ["ldm", "rollout", {str(REPOSITORY / "pretrained/ldm-mini")!r}, "gymnasium/CliffWalking-v1", "--episodes", "1"]
import ldm_hf
from ldm_hf.cli.main import main
assert ldm_hf.list_environments("gymnasium") and ldm_hf.spec("gymnasium/CartPole-v1").max_episode_steps == 500
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"mean return -\d+", done.stdout)


def test_the_core_is_what_modules_import_at_their_top():
    """Modules of the parts that act import nothing else when they are imported."""
    distributions = importlib.metadata.packages_distributions()
    core = {canonicalize_name(each.name) for each in CORE}
    root = REPOSITORY / "src/ldm_hf"
    acting = [
        *root.glob("*.py"),
        *root.glob("cli/*.py"),
        *root.glob("modeling/*.py"),
        *root.glob("env_registry/**/*.py"),
    ]
    for path in set(acting) - set(root.glob("env_registry/worker/*.py")):  # those have an installation of their own
        for node in ast.parse(path.read_text()).body:
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            for module in (name.partition(".")[0] for name in named):
                if module not in sys.stdlib_module_names and module != "ldm_hf":
                    found = {canonicalize_name(name) for name in distributions.get(module, [])}
                    assert found & core, f"{path.name} imports {module}, which the core does not bring"


def test_a_missing_extra_is_one_line_that_installs_it(monkeypatch):
    version = importlib.metadata.version
    old = {"scipy": "1.0", "peft": None}

    def installed(name):
        if old.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return old.get(name) or version(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(MissingDependencyError, match=r"`ldm x` needs .* pip install 'scipy>=1\.15' 'peft<1,>=0\.18'$"):
        dependencies.require("`ldm x`", "evaluate", "lora")
    dependencies.require("publishing", "data")
