"""What a run is, apart from what makes it: who plans and hands out runs does without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldm_hf.dataset_builder.format.schema import environment_folder
from ldm_hf.dataset_builder.reference.candidates import Candidate

Progress = Callable[[str, int, int], None]
"""Called with the stage (``training``, ``scoring``, ``writing``), how much of it is done, and how much there is."""


@dataclass(frozen=True)
class RunRequest:
    """What a run is.

    Attributes:
        environment: id of the environment.
        candidate: what to train.
        timesteps: transitions to train for and to record.
        seed: of the run.
        keep: which runs have their data kept: those that are ``fit``, those that ``improved`` even if their deterministic
            policy falls short of their training, or ``all``.
        device: torch device that trains.
    """

    environment: str
    candidate: Candidate
    timesteps: int
    seed: int
    keep: str = "fit"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Name of the run in its environment."""
        return f"{self.candidate.name}-{self.seed}"

    def folder(self, root: Path) -> Path:
        """Where the run lies under a data folder."""
        return environment_folder(root, self.environment) / self.name
