"""Where an environment runs: imported here, in a virtual environment of its library's own, or in a container."""

import os

from ldm_hf.env_registry.library.manifest import Manifest
from ldm_hf.env_registry.providers.base import IsolatedProvider
from ldm_hf.env_registry.providers.docker import DockerProvider, engine_problem
from ldm_hf.env_registry.providers.inprocess import InProcessProvider
from ldm_hf.env_registry.providers.venv import VenvProvider
from ldm_hf.errors import ConfigError

ISOLATED: dict[str, type[IsolatedProvider]] = {"venv": VenvProvider, "docker": DockerProvider}
PROVIDERS = ("inprocess", *ISOLATED)

Provider = InProcessProvider | IsolatedProvider


def choose(manifest: Manifest, entry_point: str, asked: str | None, *, isolated_only: bool = False) -> Provider:
    """The provider of a library: the one asked for, that of ``LDM_PROVIDER``, or the first that can be used.

    By itself it takes, in this order: this process, where all that the environment needs can be imported; an installation
    that is already made; one that was made from another definition of the library, and must be made again; any. Each time
    a container, where an engine answers, goes before a virtual environment.

    Args:
        manifest: of the library.
        entry_point: of the environment, because some need packages beside their library.
        asked: ``"inprocess"``, ``"venv"``, ``"docker"`` or None.
        isolated_only: whether code that must not run in this process runs beside the environment.

    Raises:
        ConfigError: there is no such provider, or it is this process and must not be.
    """
    asked = asked or os.environ.get("LDM_PROVIDER") or None
    if asked is not None and asked not in PROVIDERS:
        raise ConfigError(f"provider must be one of {', '.join(PROVIDERS)}, got {asked!r}")
    if asked == "inprocess" and isolated_only:
        raise ConfigError("experts run in isolation: provider, or LDM_PROVIDER, must be venv or docker, not inprocess")
    here = asked is None and not isolated_only and manifest.install_command(entry_point) is None
    if asked == "inprocess" or here:
        return InProcessProvider(manifest)
    if asked is not None:
        return isolated(manifest, asked)
    usable: list[IsolatedProvider] = [VenvProvider(manifest)]
    if engine_problem() is None:
        usable.insert(0, DockerProvider(manifest))
    built = [provider for provider in usable if provider.is_built()]
    return (built or [provider for provider in usable if provider.was_built()] or usable)[0]


def isolated(manifest: Manifest, name: str) -> IsolatedProvider:
    """An isolated provider by its name; ``ConfigError`` if there is none of that name."""
    if name not in ISOLATED:
        raise ConfigError(f"provider must be one of {', '.join(ISOLATED)}, got {name!r}")
    return ISOLATED[name](manifest)
