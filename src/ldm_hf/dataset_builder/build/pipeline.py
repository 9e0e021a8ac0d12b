"""The resumable job graph: rank candidates, train the best on each environment, curate, describe."""

import json
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.build import costs
from ldm_hf.dataset_builder.build.budgets import Budget
from ldm_hf.dataset_builder.build.jobs import RANKING_FOLDER, Job
from ldm_hf.dataset_builder.build.plan import Group, Plan, PlannedEnvironment
from ldm_hf.dataset_builder.build.race.race_build import RaceBuild
from ldm_hf.dataset_builder.build.ranking import Rank, best, rank
from ldm_hf.dataset_builder.build.settings import BuildSettings
from ldm_hf.dataset_builder.format.records import RunRecord, read_records
from ldm_hf.dataset_builder.format.schema import environment_folder
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.curation import below_best
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.executors.base import Executor, JobResult
from ldm_hf.executors.jobs import run_jobs
from ldm_hf.utils.files import remove, remove_leftovers, replacing

Say = Callable[[str], None]
Watch = Callable[[Executor, Sequence[Any]], None]
"""Called about three times per second with the executor and the jobs that are running."""


class Build:
    """A corpus in the making. Its state is the files of its folder; nothing of it is kept here.

    Args:
        plan: what is built.
        settings: how.
        root: data folder.

    Raises:
        ConfigError: the folder holds a corpus of other settings.
    """

    def __init__(self, plan: Plan, settings: BuildSettings, root: Path):
        self._plan = plan
        assert isinstance(settings.budget, Budget)
        self._settings, self._budget = settings, settings.budget
        self._root = root
        self._unfinished = set(self.libraries)
        settings.claim(root)

    unit = "transition"  # of ``amount``

    @property
    def libraries(self) -> list[str]:
        """Slugs of the libraries that are built."""
        return list(dict.fromkeys(group.library for group in self._plan.groups))

    def forget_failures(self) -> int:
        """Make the runs that failed count as not done, those of the ranking too; returns how many there were."""
        forgotten = 0
        for group in self._plan.groups:
            runs = [job for job in self._run_jobs(group) or [] if job.is_done]
            failed = [job for job in runs if RunRecord.read(job.result.parent).failed]
            ranking = [] if self._skips_ranking(group) else [job for job in self._ranking_jobs(group) if job.is_done]
            unranked = [job for job in ranking if job.curve() is None]
            if unranked:
                remove(self._ranking_file(group))
            for job in [*failed, *unranked]:
                remove(job.result if job.ranking else job.result.parent)
            forgotten += len(failed) + len(unranked)
        return forgotten

    def jobs(self, running: Collection[str] = ()) -> list[Job]:
        """The jobs that could run now and are neither done nor, by their names, running; those that take longest first."""
        every = [job for group in self._plan.groups for job in self._jobs(group)]
        waiting = [job for job in every if not job.is_done and job.name not in running]
        return sorted(waiting, key=lambda job: -job.seconds)

    def to_finish(self, busy: Collection[str]) -> list[str]:
        """Libraries of which all is done and which are not finished yet, given those that have jobs."""
        return sorted(self._unfinished - set(busy))

    def close(self) -> None:
        """Nothing is kept that only a build in progress needs."""

    def finish(self, library: str) -> None:
        """Drop the runs of a library that fall short of their environment's best, and describe it; all its jobs are done."""
        for group in self._plan.groups:
            if group.library == library:
                for environment in group.environments:
                    self._curate(environment)
        update_repository(self._root / library)
        self._unfinished.discard(library)

    def ranking(self, group: Group) -> list[Rank] | None:
        """The ranking of a group's candidates, the best first; None while runs of it are missing.

        Once it is known it is kept, so that environments that are added later do not change what was chosen.
        """
        path = self._ranking_file(group)
        if path.is_file():
            return [Rank(**one) for one in json.loads(path.read_text(encoding="utf-8"))["ranks"]]
        jobs = self._ranking_jobs(group)
        if not all(job.is_done for job in jobs):
            return None
        results: dict[str, dict] = {}
        for job in jobs:
            curve = job.curve()
            sample = None if curve is None else curve.last
            results.setdefault(job.request.environment, {})[job.request.candidate.name] = sample
        ranks = rank(results)
        with replacing(path) as temporary:
            values = {"environments": list(results), "ranks": [asdict(one) for one in ranks]}
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
        return ranks

    def amount(self) -> tuple[int, int]:
        """Transitions of everything that is planned, and of what of it is done: for a progress bar."""
        budget = self._budget
        total = done = 0
        for group in self._plan.groups:
            runs = self._run_jobs(group)
            ranking = [] if self._skips_ranking(group) else self._ranking_jobs(group)
            if runs is not None:  # the ranking is known: what it did not need will not be made
                ranking = [job for job in ranking if job.is_done]
            for job in [*ranking, *(runs or [])]:
                total += job.request.timesteps
                done += job.request.timesteps if job.is_done else 0
            if runs is None:  # Which candidates will be chosen is unknown: the longest, to be safe.
                lengths = sorted(budget.run_transitions(self._settings.pool[name]) for name in group.candidates)
                total += len(group.environments) * sum(lengths[-budget.runs :])
        return total, done

    def _jobs(self, group: Group) -> list[Job]:
        runs = self._run_jobs(group)
        return self._ranking_jobs(group) if runs is None else runs

    def _ranking_jobs(self, group: Group) -> list[Job]:
        specs = {environment.spec.id: environment.spec for environment in group.environments}
        budget = self._budget
        return [
            self._job(specs[name], candidate, budget.ranking_transitions(candidate), ranking=True)
            for name in group.ranked_on
            for candidate in (self._settings.pool[each] for each in group.candidates)
        ]

    def _run_jobs(self, group: Group) -> list[Job] | None:
        names = self._chosen(group)
        if names is None:
            return None
        budget = self._budget
        return [
            self._job(environment.spec, candidate, budget.run_transitions(candidate), ranking=False)
            for environment in group.environments
            for candidate in (self._settings.pool[name] for name in names)
        ]

    def _chosen(self, group: Group) -> list[str] | None:
        if self._skips_ranking(group):
            return list(group.candidates)
        ranks = self.ranking(group)
        return None if ranks is None else best(ranks, self._budget.runs)

    def _skips_ranking(self, group: Group) -> bool:
        return len(group.candidates) <= self._budget.runs

    def _job(self, spec: EnvironmentSpec, candidate: Candidate, transitions: int, *, ranking: bool) -> Job:
        settings = self._settings
        request = RunRequest(spec.id, candidate, transitions, settings.seed, settings.keep, settings.device)
        return Job(
            request,
            self._root,
            ranking,
            costs.run_seconds(spec, candidate, transitions),
            costs.run_memory(spec, candidate, transitions),
            costs.has_image(spec),
        )

    def _curate(self, environment: PlannedEnvironment) -> None:
        folder = environment_folder(self._root, environment.spec.id)
        remove_leftovers(folder)
        records = {record.run: record for record in read_records(folder)}
        curves = {name: record.info.curve for name, record in records.items() if record.info and record.dropped is None}
        for name, reason in below_best(curves).items():
            policy = tuple(file for file in records[name].files if not file.path.endswith(".parquet"))
            records[name] = replace(records[name], dropped=reason, files=policy)
            # The record first: killed in between, the data are dropped but lie there, which harms nobody.
            records[name].write(folder / name)
        for name, record in records.items():
            for path in (folder / name).glob("*.parquet") if record.dropped is not None else ():
                remove(path)

    def _ranking_file(self, group: Group) -> Path:
        # The candidates that compete name the group: another version of the library may divide it otherwise.
        key = f"{zlib.crc32(' '.join(group.candidates).encode()):08x}"
        return self._root / RANKING_FOLDER / group.library / f"ranking-{key}.json"


