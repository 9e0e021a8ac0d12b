"""What a corpus is built with: kept in its folder, so that it is built with the same from beginning to end."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.build.budgets import Budget, RaceBudget
from ldm_hf.dataset_builder.format.schema import SCHEMA_VERSION
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.errors import ConfigError
from ldm_hf.utils.files import replacing

_SETTINGS = "build.json"


@dataclass(frozen=True)
class BuildSettings:
    """What a corpus is built with; it does not change while the corpus grows.

    Attributes:
        pool: candidates by name.
        budget: how much is trained.
        seed: random seed for all runs.
        keep: as in ``RunRequest``.
        device: torch device that trains.
    """

    pool: Mapping[str, Candidate]
    budget: Budget | RaceBudget
    seed: int = 0
    keep: str = "fit"
    device: str = "cpu"

    def claim(self, root: Path) -> None:
        """Write the settings into a data folder.

        The time of races may grow from one build to the next: what was trained is given the rest.

        Raises:
            ConfigError: the folder holds a corpus of other settings, or one that was given more time.
        """
        values = {
            "pool": {name: asdict(candidate) for name, candidate in self.pool.items()},
            "budget": asdict(self.budget),
            "seed": self.seed,
            "keep": self.keep,
            "format": SCHEMA_VERSION,  # runs are compared by their curves, which versions define differently
        }
        path = root / _SETTINGS
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            wanted = json.loads(json.dumps(values))
            # What the version that began the corpus had no setting for is not compared.
            found["budget"] = {**wanted["budget"], **found.get("budget", {})}
            given = found["budget"].get("core_minutes", 0.0)
            if isinstance(self.budget, RaceBudget) and given != self.budget.core_minutes:
                if given > self.budget.core_minutes:
                    raise ConfigError(
                        f"{root} was built with {given:g} core minutes per environment, got {self.budget.core_minutes:g}; "
                        "give it as many or more, or choose another --output"
                    )
                found["budget"]["core_minutes"] = self.budget.core_minutes
                if found == wanted:
                    self._write(path, wanted)
            if found != wanted:
                differing = [name for name in wanted if found.get(name) != wanted[name]]
                raise ConfigError(
                    f"{root} holds a corpus built with another {', '.join(differing)}; choose another --output"
                )
            return
        self._write(path, values)

    @staticmethod
    def _write(path: Path, values: dict[str, Any]) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
