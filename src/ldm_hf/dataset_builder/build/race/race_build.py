"""A corpus that is built by races: one for each environment, and what is left of the time for those nearest to solved."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.build.plan import Plan
from ldm_hf.dataset_builder.build.race.environment_race import EnvironmentRace
from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.build.settings import BuildSettings
from ldm_hf.dataset_builder.repository.repository import update_repository


class RaceBuild:
    """A corpus in the making, by races. Its state is the files of its folder; what is kept here can be read from them again.

    Args:
        plan: what is built.
        settings: how; their budget is a ``RaceBudget``.
        root: data folder.

    Raises:
        ConfigError: the folder holds a corpus of other settings.
    """

    def __init__(self, plan: Plan, settings: BuildSettings, root: Path):
        assert isinstance(settings.budget, RaceBudget)
        settings.claim(root)
        self._root, self._budget = root, settings.budget
        every = sorted((one for group in plan.groups for one in group.environments), key=lambda one: one.spec.id)
        self._races = [EnvironmentRace(one, settings, self._budget, root) for one in every]

    unit = "core second"  # of ``amount``

    @property
    def libraries(self) -> list[str]:
        """Slugs of the libraries that are built."""
        return list(dict.fromkeys(race.library for race in self._races))

    def forget_failures(self) -> int:
        """Make the slices that failed count as not done; returns how many there were."""
        return sum(race.forget_failures() for race in self._races)

    def jobs(self, running: Collection[str] = ()) -> list[Any]:
        """The jobs that could run now and are neither done nor running, the most urgent first.

        A race begins when those before it leave room. When all have begun and nothing else is to be done, what is left of
        the time continues runs.

        Args:
            running: names of the jobs that run.
        """
        found = [job for race in self._races if race.has_begun for job in race.jobs() if job.name not in running]
        for race in self._races:
            if not found and not race.has_begun:
                race.begin(self._ended_races(race.library))
                found = [job for job in race.jobs() if job.name not in running]
        return found or self._more(running)

    def to_finish(self, busy: Collection[str]) -> list[str]:
        """Libraries that are to be described now: those of which runs were written since."""
        return sorted({race.library for race in self._races if race.has_news})

    def finish(self, library: str) -> None:
        """Describe a library."""
        for race in self._races:
            if race.library == library:
                race.has_news = False
        update_repository(self._root / library)

    def close(self) -> None:
        """Delete what is needed by no run that a later build, which has more time, may continue."""
        for race in self._races:
            race.clear()

    def amount(self) -> tuple[int, int]:
        """Core seconds of everything that is planned, and of what of it is done: for a progress bar."""
        total = round(len(self._races) * self._budget.seconds)
        return total, min(total, round(sum(race.seconds for race in self._races)))

    def _more(self, running: Collection[str]) -> list[Any]:
        """Slices for which time is left, of the runs nearest to solved first, then of those whose returns still rise."""
        if any(race.jobs() for race in self._races):  # all of which run: what they will take is not known yet
            return []
        left = len(self._races) * self._budget.seconds - sum(race.seconds for race in self._races)
        found = []
        for race in sorted((race for race in self._races if race.wants_more), key=lambda race: -race.urgency):
            job = race.next_slice()
            if job.seconds <= left:
                left -= job.seconds
                found += [] if job.name in running else [job]
        return found

    def _ended_races(self, library: str) -> dict[str, Sequence[str]]:
        begun = [race for race in self._races if race.library == library and race.has_begun]
        return {race.environment: standing.order for race in begun if (standing := race.standing()).is_over}
