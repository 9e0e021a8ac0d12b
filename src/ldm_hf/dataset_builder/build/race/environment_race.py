"""The race of one environment in the files of a build: what is to be done next, and what became of whom."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.build import costs
from ldm_hf.dataset_builder.build.anchor_job import AnchorJob, anchors_file, read_anchors
from ldm_hf.dataset_builder.build.plan import PlannedEnvironment
from ldm_hf.dataset_builder.build.race.field import order
from ldm_hf.dataset_builder.build.race.race import (
    FIELD,
    MOST_RUNS,
    NEAR_GOOD,
    ROUNDS,
    Standing,
    best_slice,
    reached,
    stand,
)
from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.build.race.slice_jobs import KeepJob, SliceJob
from ldm_hf.dataset_builder.build.race.slice_results import (
    DEGENERATE,
    RECORDING,
    RESULT,
    STATE,
    SliceResult,
    race_folder,
    read_kept,
    slice_folder,
)
from ldm_hf.dataset_builder.build.settings import BuildSettings
from ldm_hf.dataset_builder.curves import Sample, significantly_higher
from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.dataset_builder.format.schema import environment_folder
from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.errors import DatasetFormatError
from ldm_hf.utils.files import remove, remove_leftovers, replacing

_RACE = "race.json"
_KEEP_SECONDS = 20.0  # an estimate of what writing a run takes
_RESERVE = (
    4  # the best candidates, one of which may be resumed when the winner's run is not fit: they keep their states
)
_SOLVED = 0.9
_SLOWER, _FASTER = 4.0, 16.0  # times that a candidate may be so here, compared with its measured costs
_MOST_REPLAYED = 200_000  # transitions that a replay buffer holds, if its candidate does not say less
_FRUITLESS = 2  # slices without a better policy after which a run gets no more of the time that is left


class EnvironmentRace:
    """The race of an environment.

    Attributes:
        environment, library: its id, and the slug of its library.
        has_news: whether a run was written that the library's description may not have.
    """

    def __init__(self, planned: PlannedEnvironment, settings: BuildSettings, budget: RaceBudget, root: Path) -> None:
        """Read how the race stands; arguments as of ``RaceBuild``."""
        self.environment, self.library = planned.spec.id, planned.library
        self._planned, self._settings, self._budget, self._root = planned, settings, budget, root
        self._pool = budget.pool(self.environment, settings.pool)
        self._folder = race_folder(root, self.environment)
        self._results: dict[tuple[str, int], SliceResult] = {}
        self._kept: dict[Path, dict[str, Any]] = {}
        self._cleared: set[tuple[str, int]] = set()
        self._shown = 0  # of the results, how many the table has
        self._names, self._learned_from = self._read()
        self._anchors: Anchors | None = None
        for name in self._names:
            remove_leftovers(self._run_folder(name))
        remove_leftovers(environment_folder(root, self.environment))
        self.has_news = False

    @property
    def has_begun(self) -> bool:
        """Whether its field is known."""
        return bool(self._names)

    @property
    def seconds(self) -> float:
        """Of a core, that its slices took so far."""
        return sum(one.seconds for name in self._names for one in self.slices(name))

    def begin(self, others: Mapping[str, Sequence[str]]) -> None:
        """Choose the field by how the library's other races ended, by environment, and keep the choice."""
        self._names = tuple(order(self._planned.candidates, list(others.values()))[:FIELD])
        self._learned_from = tuple(others)
        self._write()

    def standing(self) -> Standing:
        """How it stands."""
        families = {name: "replay" if self._pool[name].algorithm in OFF_POLICY else "rollouts" for name in self._names}
        return stand({name: self.slices(name) for name in self._names}, self._target, families)

    def slices(self, name: str) -> list[SliceResult]:
        """What a candidate's slices showed so far."""
        found: list[SliceResult] = []
        while True:
            key = name, len(found)
            if key not in self._results:
                folder = slice_folder(self._root, self._request(name), len(found))
                if not (folder / RESULT).is_file():
                    return found
                self._results[key] = SliceResult.read(folder)
            found.append(self._results[key])

    def jobs(self) -> list[AnchorJob | SliceJob | KeepJob]:
        """What is to be done until a run is kept: slices that are missing, or a run that is to be written.

        Where the winner's run is not fit to be kept, the runner-up catches up with the race, and is written, and so on.
        """
        if not anchors_file(self._root, self.environment).is_file():
            request = self._request(self._names[0])
            return [AnchorJob(request, self._root, costs.run_memory(self._planned.spec, request.candidate, 1))]
        standing = self.standing()
        if len(self._results) != self._shown:
            self._shown = len(self._results)
            self._write()
        racing = 0 if standing.is_over else len(standing.running)
        self._clear(standing.order[max(_RESERVE, racing) :])
        if not standing.is_over:
            return [self._slice_job(name, standing.number) for name in standing.missing]
        resumes = False
        for name in self._writable(standing):
            slices = self.slices(name)
            if resumes and len(slices) <= standing.number and slices[-1].failure is None:
                return [self._slice_job(name, len(slices))]
            job = self._keep_job(name)
            if not job.is_done:
                return [job]
            if self._is_kept(name):
                break
            # What gains most by a trivial policy or by an early end does so for longer, too: others are written as they are.
            resumes = not any(one["dropped"].startswith(DEGENERATE) for one in self._written(name))
        self._write()
        return []

    @property
    def winner(self) -> str | None:
        """The candidate whose run is kept; None before."""
        if not self.has_begun or not (standing := self.standing()).is_over:
            return None
        return next((name for name in self._writable(standing) if self._is_kept(name)), None)

    @property
    def contender(self) -> str | None:
        """The candidate that more time may help: the winner, or the best whose run is not degenerate; None before."""
        if not self.has_begun or not (standing := self.standing()).is_over or self.winner is not None:
            return self.winner
        degenerate = [
            name
            for name in standing.order
            if any((one["dropped"] or "").startswith(DEGENERATE) for one in self._written(name))
        ]
        names = [name for name in self._writable(standing) if name not in degenerate and self._has_state(name)]
        return names[0] if names else None

    @property
    def wants_more(self) -> bool:
        """Whether more training may help: the contender is not near known good, and its last slices improved it."""
        name = self.contender
        if name is None or self.jobs():
            return False
        slices = self.slices(name)
        last = slices[-1]
        if last.failure is not None or not self._has_state(name) or reached(slices, self._target):
            return False
        return len(slices) - 1 - best_slice(slices) < _FRUITLESS and (self.urgency >= 0 or self._rises(name))

    @property
    def urgency(self) -> float:
        """The share of known good that is reached, where it is known and does not solve the environment; -1 elsewhere."""
        name, anchors = self.contender, self._known()
        if name is None or anchors is None:
            return -1.0
        slices = self.slices(name)
        value = _return_of(slices[best_slice(slices)])
        share = anchors.share(value)
        return -1.0 if share is None or share < 0 or anchors.solved(value) else share

    def next_slice(self) -> SliceJob:
        """Another slice of the contender's run."""
        name = self.contender
        assert name is not None
        return self._slice_job(name, len(self.slices(name)))

    def forget_failures(self) -> int:
        """Make the slices that failed count as not done; returns how many there were."""
        failed = [name for name in self._names if (slices := self.slices(name)) and slices[-1].failure is not None]
        for name in failed:
            number = len(self.slices(name)) - 1
            remove(slice_folder(self._root, self._request(name), number))
            del self._results[name, number]
            if not self._is_kept(name):
                remove(self._request(name).folder(self._root) / "run.json")
        return len(failed)

    def clear(self) -> None:
        """Delete states and recordings of an ended race, but for those of a run that more time may help."""
        name = self.contender
        solved = name is not None and reached(self.slices(name), self._target)
        self._clear([other for other in self._names if solved or other != name])

    def rows(self) -> list[dict[str, Any]]:
        """A row for each candidate: what its slices showed, and why it is out."""
        standing = self.standing()
        winner = self.winner
        return [
            {
                "candidate": name,
                "source": self._pool[name].source,
                "transitions": [one.total for one in slices],
                "training": [None if one.training is None else one.training.mean for one in slices],
                "deterministic": [float(np.mean(one.deterministic)) if one.deterministic else None for one in slices],
                "confirmed": [float(np.mean(one.confirmed)) if one.confirmed else None for one in slices],
                "seconds": [one.seconds for one in slices],
                "estimate": [one.estimate for one in slices],
                "result": "kept" if name == winner else self._why_out(name, standing),
            }
            for name in self._names
            for slices in [self.slices(name)]
        ]

    def _why_out(self, name: str, standing: Standing) -> str:
        written = [f"written and dropped: {one['dropped']}" for one in self._written(name) if one["dropped"]]
        return "; ".join([*([standing.dropped[name]] if name in standing.dropped else []), *written]) or "running"

    def _known(self) -> Anchors | None:
        """The anchors of the environment, once they are measured; None where they could not be."""
        path = anchors_file(self._root, self.environment)
        if self._anchors is None and path.is_file():
            self._anchors = read_anchors(path)
        return self._anchors

    @property
    def _target(self) -> float | None:
        """The return that is near known good; None where it is not known."""
        anchors = self._known()
        if anchors is None or anchors.known is None or anchors.share(0.0) is None:
            return None
        return anchors.random.mean + NEAR_GOOD * (anchors.known.good - anchors.random.mean)

    def _writable(self, standing: Standing) -> list[str]:
        names = [name for name in standing.order[:_RESERVE] if (slices := self.slices(name)) and not slices[0].failure]
        if not names:
            for name in standing.order:
                if not (self._request(name).folder(self._root) / "run.json").is_file():
                    record = RunRecord(self.environment, self._request(name).name, standing.dropped[name], None)
                    record.write(self._request(name).folder(self._root))
                    self.has_news = True
        return names[:MOST_RUNS]

    def _rises(self, name: str) -> bool:
        slices = self.slices(name)
        if len(slices) < 2:
            return True
        before, last = slices[-2], slices[-1]
        higher = significantly_higher(Sample.of(last.deterministic), Sample.of(before.deterministic))
        if before.training is None or last.training is None:
            return higher
        return higher or significantly_higher(last.training, before.training)

    def _request(self, name: str) -> RunRequest:
        settings = self._settings
        return RunRequest(
            self.environment, self._pool[name], _MOST_REPLAYED, settings.seed, settings.keep, settings.device
        )

    def _slice_job(self, name: str, number: int) -> SliceJob:
        request, described = self._request(name), self._planned.spec
        seconds = [self._budget.slice_seconds(one, len(self._names)) for one in range(ROUNDS)]
        slices, estimate = self.slices(name)[:number], 1 / costs.run_seconds(described, request.candidate, 1)
        if slices:  # what it costs here is known
            rate = min(max(slices[-1].rate or estimate, estimate / _SLOWER), estimate * _FASTER)
            wanted = seconds[min(number, ROUNDS - 1)]
            trained = max(wanted - slices[-1].overhead, wanted / 2)
            transitions, total = max(1, round(trained * rate)), slices[-1].total
        else:
            rate, total = estimate, 0
            transitions = self._budget.first_transitions(described, request.candidate, len(self._names))
        return SliceJob(
            request,
            self._root,
            number,
            transitions,
            total + transitions + round(sum(seconds[number + 1 :]) * rate),
            self._target,
            seconds[min(number, ROUNDS - 1)],
            costs.run_memory(described, request.candidate, total + transitions),
            costs.has_image(described),
        )

    def _keep_job(self, name: str) -> KeepJob:
        request, described = self._request(name), self._planned.spec
        memory = costs.run_memory(described, request.candidate, 1)
        return KeepJob(request, self._root, best_slice(self.slices(name)), _KEEP_SECONDS, memory)

    def _is_kept(self, name: str) -> bool:
        return any(one["dropped"] is None for one in self._written(name))

    def _written(self, name: str) -> list[dict[str, Any]]:
        """What became of a candidate's run, each time that it was written."""
        for path in sorted(self._run_folder(name).glob("kept-*.json")):
            if path not in self._kept:
                self._kept[path] = read_kept(path)
                self.has_news = True
        return [one for path, one in self._kept.items() if path.parent == self._run_folder(name)]

    def _run_folder(self, name: str) -> Path:
        return self._folder / self._request(name).name

    def _has_state(self, name: str) -> bool:
        return (self._run_folder(name) / f"slice-{len(self.slices(name)) - 1}" / STATE).is_file()

    def _clear(self, names: Iterable[str]) -> None:
        """Delete recordings and states of slices of candidates that are out, and keep what they showed.

        A slice that is still being made is left alone: it is deleted once it has ended.
        """
        ended = {(name, number) for name in names for number in range(len(self.slices(name)))} - self._cleared
        for name, number in ended:
            folder = slice_folder(self._root, self._request(name), number)
            remove(folder / STATE)
            remove(folder / RECORDING)
        self._cleared |= ended
        if ended:
            self._write()

    def _read(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        path = self._folder / _RACE
        if not path.is_file():
            return (), ()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            # A build that is given more time continues the runs that are kept; races stay as long as they began.
            minutes = float(values.get("core_minutes", self._budget.core_minutes))
            self._budget = replace(self._budget, core_minutes=minutes)
            return tuple(values["field"]), tuple(values["learned_from"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetFormatError(f"{path} does not say who races: {error}") from error

    def _write(self) -> None:
        """Keep the field, and the table of what its candidates showed, for those who ask."""
        anchors = self._known()
        values = {
            "environment": self.environment,
            "field": self._names,
            "learned_from": self._learned_from,
            "core_minutes": self._budget.core_minutes,
            "random": None if anchors is None else anchors.random.mean,
            "known_good": None if anchors is None or anchors.known is None else anchors.known.good,
            "target": self._target,
            "candidates": self.rows(),
        }
        path = self._folder / _RACE
        text = json.dumps(values, indent=1)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _return_of(result: SliceResult) -> float:
    return float(np.mean(result.confirmed or result.deterministic))
