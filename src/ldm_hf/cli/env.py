"""The ``ldm env`` commands: environments, and the libraries that they come from."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.errors import EnvironmentFailure, UnsupportedSpaceError

environments = typer.Typer(
    help="Environments: list them, describe one, see whether a model takes it; add and install libraries.",
    no_args_is_help=True,
)

Environment = Annotated[str, typer.Argument(help="Id: <library>/<Gymnasium id>.")]
ProviderName = Annotated[str, typer.Option(help="venv or docker.")]
Jobs = Annotated[int, typer.Option(min=1, help="Environments that are validated at a time.")]
Seconds = Annotated[float, typer.Option(min=1, help="Seconds that the validation of one environment may take.")]
Memory = Annotated[float, typer.Option(min=0.1, help="GiB that the validation of one environment may take.")]


@environments.command("list")
def list_(
    library: Annotated[
        str | None, typer.Argument(help="Slug of a library. Default: the libraries, a line each.")
    ] = None,
    all_versions: Annotated[bool, typer.Option(help="Older versions too.")] = False,
) -> None:
    """List the environments of a library, one id a line, or the libraries."""
    from ldm_hf.env_registry.registry import list_environments, list_libraries

    if library is not None:
        for spec in list_environments(library, all_versions=all_versions):
            typer.echo(spec.id)
        return
    for record in list_libraries():
        here = "importable here" if record.importable else f"Python {record.python}"
        typer.echo(f"{record.slug:36} {record.num_environments:5}  {here:16} {record.licence}")


@environments.command()
def info(environment: Environment) -> None:
    """Describe an environment: spaces, time limit, version, licence."""
    from ldm_hf.env_registry.registry import spec

    for name, value in vars(spec(environment)).items():
        typer.echo(f"{name}: {value}")


@environments.command()
def doctor(
    environment: Environment,
    model: Annotated[
        Path | None, typer.Option(help="Model folder, for its limits. Default: the paper's limits.")
    ] = None,
) -> None:
    """Say whether an environment fits a model and, if not, what is in the way; exit status 1 if it does not fit."""
    from ldm_hf.env_registry.doctor import diagnose

    limits = {} if model is None else _limits(model)
    fit = diagnose(environment, **limits)
    if not fit.fits:
        raise UnsupportedSpaceError(f"{environment} does not fit: {'; '.join(fit.problems)}")
    image = f", an image of shape {fit.image_shape}" if fit.image_shape else ""
    typer.echo(f"{environment} fits: {fit.observation_slots} observation slots{image}, {fit.action_slots} action slots")


@environments.command()
def add(
    requirements: Annotated[
        list[str] | None,
        typer.Argument(
            help="What pip installs: a requirement, a repository with @branch or @tag, or a folder; or your own code: "
            "FILE.py:Class, module:Class."
        ),
    ] = None,
    slug: Annotated[str | None, typer.Option(help="First part of the ids. Default: the package's name.")] = None,
    python: Annotated[
        str | None, typer.Option(help="Version, such as 3.8. Default: the first that installs it.")
    ] = None,
    module: Annotated[list[str] | None, typer.Option(help="Imported to register; default: the package's own.")] = None,
    register: Annotated[list[str] | None, typer.Option(help="module:function, called after the imports.")] = None,
    package: Annotated[list[str] | None, typer.Option(help="Whose entry points are the library's.")] = None,
    entry_point: Annotated[
        list[str] | None, typer.Option(help="name=module:class of an environment that nothing registers.")
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(help="Constructor arguments of all its environments, as JSON: '{\"n\": 4}'.")
    ] = None,
    environment: Annotated[list[str] | None, typer.Option(help="NAME=value, a variable of the worker.")] = None,
    system_package: Annotated[list[str] | None, typer.Option(help="Debian package that the library needs.")] = None,
    build_requirement: Annotated[list[str] | None, typer.Option(help="Installed before the others.")] = None,
    from_file: Annotated[
        Path | None, typer.Option(help="TOML file with any keys of a manifest; options go over it.")
    ] = None,
    from_manifest: Annotated[str | None, typer.Option(help="Slug: validate a library again, as it is locked.")] = None,
    provider: ProviderName = "venv",
    jobs: Jobs = 4,
    timeout: Seconds = 180.0,
    memory: Memory = 4.0,
    only: Annotated[str, typer.Option(help="Glob: validate these ids only.")] = "*",
    output: Annotated[Path | None, typer.Option(help="Folder. Default: the user's libraries folder.")] = None,
) -> None:
    """Add a library: install it by itself, find its environments, validate each, write its manifest and report.

    Interrupted, the same command continues where it was. An environment that fails is listed with its reason. Where a
    tenth do, what mends it is tried if the reason says it; exit status 1 if none could be validated.
    """
    from ldm_hf.env_registry.library.add import AddRequest, add_library
    from ldm_hf.env_registry.library.manifest import library_folders

    keys: dict[str, Any] = {
        "slug": slug,
        "requirements": requirements,
        "modules": module,
        "register": register,
        "packages": package,
        "entry_points": [dict(zip(("name", "entry_point"), _pair(text), strict=True)) for text in entry_point or []],
        "arguments": [] if kwargs is None else [{"pattern": "*", "kwargs": _json_object(kwargs)}],
        "environment": dict(_pair(text) for text in environment or []),
        "system_packages": system_package,
        "build_requirements": build_requirement,
    }
    request = AddRequest(
        keys={key: value for key, value in keys.items() if value},
        python=python,
        file=from_file,
        manifest=from_manifest,
        provider=provider,
        jobs=jobs,
        timeout=timeout,
        memory=int(memory * 2**30),
        only=only,
        output=output or library_folders()[-1],
    )
    for line in add_library(request):
        typer.echo(line)


@environments.command()
def install(
    library: Annotated[str, typer.Argument(help="Slug of a library, or id of an environment.")],
    provider: ProviderName = "venv",
) -> None:
    """Install a library in a virtual environment or container of its own, unless it is there."""
    from ldm_hf.env_registry.providers.selection import isolated
    from ldm_hf.env_registry.registry import find_manifest

    chosen = isolated(find_manifest(library.partition("/")[0]), provider)
    chosen.build()
    typer.echo(" ".join(f"{key}: {value}" for key, value in chosen.provenance().items()))


@environments.command()
def check(
    target: Annotated[str, typer.Argument(help="Slug of a library, or id of an environment.")],
    provider: ProviderName = "venv",
    jobs: Jobs = 4,
    timeout: Seconds = 180.0,
) -> None:
    """Validate again and compare with the report; exit status 1 if something is different."""
    from ldm_hf.env_registry.library.add import check_library

    differences = check_library(target, provider, jobs=jobs, timeout=timeout)
    for line in differences:
        typer.echo(line)
    if differences:
        raise EnvironmentFailure(f"{len(differences)} of the checked environments are not as their report says")
    typer.echo(f"{target} is as its report says")


@environments.command()
def catalogue(output: Annotated[Path, typer.Argument(help="Markdown file to write.")]) -> None:
    """Write the page of all libraries: counts, kinds, licences, status, and what failed why."""
    from ldm_hf.env_registry.library.catalogue import catalogue_page

    output.write_text(catalogue_page(), encoding="utf-8")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} should be NAME=VALUE")
    return name, value


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--kwargs is invalid JSON: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f'--kwargs should be an object such as {{"n": 4}}, got {text!r}')
    return values


def _limits(model: Path) -> dict[str, int]:
    from ldm_hf.hub.pretrained import load_config

    config = load_config(model)
    return {name: config[name] for name in ("max_observation_slots", "max_action_slots", "num_bins", "image_size")}
