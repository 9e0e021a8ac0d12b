"""What a corpus is built with: kept in its folder, so that it is built with the same from beginning to end."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm_hf.dataset_builder.budgets import Budget, RaceBudget
from ldm_hf.dataset_builder.candidates import Candidate
from ldm_hf.dataset_builder.schema import SCHEMA_VERSION
from ldm_hf.errors import ConfigError
from ldm_hf.files import replacing

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
        """Write the settings into a data folder; ``ConfigError`` if it holds a corpus of others."""
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
            if found != wanted:
                differing = [name for name in wanted if found.get(name) != wanted[name]]
                raise ConfigError(
                    f"{root} holds a corpus built with another {', '.join(differing)}; choose another --out"
                )
            return
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
