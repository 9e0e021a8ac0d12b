"""How far each environment of the catalogue has come, from a registered id to a solved task: a ledger as Markdown."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm_hf.dataset_builder.format.records import RECORD, RunRecord
from ldm_hf.env_registry.library.report import EnvironmentReport, load_report
from ldm_hf.env_registry.registry import list_environments, list_libraries
from ldm_hf.evaluation.report import SUCCESS, Report
from ldm_hf.evaluation.results import TRAINED, EnvironmentResult

STAGES = (
    "registered",
    "validated",
    "fits",
    "newest",
    "reference",
    "no flag",
    "data",
    "trained on",
    "at 80 %",
    "matched",
    "solved",
)
"""What an environment passes through, in this order."""

MEANINGS = {
    "registered": "the library registers the id, or a manifest names it",
    "validated": "it was made, reset and stepped 1,000 times at random",
    "fits": "its spaces fit a model of the paper's limits",
    "newest": "no later version replaces it",
    "reference": "a reference policy was trained or adopted, and kept",
    "no flag": "the reference is not degenerate, and is better than random",
    "data": "transitions of the reference can be made by one command, or were trained on",
    "trained on": "a model's training data held it",
    "at 80 %": "that model reaches 80 % of the reference",
    "matched": "that model reaches 100 % of the reference",
    "solved": "that model gets 90 % of the way to the known good score",
}
"""What each of the stages says."""

_NEXT = {
    "registered": "`ldm env add` again, once the reason is mended",
    "validated": "a model with other limits, or a wrapper",
    "fits": "nothing: the newer version stands for it",
    "newest": "`ldm build ID`",
    "reference": "`ldm build ID --core-minutes` with more of them; not where every episode begins alike",
    "no flag": "`ldm build --from-bank`",
    "data": "`ldm train`",
    "trained on": "more training, or data",
    "at 80 %": "more training, or data",
    "matched": "a better reference, or a sourced score",
}
_MOST_REASONS = 4


@dataclass
class Place:
    """Where an environment stands.

    Attributes:
        environment, library: its id, and the library's slug.
        reached: the stages that it has passed.
        reason: why it is not further.
    """

    environment: str
    library: str
    reached: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def last(self) -> str:
        """The last stage of those that it passed one after another."""
        return self.reached[-1]


def read_records(folders: Sequence[Path]) -> list[RunRecord]:
    """The records of runs in banks and data folders; raises ``DatasetFormatError`` if one is damaged."""
    found = [path.parent for folder in folders for path in sorted(folder.glob(f"**/{RECORD}"))]
    return [RunRecord.read(folder) for folder in found if not any(part.startswith("_") for part in folder.parts)]


def ledger(records: Iterable[RunRecord], reports: Sequence[Report]) -> list[Place]:
    """Where each environment of the catalogue stands.

    Args:
        records: of runs, in a bank and in data folders.
        reports: of models; of several that know an environment, the best counts.
    """
    runs: dict[str, list[RunRecord]] = {}
    for record in records:
        runs.setdefault(record.environment, []).append(record)
    results: dict[str, EnvironmentResult] = {}
    for result in (result for report in reports for result in report.environments if result.training == TRAINED):
        if result.id not in results or _score(result) > _score(results[result.id]):
            results[result.id] = result
    newest = {one.id for one in list_environments()}
    return [
        _place(report, library.slug, runs, results, newest)
        for library in list_libraries()
        for report in load_report(library.slug).environments.values()
    ]


def ledger_page(places: Sequence[Place], race_minutes: float) -> str:
    """The ledger as a Markdown page: by stage, then by library.

    Args:
        places: of the environments.
        race_minutes: core minutes of a race, which the next step of an environment without reference costs.
    """
    lines = [
        "# Coverage: how far each environment has come\n",
        "`ldm coverage` writes this page from the validation reports, the bank of policies and the reports of models.\n",
        "| stage | environments | what it means | stop here | why, most often | next step |",
        "|---|---:|---|---:|---|---|",
    ]
    for stage in STAGES:
        here = [place for place in places if place.last == stage]
        reasons = Counter(place.reason for place in here if stage != STAGES[-1])
        why = "; ".join(f"{reason} ({number})" for reason, number in reasons.most_common(_MOST_REASONS))
        step = _NEXT.get(stage, "") if here else ""
        if stage == "newest" and here:
            step += f": at {race_minutes:g} core minutes each, {len(here) * race_minutes / 60:,.0f} core hours"
        count = sum(stage in place.reached for place in places)
        stop = str(len(here)) if stage != STAGES[-1] else ""
        lines.append(f"| {stage} | {count:,} | {MEANINGS[stage]} | {stop} | {why} | {step} |")
    lines += ["", "## By library\n", "| library | " + " | ".join(STAGES) + " | where most stop |"]
    lines.append("|---|" + "---:|" * len(STAGES) + "---|")
    for library in dict.fromkeys(place.library for place in places):
        own = [place for place in places if place.library == library]
        counts = [sum(stage in place.reached for place in own) for stage in STAGES]
        stopped = Counter(f"{place.last}: {place.reason}" for place in own if place.last != STAGES[-1])
        most = stopped.most_common(1)
        reason = f"{most[0][0]} ({most[0][1]})" if most else ""
        lines.append(f"| {library} | " + " | ".join(str(count or "") for count in counts) + f" | {reason} |")
    return "\n".join(lines) + "\n"


def _place(
    report: EnvironmentReport,
    library: str,
    runs: Mapping[str, Sequence[RunRecord]],
    results: Mapping[str, EnvironmentResult],
    newest: set[str],
) -> Place:
    environment = f"{library}/{report.name}"
    kept = [record for record in runs.get(environment, ()) if record.dropped is None and record.info is not None]
    dropped = [record.dropped for record in runs.get(environment, ()) if record.dropped is not None]
    flags = next((record.info.flags for record in kept if record.info), [])
    result = results.get(environment)
    score, solved = (None, None) if result is None else (result.normalized_score, result.solved)
    flagged = [] if result is None or kept else [flag for flag in result.flags if "degenerate" in flag]
    checks = {
        "registered": (True, ""),
        "validated": (report.failure is None, _general(report.failure or "", report.name)),
        "fits": (not report.problems, _general(report.problems[0] if report.problems else "", report.name)),
        "newest": (environment in newest, "an older version"),
        "reference": (bool(kept) or result is not None, _general(dropped[-1], "") if dropped else "none was trained"),
        "no flag": (not flags and not flagged, _general(next(iter([*flags, *flagged]), ""), "")),
        "data": (bool(kept) or result is not None, ""),
        "trained on": (result is not None, "no model was trained on it yet"),
        "at 80 %": (score is not None and score >= SUCCESS, "the model falls short"),
        "matched": (score is not None and score >= 1, "between 80 % and 100 %"),
        "solved": (
            bool(solved),
            "no comparable score is known" if solved is None else "the reference does not solve it",
        ),
    }
    place = Place(environment, library)
    for stage in STAGES:
        passed, reason = checks[stage]
        if not passed:
            place.reason = reason
            break
        place.reached.append(stage)
    return place


def _score(result: EnvironmentResult) -> float:
    return float("-inf") if result.normalized_score is None else result.normalized_score


def _general(reason: str, name: str) -> str:
    """A reason without what belongs to one environment, so that equal ones can be counted."""
    text = re.sub(r"\s*\([^()]*\)|\([^()]*$", "", reason.replace(name, "it") if name else reason)
    text = re.sub(r"^\S*/it: ", "", text)
    text = re.sub(r"-?\d[\d.,e+-]*(?<![.,])", "N", text).replace("|", "/").split(";")[0]
    return text if len(text) <= 90 else text[:89].rstrip() + "…"
