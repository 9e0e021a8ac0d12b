"""What slices of runs that race leave: where it lies, and what it showed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError

RACES_FOLDER = "_races"
RESULT = "result.json"
DEGENERATE = "degenerate: "
"""How the reason begins why a run is not fit that has flags."""

RECORDING, POLICY, STATE, EPISODES = "recording", "policy", "state.pt", "episodes.npz"


def race_folder(root: Path, environment: str) -> Path:
    """Where an environment's race lies under a data folder."""
    parsed = EnvironmentId.parse(environment)
    return root / RACES_FOLDER / parsed.library / parsed.config_name


def slice_folder(root: Path, request: RunRequest, number: int) -> Path:
    """Where a slice of a run lies."""
    return race_folder(root, request.environment) / request.name / f"slice-{number}"


@dataclass(frozen=True)
class SliceResult:
    """What a slice showed.

    Attributes:
        failure: why it could not be made; None if it was.
        transitions: that the slice trained for.
        total: that the run has trained for, up to its end.
        training: returns of the last third of its training episodes, by their start; None if none ended.
        deterministic: returns of the policy that it left, acting deterministically.
        confirmed: further such returns, on other seeds, where those before came near to known good.
        planned: transitions of the whole run by which its schedules moved.
        rate: transitions a second of a core, of the second half of its training; 0 where nothing was learned in it.
        overhead: seconds of a core that it took beside training: for the ends of episodes, and for scoring.
        estimate: seconds of a core that it was meant to take.
        seconds: of a core, that it took; machines and what else they do differ, so that results differ in this and in what
            follows from it, the lengths of later slices.
    """

    failure: str | None = None
    transitions: int = 0
    total: int = 0
    training: Sample | None = None
    deterministic: tuple[float, ...] = ()
    confirmed: tuple[float, ...] = ()
    planned: int = 0
    rate: float = 0.0
    overhead: float = 0.0
    estimate: float = 0.0
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Write the result into its slice's folder."""
        (folder / RESULT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "SliceResult":
        """Read the result of a slice; ``DatasetFormatError`` if it is damaged."""
        try:
            values: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            training = None if values["training"] is None else Sample(**values["training"])
            lists = {name: tuple(values[name]) for name in ("deterministic", "confirmed")}
            return cls(**{**values, **lists, "training": training})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetFormatError(f"{folder} holds no result of a slice: {error}") from error


def read_kept(path: Path) -> dict[str, Any]:
    """What ``KeepJob.finish`` wrote."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: values[name] for name in ("dropped", "deterministic", "best")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetFormatError(f"{path} does not say what became of a run: {error}") from error