def run_build(
    build: Build | RaceBuild, executor: Executor, say: Say, watch: Watch = lambda executor, jobs: None
) -> None:
    """Run what is not done, and describe the corpus. It may be killed at any time and called again.

    Args:
        build: the corpus.
        executor: where jobs run; the caller closes it.
        say: called with a line for each job that ends.
        watch: called now and then while jobs run.

    Raises:
        LDMError: something that no job can get past, such as a full disk.
    """

    def ended(result: JobResult, again: bool) -> None:
        if result.crash is not None and not result.job.is_done and not again:
            result.job.fail(f"failed: {result.crash}")
        say(describe(result))

    def describe_libraries(running: list[Any], waiting: list[Any]) -> None:
        watch(executor, running)
        _finish(build, {library_of(job) for job in [*waiting, *running]})

    run_jobs(executor, build.jobs, ended, describe_libraries)
    _finish(build, set())
    build.close()


def _finish(build: Build | RaceBuild, busy: set[str]) -> None:
    for library in build.to_finish(busy):
        build.finish(library)


def library_of(job: Any) -> str:
    """Slug of the library that a job belongs to."""
    return EnvironmentId.parse(job.request.environment).library


def describe(ended: JobResult) -> str:
    """A line on a job that has ended."""
    job = ended.job
    if ended.crash is not None and not job.is_done:
        return f"{job.name}: {ended.crash}; once more"
    return str(job.describe())
