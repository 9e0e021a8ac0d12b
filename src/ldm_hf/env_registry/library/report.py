"""Validation reports: what was seen of each environment of a library when it was added; ``libraries/<slug>.json``."""

import functools
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ldm_hf.env_registry.library.manifest import library_folders
from ldm_hf.errors import ConfigError, UnknownEnvironmentError
from ldm_hf.utils.files import replacing


@dataclass(frozen=True)
class EnvironmentReport:
    """One environment.

    Attributes:
        name: its id without the library.
        entry_point: what the library makes it from, as ``module:name``.
        registry: where it is registered: ``"gymnasium"``, ``"gym"``, or empty for an entry point of the manifest.
        failure: why it could not be validated; None if it was.
        observation_space, action_space: as JSON.
        max_episode_steps: steps after which ``make`` truncates an episode.
        time_limit_is_default: the library registers no limit, so this one is the manifest's.
        reward_threshold: the return at which the library calls it solved.
        nondeterministic: the library says that a seed does not fix it.
        deterministic: whether the same seed and actions gave the same observations and rewards twice.
        steps: random steps taken.
        steps_per_second: of random steps with resets, one environment, one core.
        observations_outside_space: how many of the observations lay outside the declared space.
        nonfinite_observations: how many held a value that is not a finite number.
        nonfinite_rewards, vector_rewards: how many rewards were not finite, or had several values.
        step_values: how many values a step of the library gives: 4, 5 or 6.
        problems: why it does not fit a model, one line a space; empty if it fits.
        render_modes: what ``render_mode`` can be.
        kwargs: constructor arguments that the library registers.
    """

    name: str
    entry_point: str = ""
    registry: str = ""
    failure: str | None = None
    observation_space: dict[str, Any] = field(default_factory=dict)
    action_space: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int = 0
    time_limit_is_default: bool = False
    reward_threshold: float | None = None
    nondeterministic: bool = False
    deterministic: bool = True
    steps: int = 0
    steps_per_second: float = 0.0
    observations_outside_space: int = 0
    nonfinite_observations: int = 0
    nonfinite_rewards: int = 0
    vector_rewards: int = 0
    step_values: int = 5
    problems: tuple[str, ...] = ()
    render_modes: tuple[str, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "EnvironmentReport":
        """Read what ``to_json`` wrote."""
        report = cls(**data)
        return replace(report, problems=tuple(report.problems), render_modes=tuple(report.render_modes))

    def to_json(self) -> dict[str, Any]:
        """The report without what has its default value."""
        plain = EnvironmentReport(self.name)
        return {key: value for key, value in asdict(self).items() if key == "name" or value != getattr(plain, key)}


@dataclass(frozen=True)
class Report:
    """A library.

    Attributes:
        slug: of the library.
        version: of the library that was validated.
        python: version of Python that it ran on.
        provider: "venv" or "docker".
        environments: reports by name, sorted.
    """

    slug: str
    version: str
    python: str
    provider: str
    environments: dict[str, EnvironmentReport]

    @property
    def validated(self) -> list[EnvironmentReport]:
        """The environments that can be used."""
        return [report for report in self.environments.values() if report.failure is None]

    def write(self, path: Path) -> None:
        """Write the report, one environment a line."""
        head = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "environments"}
        lines = [
            json.dumps(self.environments[name].to_json(), separators=(",", ":")) for name in sorted(self.environments)
        ]
        text = json.dumps(head)[:-1] + ', "environments": [\n' + ",\n".join(lines) + "\n]}\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def load_report(slug: str) -> Report:
    """The report of a library; the user's own wins over the one that the package ships.

    Raises:
        UnknownEnvironmentError: the library has none.
        ConfigError: the file is damaged.
    """
    for folder in reversed(library_folders()):
        path = folder / f"{slug}.json"
        if path.exists():
            return read_report(path)
    raise UnknownEnvironmentError(f"the library {slug!r} was never validated; try: ldm env add --from-manifest {slug}")


def read_report(path: Path) -> Report:
    """Read one report; ``ConfigError`` if the file is damaged."""
    return _read(path, path.stat().st_mtime_ns)


@functools.cache
def _read(path: Path, modified: int) -> Report:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        environments = [EnvironmentReport.from_json(one) for one in data.pop("environments")]
        return Report(**data, environments={report.name: report for report in environments})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path.name} is not a validation report: {error}") from error
