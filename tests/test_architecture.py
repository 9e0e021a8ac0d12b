"""The shape of the package: which way imports point, and what starts fast."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ldm_hf

ROOT = Path(ldm_hf.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# Each part may import itself and these; whatever stands at the top of the package is in `base` or imports all.
BASE = {"modeling", "errors", "dependencies", "files", "processes", "progress"}
ALLOWED = {
    "modeling": set(),
    "errors": {"modeling"},
    "dependencies": {"errors"},
    "files": {"errors"},
    "processes": {"errors"},
    "progress": set(),
    "env_registry": BASE,
    "dataset_builder": BASE | {"env_registry"},
    "training": BASE | {"env_registry", "dataset_builder", "evaluation.rollout", "evaluation.scores", "cli"},
    "evaluation": BASE
    | {"env_registry"}
    | {f"dataset_builder.{name}" for name in ("reader", "schema", "curves", "anchors", "flags")},
    "finetuning": BASE | {"env_registry", "dataset_builder", "evaluation", "training"},
}
EVERYTHING = {
    "__init__",
    "__main__",
    "_auto",
    "bank_commands",
    "cli",
    "data_commands",
    "env_commands",
    "evaluation_commands",
    "finetuning_commands",
    "quickstart",
}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside functions, without the package's name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
    part = path.relative_to(ROOT).with_suffix("").parts[0]
    if part in EVERYTHING:
        return
    for name in imported(path):
        if name.split(".")[0] == part or (not (ROOT / name.split(".")[0]).with_suffix("").exists() and "." not in name):
            continue
        # `cli` is where training's own entry point gets its command from, and is nobody else's.
        if name.startswith("cli"):
            assert path.name == "__main__.py"
            continue
        assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[part]), (
            f"{path.name}: {name}"
        )


def test_every_part_is_held():
    parts = {path.relative_to(ROOT).with_suffix("").parts[0] for path in MODULES}
    assert parts == set(ALLOWED) | EVERYTHING


def test_modeling_imports_nothing_of_the_package():
    """By its installed name, which a published checkpoint does not have."""
    for path in (ROOT / "modeling").glob("*.py"):
        assert not re.search(r"^\s*(from|import) ldm_hf", path.read_text(), re.MULTILINE), path


FAST = ["ldm_hf", "ldm_hf.cli", "ldm_hf.quickstart", "ldm_hf.env_registry.registry", "ldm_hf.evaluation.report"]
FAST += [
    f"ldm_hf.dataset_builder.{name}" for name in ("reader", "pipeline", "publish", "minari_reading", "minari_writing")
]


@pytest.mark.parametrize("module", FAST)
def test_what_starts_fast_imports_nothing_heavy(module):
    heavy = {"torch", "transformers", "stable_baselines3", "datasets", "scipy.stats", "matplotlib"}
    program = f"import {module}, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    for name in ldm_hf.__all__:
        assert getattr(ldm_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = ldm_hf.missing
