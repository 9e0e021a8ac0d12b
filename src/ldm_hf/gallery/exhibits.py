"""What the gallery shows of each environment: the catalogue's report, its reference, models' results and samples of data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.known_scores import KnownScore, known_score
from ldm_hf.env_registry.library.manifest import Manifest, load_manifests
from ldm_hf.env_registry.library.report import EnvironmentReport, load_report
from ldm_hf.env_registry.library.report import Report as LibraryReport
from ldm_hf.evaluation.coverage import Place, ledger
from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.results import EnvironmentResult
from ldm_hf.modeling.spaces_ldm import walk_space

_MOST_LEAVES = 12  # of a space that are listed


@dataclass(frozen=True)
class Part:
    """One array of a space, in words.

    Attributes:
        name: where it is found, empty for the whole.
        kind: its type and shape: ``Box 4``, ``Discrete 2``.
        values: its bounds or symbols.
    """

    name: str
    kind: str
    values: str


@dataclass
class Exhibit:
    """One environment.

    Attributes:
        environment: its id.
        manifest, validated, report: of its library, and what was seen of it when it was validated.
        place: how far it has come.
        reference: of its best run, None where there is none.
        results: of models, by name.
        known: the known good score, None where there is none.
        video: file relative to the site, empty where there is none.
        sample: what ``ldm_hf.gallery.samples`` drew from its data, None where there are none.
    """

    environment: str
    manifest: Manifest
    validated: LibraryReport
    report: EnvironmentReport
    place: Place
    reference: RunInfo | None = None
    results: dict[str, EnvironmentResult] = field(default_factory=dict)
    known: KnownScore | None = None
    video: str = ""
    sample: Any = None

    @property
    def library(self) -> str:
        """Slug of its library."""
        return self.manifest.slug

    @property
    def page(self) -> str:
        """Its page, relative to the site."""
        parsed = EnvironmentId.parse(self.environment)
        return f"{parsed.library}/{parsed.config_name}.html"

    @property
    def result(self) -> EnvironmentResult | None:
        """That of the first model that has one without a failure."""
        return next((result for result in self.results.values() if result.failure is None), None)

    def scores(self) -> list[tuple[str, float, str]]:
        """What is known of returns here, from the lowest: who, the mean return, and a note."""
        rows: list[tuple[str, float, str]] = []
        assessment = None if self.reference is None else self.reference.assessment
        random = None if self.result is None or self.result.random is None else self.result.random["mean"]
        if assessment is not None:
            anchors = assessment.anchors
            rows.append(("random policy", anchors.random.mean, f"{anchors.random.size} episodes"))
            if anchors.best_trivial is not None:
                name, sample = anchors.best_trivial
                rows.append(("best trivial policy", sample.mean, name))
        elif random is not None:
            rows.append(("random policy", random, ""))
        if self.reference is not None and not np.isnan(self.reference.deterministic_return):
            rows.append(("reference", self.reference.deterministic_return, self.reference.algorithm))
        elif self.result is not None and self.result.deterministic_return is not None:
            rows.append(("reference", self.result.deterministic_return, "of the model's report"))
        for name, result in self.results.items():
            if result.mean_return is not None:
                rows.append((name, result.mean_return, result.training))
        if self.known is not None and self.known.comparable:
            rows.append(("known good", self.known.good, f"{self.known.kind}: {self.known.source}"))
        return sorted(rows, key=lambda row: row[1])


def collect(records: Sequence[RunRecord], reports: Sequence[Report]) -> list[Exhibit]:
    """All environments that the catalogue registers, validated or not, in the order of their ids.

    Args:
        records: of runs, in a bank and in data folders.
        reports: of models.

    Raises:
        ConfigError: a report or manifest is damaged.
    """
    best = _best(records)
    results: dict[str, dict[str, EnvironmentResult]] = {}
    for report in reports:
        for result in report.environments:
            results.setdefault(result.id, {})[report.model.get("name", "model")] = result
    manifests = load_manifests()
    found = []
    for place in ledger(records, reports):
        validated = load_report(place.library)
        name = place.environment.partition("/")[2]
        found.append(
            Exhibit(
                place.environment,
                manifests[place.library],
                validated,
                validated.environments[name],
                place,
                best.get(place.environment),
                results.get(place.environment, {}),
                known_score(place.environment),
            )
        )
    return sorted(found, key=lambda one: one.environment.lower())


def parts(space: Mapping[str, Any]) -> list[Part]:
    """The arrays of a space in words; of many only the first, and how many more there are."""
    if not space:
        return []
    leaves = walk_space(dict(space))
    found = [
        Part("".join(f"[{key!r}]" for key in path), _kind(leaf), _values(leaf)) for path, leaf in leaves[:_MOST_LEAVES]
    ]
    return found + [Part("…", f"{len(leaves) - _MOST_LEAVES} more", "")] * (len(leaves) > _MOST_LEAVES)


def _best(records: Sequence[RunRecord]) -> dict[str, RunInfo]:
    best: dict[str, RunInfo] = {}
    for record in records:
        if record.dropped is not None or record.info is None:
            continue
        one = best.get(record.environment)
        if one is None or _value(record.info) > _value(one):
            best[record.environment] = record.info
    return best


def _value(info: RunInfo) -> float:
    return info.last10 if np.isnan(info.deterministic_return) else info.deterministic_return


def _kind(space: Mapping[str, Any]) -> str:
    kind = str(space["type"])
    if kind in ("Box", "MultiDiscrete", "MultiBinary"):
        shape = space.get("shape", space.get("n", [len(space.get("nvec", []))]))
        sides = shape if isinstance(shape, list) else [shape]
        size = " x ".join(str(side) for side in sides) or "scalar"
        return f"{kind} {size}, {space['dtype']}" if kind == "Box" else f"{kind} {size}"
    return kind


def _values(space: Mapping[str, Any]) -> str:
    kind = space["type"]
    if kind == "Discrete":
        start = space.get("start", 0)
        return f"{start} to {start + space['n'] - 1}"
    if kind == "MultiDiscrete":
        sizes = sorted(set(np.ravel(space["nvec"]).tolist()))
        return "up to " + " or ".join(str(size) for size in sizes[-3:]) + " symbols"
    if kind == "MultiBinary":
        return "0 or 1"
    if kind == "Box":
        low, high = (np.array(space[key], np.float64) for key in ("low", "high"))
        return f"{low.min():.4g} to {high.max():.4g}" if low.size and high.size else ""
    return ""
