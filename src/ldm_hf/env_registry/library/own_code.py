"""One's own code as a library: a file, a class that can be imported, or a folder without packaging.

It is copied into a project that pip can install, beside the manifest, in a folder named after what is in it: changed code is
added by the same command again.
"""

import ast
import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from ldm_hf.env_registry.library.distribution import normal_name
from ldm_hf.env_registry.library.repair import PACKAGES
from ldm_hf.errors import ConfigError
from ldm_hf.utils.files import replacing

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The version of Python that one's own code is known to run with: this one."""

_PACKAGING = ("pyproject.toml", "setup.py", "setup.cfg")
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "build", "dist", "*.egg-info", "venv", "node_modules")


def name_of(target: str) -> str | None:
    """The name of the library that one's own code becomes; None of anything else, such as a requirement.

    Args:
        target: as of ``own_code``.
    """
    if "://" in target or "@" in target:
        return None
    source, colon, name = target.rpartition(":")
    source = source if colon else target
    if source.endswith(".py"):
        return Path(source).stem
    if Path(target).is_dir():
        folder = Path(target).resolve()
        return None if any((folder / one).is_file() for one in _PACKAGING) else folder.name
    if colon and name.isidentifier() and all(part.isidentifier() for part in source.split(".")):
        return source.partition(".")[0]
    return None


def own_code(target: str, output: Path) -> dict[str, Any] | None:
    """Keys of the manifest of one's own code, whose project is made under ``output``; None of anything else.

    Args:
        target: ``FILE.py``, ``FILE.py:Class``, ``package.module:Class`` that can be imported here, or a folder without
            packaging.
        output: where manifests are written to.

    Raises:
        ConfigError: there is no such file, module or class, or it has no environment.
    """
    library = name_of(target)
    if library is None:
        return None
    if Path(target).is_dir():
        parts = _parts(Path(target).resolve())
        return _keys(library, parts, [], output) | {"modules": [part.stem for part in parts]}
    source, colon, name = target.rpartition(":")
    source, name = (source, name) if colon else (target, "")
    if not source.endswith(".py"):
        return _importable(source, name, output)
    path = Path(source).resolve()
    if not path.is_file():
        raise ConfigError(f"no such file: {source}")
    return _keys(library, [path], _classes(path, path.stem, name), output)


def _importable(module: str, name: str, output: Path) -> dict[str, Any]:
    """Keys of a class by its module: of the installed package that it is of, or of the code that lies here."""
    top = module.partition(".")[0]
    entry_point = {"name": f"{name}-v0", "entry_point": f"{module}:{name}"}
    owners = metadata.packages_distributions().get(top, [])
    found = _origin(top)
    if owners and (found is None or "site-packages" in found.parts):
        requirement = f"{owners[0]}=={metadata.version(owners[0])}"
        return {
            "slug": normal_name(top),
            "requirements": [requirement],
            "python": PYTHON,
            "entry_points": [entry_point],
        }
    if found is None:
        raise ConfigError(f"no module is called {top!r}, here or among what is installed")
    return _keys(top, [found], [entry_point], output)


def _origin(top: str) -> Path | None:
    """The file or folder of a module, in the folder that this is started in too."""
    here = Path(top).resolve()
    if here.is_dir() or here.with_suffix(".py").is_file():
        return here if here.is_dir() else here.with_suffix(".py")
    found = importlib.util.find_spec(top)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin)
    return path.parent if path.name == "__init__.py" else path


def _parts(folder: Path) -> list[Path]:
    """The packages and modules of a folder, itself if it is a package."""
    if (folder / "__init__.py").is_file():
        return [folder]
    packages = [
        path.parent for path in sorted(folder.glob("*/__init__.py")) if path.parent.name not in ("tests", "test")
    ]
    modules = [path for path in sorted(folder.glob("*.py")) if path.stem.isidentifier()]
    if not packages and not modules:
        raise ConfigError(f"{folder} has no Python module: name a folder with code, a file or a requirement")
    return [*packages, *modules]


def _classes(path: Path, module: str, name: str) -> list[dict[str, Any]]:
    """Entry points of the class that is named, or of all in a file that derive from some ``Env``."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{path} is not a module of Python: {' '.join(str(error).split())}") from error
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if name and name not in defined:
        known = ", ".join(defined) or "nothing"
        raise ConfigError(f"{path} defines no {name!r}; it has {known}")
    if name:
        chosen = [name]
    else:
        chosen = [key for key, node in defined.items() if isinstance(node, ast.ClassDef) and _is_environment(node)]
        if not chosen and not any("register(" in ast.unparse(node) for node in tree.body):
            raise ConfigError(f"{path} has no class that derives from gymnasium.Env: name one, {path.name}:Class")
    return [{"name": f"{one}-v0", "entry_point": f"{module}:{one}"} for one in chosen]


def _is_environment(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2].endswith("Env") for base in node.bases)


def _keys(name: str, parts: list[Path], entry_points: list[dict[str, Any]], output: Path) -> dict[str, Any]:
    """Make the project of some files and packages, and give the keys of its manifest."""
    slug = normal_name(name)
    files = [file for part in parts for file in _files(part)]
    requirements = _requirements([file for file in files if file.suffix == ".py"], {part.stem for part in parts})
    digest = hashlib.sha256("\n".join(requirements).encode())
    places = {file: file.relative_to(part.parent) for part in parts for file in files if file.is_relative_to(part)}
    for file, place in places.items():
        digest.update(f"{place}\0".encode() + file.read_bytes())
    project = output.resolve() / "projects" / f"{slug}-{digest.hexdigest()[:8]}"
    if not project.is_dir():
        with replacing(project) as temporary:
            for file, place in places.items():
                (temporary / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, temporary / place)
            (temporary / "pyproject.toml").write_text(_pyproject(slug, parts, requirements), encoding="utf-8")
    return {"slug": slug, "requirements": [str(project)], "python": PYTHON, "entry_points": entry_points}


def _files(part: Path) -> Iterator[Path]:
    """The files of a package, or a module itself; without what tools and Python leave beside code."""
    if part.is_file():
        yield part
        return
    names = sorted(path.name for path in part.iterdir())
    for name in sorted({*names} - set(_LEFT_OUT(str(part), names))):
        yield from _files(part / name)


def _pyproject(slug: str, parts: list[Path], requirements: list[str]) -> str:
    modules = [part.stem for part in parts if part.is_file()]
    packages = [part.name for part in parts if part.is_dir()]
    project = {
        "build-system": {"requires": ["setuptools>=61"], "build-backend": "setuptools.build_meta"},
        "project": {"name": slug, "version": "0", "dependencies": requirements},
        "tool": {
            "setuptools": {
                "py-modules": modules,
                "packages": {"find": {"include": [one for name in packages for one in (name, f"{name}.*")]}},
                "include-package-data": True,
                "package-data": {"*": ["*"]},
            }
        },
    }
    return tomli_w.dumps(project)


def _requirements(files: list[Path], own: set[str]) -> list[str]:
    """What files import, of the versions that are installed here; a package that is not, only if its name is well known."""
    distributions = metadata.packages_distributions()
    found = set()
    for module in {module for file in files for module in _imported(file)} - own - sys.stdlib_module_names:
        if module in distributions:
            owner = distributions[module][0]
            found.add(f"{owner}=={metadata.version(owner).partition('+')[0]}")
        elif module in PACKAGES:
            found.add(PACKAGES[module])
    return sorted(found)


def _imported(file: Path) -> Iterator[str]:
    """Top-level modules that a file imports, wherever in it."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
