"""Reports: ``report.json``, a table, the performance-threshold curve and the model card."""

import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.table import Table

from ldm_hf.errors import DatasetFormatError
from ldm_hf.evaluation.scores import normalized_score, threshold_curve
from ldm_hf.files import replacing

FORMAT = 1
SUCCESS = 0.8  # paper section 5.2: an environment counts as solved at 80 % of the reference


@dataclass(frozen=True)
class EnvironmentResult:
    """A model's result on one environment, beside its reference.

    Attributes:
        id: of the environment.
        normalized_score: 0 at ``first10``, 1 at ``last10``; None where the reference did not improve.
        mean_return: of the model, over all episodes.
        first10, last10: mean return of the first and last 10 % of the reference run's training episodes.
        deterministic_return: of the reference policy, acting as the labels do.
        returns: of every episode, by rollout.
    """

    id: str
    normalized_score: float | None
    mean_return: float
    first10: float
    last10: float
    deterministic_return: float
    returns: list[list[float]]

    @classmethod
    def of(
        cls, environment: str, returns: list[list[float]], first10: float, last10: float, deterministic_return: float
    ) -> "EnvironmentResult":
        """Score the returns of an environment."""
        mean_return = float(np.mean([value for rollout in returns for value in rollout]))
        score = normalized_score(mean_return, first10, last10)
        return cls(environment, score, mean_return, first10, last10, deterministic_return, returns)


@dataclass(frozen=True)
class Report:
    """A model's results.

    Attributes:
        environments: results by environment, sorted by id.
        protocol: episodes, rollouts and seeds.
        model: number of parameters, context length, hash of the weights.
        training: settings that made the model, as far as they are known.
        packages: versions that evaluated it.
    """

    environments: list[EnvironmentResult]
    protocol: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write ``report.json``."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read what ``save`` wrote.

        Raises:
            DatasetFormatError: the file is no report, or of another format.
        """
        try:
            values = json.loads(path.read_text())
            found = values.pop("format")
            if found != FORMAT:
                raise DatasetFormatError(f"{path} has report format {found!r}; this version reads {FORMAT}")
            results = [EnvironmentResult(**result) for result in values.pop("environments")]
            return cls(results, **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DatasetFormatError):
                raise
            raise DatasetFormatError(f"{path} is no report: {' '.join(str(error).split())}") from error

    def share_at(self, threshold: float) -> float:
        """Share of the environments whose score is at least ``threshold``."""
        reached = threshold_curve([result.normalized_score for result in self.environments], [threshold])
        return float(reached[0]) / len(self.environments)


def result_table(report: Report) -> Table:
    """The table that the command line prints."""
    table = Table(title="Large Decision Model against its reference policies")
    table.add_column("environment")
    for heading in ("first 10 %", "last 10 %", "deterministic reference", "LDM", "normalised"):
        table.add_column(heading, justify="right")
    for result in report.environments:
        returns = (result.first10, result.last10, result.deterministic_return, result.mean_return)
        table.add_row(result.id, *(f"{value:.2f}" for value in returns), percent(result.normalized_score))
    return table


def percent(score: float | None) -> str:
    """A score as people read it."""
    return "not scored" if score is None else f"{100 * score:.1f} %"


def plot_threshold_curve(report: Report, path: Path) -> None:
    """Draw the share of environments at or above each threshold (paper figure 3) as a PNG."""
    from matplotlib.figure import Figure

    scores = [result.normalized_score for result in report.environments]
    thresholds = np.linspace(0, 1.2, 241)
    shares = 100 * threshold_curve(scores, thresholds) / len(scores)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.step(100 * thresholds, shares, where="pre", linewidth=2, color="#2563eb")
    axes.fill_between(100 * thresholds, shares, step="pre", alpha=0.12, color="#2563eb")
    for threshold, color in ((SUCCESS, "#d97706"), (1.0, "#16a34a")):
        share = 100 * report.share_at(threshold)
        axes.axvline(100 * threshold, color=color, linestyle="--", linewidth=1)
        axes.plot(100 * threshold, share, "o", color=color, label=f"{share:.0f} % of environments at {threshold:.0%}")
    axes.set_xlim(0, 120)
    axes.set_ylim(0, 105)
    axes.set_xlabel("normalised score reached (% of the reference's improvement)")
    axes.set_ylabel("environments (%)")
    axes.set_title(f"Performance threshold curve, {len(scores)} environments")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def render_model_card(report: Report, name: str) -> str:
    """Fill ``model_card.md`` with a report."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    template = environment.from_string(resources.files("ldm_hf.evaluation").joinpath("model_card.md").read_text())
    return template.render(report=report, name=name, success=SUCCESS)
