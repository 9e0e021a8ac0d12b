"""The shape of the package: which way imports point, and what starts fast."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ldm_hf

ROOT = Path(ldm_hf.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# Each room may import itself, the rooms and modules named here and what lies in these. A room that is not named belongs
# to the one around it; what stands at the top of the package is in `BASE` or imports all.
BASE = {"modeling", "errors", "utils", "hub"}
ENVIRONMENTS = BASE | {"env_registry"}
DATA = "dataset_builder"
ALLOWED = {
    "modeling": set(),
    "errors": {"modeling"},
    "utils": {"errors"},
    "hub": {"errors", "modeling"},
    "executors": BASE,
    "env_registry": BASE,
    "env_registry.worker": set(),
    "env_registry.providers": BASE | {f"env_registry.{name}" for name in ("worker", "library.manifest", "spec")},
    "env_registry.remote": BASE | {f"env_registry.{name}" for name in ("worker", "providers", "spec", "experts")},
    "env_registry.library": ENVIRONMENTS,
    f"{DATA}.curves": BASE,
    f"{DATA}.anchors": ENVIRONMENTS | {f"{DATA}.curves"},
    f"{DATA}.format": ENVIRONMENTS | {f"{DATA}.curves", f"{DATA}.anchors"},
    f"{DATA}.repository": ENVIRONMENTS | {f"{DATA}.{name}" for name in ("curves", "anchors", "format")},
    f"{DATA}.reference": ENVIRONMENTS | {f"{DATA}.{name}" for name in ("curves", "anchors", "format")},
    f"{DATA}.bank": ENVIRONMENTS
    | {"executors"}
    | {f"{DATA}.{name}" for name in ("curves", "anchors", "format", "repository", "reference")},
    f"{DATA}.build": ENVIRONMENTS
    | {"executors"}
    | {f"{DATA}.{name}" for name in ("curves", "anchors", "format", "repository", "reference")},
    "evaluation": ENVIRONMENTS | {f"{DATA}.{name}" for name in ("curves", "anchors", "format")},
    "export": ENVIRONMENTS | {f"{DATA}.{name}" for name in ("bank", "format", "reference")},
    "demo": ENVIRONMENTS | {"evaluation", f"{DATA}.bank", f"{DATA}.reference"},
    "serving": BASE | {"env_registry.worker"},
    "gallery": ENVIRONMENTS | {"evaluation", "export.vendor", f"{DATA}.format"},
    "training": ENVIRONMENTS | {"executors", f"{DATA}.format", "evaluation.rollout", "evaluation.scores"},
    "finetuning": ENVIRONMENTS | {DATA, "evaluation", "training"},
}
EVERYTHING = {"__init__", "__main__", "_auto", "cli", "experiments", "policy_search", "quickstart"}


def room(module: str) -> str:
    """The innermost room of those named in `ALLOWED` that a module lies in, or itself; "" where it may import all."""
    parts = module.split(".")
    found = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
    return next((name for name in found if name in ALLOWED), "")


def imported(path: Path, types: bool = True) -> set[str]:
    """The modules of the package that a file imports, at its top or inside functions, without the package's name.

    ``types``: those too that are imported for annotations only.
    """
    tree, names = ast.parse(path.read_text()), set()
    if not types:
        tree.body = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node).partition("\n")[0]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts[: -node.level])
            names |= {f"{package}.{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("ldm_hf.") for name in names if name.startswith("ldm_hf.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = room(module)
    if not own:
        assert module.split(".")[0] in EVERYTHING or path.name == "__init__.py", f"no room is named for {module}"
        return
    for name in imported(path):
        if not (ROOT / name.split(".")[0]).is_dir() and not (ROOT / f"{name.split('.')[0]}.py").exists():
            continue  # a name of the package itself: ldm_hf.__version__
        inside = name == own or name.startswith(f"{own}.")
        assert inside or any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[own]), (
            f"{module} imports {name}"
        )


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count, which would start; what is imported for annotations only does not."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    arrows = {
        name: {own for own in map(module_of, imported(path, types=False)) if own in paths}
        for name, path in paths.items()
    }
    assert arrows["cli.main"] >= {"cli.build", "cli.data"}
    tuple(TopologicalSorter(arrows).static_order())  # raises CycleError, which names a circle


def module_of(name: str) -> str:
    """The module that an imported name is, or is in."""
    return name if (ROOT / f"{name.replace('.', '/')}.py").is_file() else name.rpartition(".")[0]


def test_modeling_imports_nothing_of_the_package():
    """By its installed name, which a published checkpoint does not have."""
    for path in (ROOT / "modeling").glob("*.py"):
        assert not re.search(r"^\s*(from|import) ldm_hf", path.read_text(), re.MULTILINE), path


FAST = [
    "ldm_hf",
    "ldm_hf.cli.main",
    "ldm_hf.hub.publishing",
    "ldm_hf.quickstart",
    "ldm_hf.env_registry.registry",
    "ldm_hf.evaluation.report",
    "ldm_hf.serving.client",
]
FAST += ["ldm_hf.dataset_builder.format.reader", "ldm_hf.dataset_builder.build.pipeline"]
FAST += [f"ldm_hf.dataset_builder.repository.{name}" for name in ("publish", "minari_reading", "minari_writing")]


@pytest.mark.parametrize("module", FAST)
def test_what_starts_fast_imports_nothing_heavy(module):
    heavy = {"torch", "transformers", "stable_baselines3", "datasets", "scipy.stats", "matplotlib"}
    program = f"import {module}, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    for name in ldm_hf.__all__:
        assert getattr(ldm_hf, name).__name__ == name
        assert not (ROOT / name).is_dir() and not (ROOT / f"{name}.py").exists()  # which would take the name's place
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = ldm_hf.missing


def test_the_drawing_is_of_this_code():
    sys.path.insert(0, str(ROOT.parents[1] / "scripts"))
    import draw_design

    assert draw_design.OUTPUT.read_text() == draw_design.svg(), "run scripts/draw_design.py"
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(draw_design.PARTS)
