"""Reports: what ``report.json`` holds, and its summaries by group of environments."""

import functools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.errors import ConfigError, DatasetFormatError
from ldm_hf.evaluation.results import RELATIONS, TRAINED, UNKNOWN, EnvironmentResult, read_result
from ldm_hf.evaluation.scores import share_interval, threshold_curve
from ldm_hf.utils.files import replacing

FORMAT = 1
SUCCESS = 0.8  # paper section 5.2: an environment counts as solved at 80 % of the reference
THRESHOLDS = (SUCCESS, 1.0)

GROUPINGS: dict[str, Callable[[EnvironmentResult], str]] = {
    "training data": lambda result: result.training,
    "library": lambda result: _apart(result.library, result),
    "kind": lambda result: _apart(result.kind, result),
}
"""How environments are grouped into tables. Those trained on and others are never in one group."""


@dataclass(frozen=True)
class Summary:
    """Some environments together. Shares are of those that have a score.

    Attributes:
        environments, scored, failed: how many there are, have a score, have no result.
        median: of the normalised scores; None where there are none.
        interquartile_mean: their mean without the lowest and the highest quarter.
        deterministic_median: median of the scores against the deterministic reference.
        deterministic_reached: number of environments at or above each threshold by that score.
        deterministic_scored: how many environments have it.
        reached: number of environments at or above each threshold.
        shares: the same as shares; None where nothing is scored.
        intervals: of the shares, by a bootstrap over every environment's episodes.
        comparable: number of environments whose known good score can be compared with returns.
        solved, reference_solved: how many of these the model solves, and its references.
    """

    environments: int
    scored: int
    failed: int
    median: float | None
    interquartile_mean: float | None
    deterministic_median: float | None
    deterministic_reached: list[int]
    deterministic_scored: int
    reached: list[int]
    shares: list[float] | None
    intervals: list[list[float] | None]
    comparable: int
    solved: int
    reference_solved: int

    @classmethod
    def of(cls, results: Sequence[EnvironmentResult]) -> "Summary":
        """Summarise results."""
        from scipy import stats

        scored = [result for result in results if result.normalized_score is not None]
        scores = [result.normalized_score for result in scored]
        deterministic = [result.deterministic_score for result in results if result.deterministic_score is not None]
        reached = [int(number) for number in threshold_curve(scores, THRESHOLDS)]
        found = [share_interval([result.episode_scores for result in scored], threshold) for threshold in THRESHOLDS]
        return cls(
            len(results),
            len(scored),
            sum(result.failure is not None for result in results),
            float(np.median(scores)) if scores else None,  # type: ignore[arg-type]
            float(stats.trim_mean(scores, 0.25)) if scores else None,
            float(np.median(deterministic)) if deterministic else None,
            [int(number) for number in threshold_curve(deterministic, THRESHOLDS)],
            len(deterministic),
            reached,
            [number / len(scored) for number in reached] if scored else None,
            [None if interval is None else list(interval) for interval in found],
            sum(result.reference_solved is not None for result in results),
            sum(bool(result.solved) for result in results),
            sum(bool(result.reference_solved) for result in results),
        )


@dataclass(frozen=True)
class Report:
    """A model's results.

    Attributes:
        environments: results by environment, sorted by id.
        protocol: episodes, rollouts and seeds.
        model: name, folder, number of parameters, context length, hash of the weights, what its card says of its origin.
        training: settings that made the model, as far as they are known.
        packages: versions that evaluated it.
        videos: file of each video by environment, relative to the report; or, where there is none, why.
    """

    environments: list[EnvironmentResult]
    protocol: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    videos: dict[str, dict[str, str]] = field(default_factory=dict)

    def only(self, environments: Collection[str]) -> "Report":
        """The report of these environments only."""
        return replace(self, environments=[result for result in self.environments if result.id in environments])

    @property
    def main(self) -> "Report":
        """The report of the environments that the model was trained on; of all where none are known to be."""
        trained = [result.id for result in self.environments if result.training == TRAINED]
        return self.only(trained) if trained else self

    @functools.cached_property
    def summary(self) -> Summary:
        """All environments together, of a report that holds no unlike ones, such as ``main``."""
        return Summary.of(self.environments)

    @functools.cached_property
    def groups(self) -> dict[str, dict[str, Summary]]:
        """Summaries by grouping, then by the name of the group."""
        tables: dict[str, dict[str, Summary]] = {}
        for title, key in GROUPINGS.items():
            names = sorted({key(result) for result in self.environments}, key=_place)
            tables[title] = {
                name: Summary.of([result for result in self.environments if key(result) == name]) for name in names
            }
        return tables

    @property
    def scores(self) -> list[float]:
        """The normalised scores that there are."""
        return [result.normalized_score for result in self.environments if result.normalized_score is not None]

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know before believing the scores, one line each."""
        lines = [f"{result.id}: {result.failure}" for result in self.environments if result.failure is not None]
        lines += [f"{result.id}: {flag}" for result in self.environments for flag in result.flags]
        return lines + [f"{result.id}: {line}" for result in self.environments for line in result.differences]

    def save(self, path: Path) -> None:
        """Write ``report.json``."""
        summaries = {
            title: {name: asdict(summary) for name, summary in table.items()} for title, table in self.groups.items()
        }
        values = {"format": FORMAT, **asdict(self), "summaries": summaries}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read what ``save`` wrote, from the file or its folder.

        Raises:
            DatasetFormatError: the file is not a report, or of another format.
        """
        path = path / "report.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text())
            found = values.pop("format")
            if found != FORMAT:
                raise DatasetFormatError(f"{path} has report format {found!r}; this version reads {FORMAT}")
            values.pop("summaries", None)  # They follow from the rest.
            results = [read_result(result) for result in values.pop("environments")]
            return cls(results, **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DatasetFormatError):
                raise
            raise DatasetFormatError(f"{path} is not a report: {' '.join(str(error).split())}") from error


def _apart(group: str, result: EnvironmentResult) -> str:
    """The name of a group; of environments that were not trained on, it says so."""
    return group if result.training in (TRAINED, UNKNOWN) else f"{group} ({result.training})"


def _place(group: str) -> tuple[int, str]:
    """Those trained on come first; other groups by their names."""
    return (RELATIONS.index(group) if group in RELATIONS else len(RELATIONS), group)


def comparable(reports: Sequence[Report]) -> list[Report]:
    """Reports of the environments that all of them have a score of, so that models are compared on the same.

    Raises:
        ConfigError: there are none.
    """
    scored = [{one.id for one in report.environments if one.normalized_score is not None} for report in reports]
    common = set.intersection(*scored)
    if not common:
        raise ConfigError("the reports have no scored environment in common, so that nothing can be compared")
    return [report.only(common) for report in reports]
