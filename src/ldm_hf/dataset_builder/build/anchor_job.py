"""The first job of a race: what random and trivial policies get, by which the race knows how near it is to known good."""

import json
from dataclasses import dataclass
from pathlib import Path

from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.build.race.slice_results import race_folder
from ldm_hf.dataset_builder.reference.request import Progress, RunRequest
from ldm_hf.errors import DatasetFormatError, LDMError, StorageError
from ldm_hf.utils.files import replacing


@dataclass(frozen=True)
class AnchorJob:
    """Anchors to be measured, unless that was done before with the same installation.

    Attributes:
        request: of whatever run; its environment counts.
        root: data folder.
        memory: estimate, in bytes.
    """

    request: RunRequest
    root: Path
    memory: int

    decides = True
    wants_gpu = False
    amount = 0
    seconds = 0.0

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.request.environment} anchors"

    @property
    def result(self) -> Path:
        """The file that says that it is done."""
        return anchors_file(self.root, self.request.environment)

    @property
    def is_done(self) -> bool:
        """Whether it is."""
        return self.result.is_file()

    def on(self, device: str) -> "AnchorJob":
        """The same job: it gains nothing from a device."""
        return self

    def execute(self, progress: Progress = lambda stage, done, total: None) -> None:
        """Measure them; an environment on which that fails races without. Raises ``StorageError`` if the disk is full."""
        from ldm_hf.dataset_builder.anchors.anchors import measure_anchors

        try:
            anchors = measure_anchors(self.request.environment)
        except StorageError:
            raise
        except LDMError as error:
            self.fail(f"failed: {error}")
        else:
            self._write(anchors, None)

    def fail(self, reason: str) -> None:
        """Record that they cannot be measured."""
        self._write(None, reason)

    def describe(self) -> str:
        """A line on what was measured."""
        anchors = read_anchors(self.result)
        if anchors is None:
            return f"{self.name}: none can be measured"
        known = "no known good" if anchors.known is None else f"known good {anchors.known.good:.4g}"
        return f"{self.name}: random {anchors.random.mean:.4g}, {known}"

    def _write(self, anchors: Anchors | None, failure: str | None) -> None:
        with replacing(self.result) as temporary:
            values = {"anchors": None if anchors is None else anchors.to_json(), "failure": failure}
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")


def anchors_file(root: Path, environment: str) -> Path:
    """Where an environment's anchors lie in a build."""
    return race_folder(root, environment) / "anchors.json"


def read_anchors(path: Path) -> Anchors | None:
    """The anchors that a job wrote; None if they could not be measured."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["anchors"]
        return None if values is None else Anchors.from_json(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetFormatError(f"{path} holds no anchors: {error}") from error
