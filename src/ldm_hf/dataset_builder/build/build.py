"""Building data by one call: what ``ldm build`` does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.build.budgets import choose_budget
from ldm_hf.dataset_builder.build.pipeline import Build, run_build
from ldm_hf.dataset_builder.build.plan import Plan, make_plan
from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.build.race.race_build import RaceBuild
from ldm_hf.dataset_builder.build.settings import BuildSettings
from ldm_hf.dataset_builder.format.records import RunRecord
from ldm_hf.dataset_builder.reference.candidates import choose_pool
from ldm_hf.dataset_builder.repository.repository import run_records
from ldm_hf.executors.local import LocalExecutor
from ldm_hf.utils.files import sole_writer


def build(
    targets: Sequence[str],
    output: str | Path = "runs/data",
    *,
    budget: str = "race",
    core_minutes: float | None = None,
    transitions: int | None = None,
    candidates: Sequence[str] = (),
    jobs: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[RunRecord]:
    """Train reference policies on environments, record everything, relabel it, and write datasets.

    Killed or interrupted, the same call resumes.

    Args:
        targets: ids of environments, and slugs of libraries as a whole.
        output: data folder; a dataset repository per library.
        budget: ``race``, ``paper`` or ``small``.
        core_minutes: of a race, per environment.
        transitions: of a run; of the budgets that count them.
        candidates: names in the pool; by default all.
        jobs: runs at a time; by default one per processor.
        seed: random seed of each run.
        say: told a line per run.

    Returns:
        What became of each run, kept or dropped; ``open_datasets(output)`` opens those that were kept.

    Raises:
        UnknownEnvironmentError: there is no environment of an id.
        ConfigError: a setting cannot be used, or the folder holds data of other settings.
        StorageError: the disk is full.
    """
    settings, plan = choose(targets, budget, core_minutes, transitions, candidates, seed)
    root = Path(output).absolute()
    with sole_writer(root):
        building = open_build(plan, settings, root)
        executor = LocalExecutor(jobs)
        try:
            run_build(building, executor, say)
        finally:
            executor.close()
    return [record for library in building.libraries for record in run_records(root / library)]


def choose(
    targets: Sequence[str],
    budget: str,
    core_minutes: float | None,
    transitions: int | None,
    candidates: Sequence[str],
    seed: int,
    **options: Any,
) -> tuple[BuildSettings, Plan]:
    """The settings of a build and its plan; arguments as of ``build``, ``options`` are further ``BuildSettings``."""
    chosen = choose_budget(budget, transitions, core_minutes)
    if candidates and isinstance(chosen, RaceBudget):
        chosen = replace(chosen, tuned=False)  # those that were named race, and no others
    settings = BuildSettings(choose_pool(tuple(candidates)), chosen, seed, **options)
    return settings, make_plan(targets, settings.pool, chosen, seed)


def open_build(plan: Plan, settings: BuildSettings, root: Path) -> Build | RaceBuild:
    """The build of a plan in a data folder, as far as it has come."""
    kind = RaceBuild if isinstance(settings.budget, RaceBudget) else Build
    return kind(plan, settings, root)
