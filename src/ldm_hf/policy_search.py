"""``ldm solve``: one command from an environment, or from what installs it, to a policy.

A race finds a reference policy; a pretrained model is trained on its data, and one from random weights beside it, in rounds
that double their steps until the model plays no better; the best is kept. Each step is a command of this package in a
process of its own, which resumes where it was interrupted; ``solve.json`` has the rounds that are done.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.curves import Sample, significantly_higher
from ldm_hf.env_registry.doctor import diagnose
from ldm_hf.env_registry.library.add import slug_of
from ldm_hf.env_registry.library.manifest import load_manifests
from ldm_hf.env_registry.library.own_code import name_of
from ldm_hf.env_registry.registry import find_manifest, list_environments, spec
from ldm_hf.errors import ConfigError, EnvironmentFailure, UnsupportedSpaceError
from ldm_hf.utils.files import remove, replacing, sole_writer
from ldm_hf.utils.processes import run_child

PRETRAINED = "pretrained/ldm-mini"
"""The newest pretrained model, in a clone of this repository."""

FINE_TUNED, FROM_SCRATCH = "fine-tuned", "from scratch"
RACE_SHARE = 0.6
"""Share of the time that candidates race for; the models have what is left."""

_FIRST_STEPS, _MOST_ROUNDS = 100, 6
_EPISODES, _FINAL_SEED = 10, 7_000
_SETTINGS: dict[str, dict[str, Any]] = {
    FINE_TUNED: {"learning_rate": 3e-4},
    FROM_SCRATCH: {"model": "nano", "learning_rate": 1e-3},
}
_SHARED: dict[str, Any] = {"train_batch_size": 16, "warmup_steps": 20, "save_steps": 100, "save_total_limit": 1}


@dataclass(frozen=True)
class Round:
    """What a model played after some steps of training.

    Attributes:
        model: ``FINE_TUNED`` or ``FROM_SCRATCH``.
        steps: optimizer steps so far.
        returns: of its episodes.
        seconds: that the round took.
        folder: of the model as it was then.
    """

    model: str
    steps: int
    returns: list[float]
    seconds: float
    folder: str

    @property
    def mean(self) -> float:
        """Mean return."""
        return sum(self.returns) / len(self.returns)


@dataclass(frozen=True)
class Solved:
    """What ``solve`` found.

    Attributes:
        environment: its id.
        model: folder of the model that plays best, for ``ldm_hf.load``.
        best: ``FINE_TUNED`` or ``FROM_SCRATCH``.
        returns: of its final episodes, on seeds that chose nothing.
        reference: returns of the reference policy.
        random: mean return of a random policy; None where it could not be played.
        trivial: name and mean return of the best trivial policy, such as one that always does the same.
        solved: whether the model solves the environment; None where no known good score can be compared.
        rounds: all that were trained.
        reference_is_better: whether the reference policy is significantly better than the model.
    """

    environment: str
    model: Path
    best: str
    returns: list[float]
    reference: list[float]
    random: float | None
    trivial: tuple[str, float] | None
    solved: bool | None
    rounds: list[Round] = field(default_factory=list)
    reference_is_better: bool = False


def solve(
    target: str,
    output: str | Path | None = None,
    *,
    hours: float = 1.0,
    model: str | None = None,
    jobs: int = 1,
    seed: int = 0,
    push: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Solved:
    """Find a policy for an environment within a time.

    Called again after an interruption with the same arguments, it resumes.

    Args:
        target: id of an environment; or what ``ldm env add`` takes, if that brings one environment that fits.
        output: folder for everything; by default ``runs/solve/ENVIRONMENT``.
        hours: that it may take, roughly: a race ends with a slice, and a model with a round.
        model: folder or Hub name of the pretrained model; by default ``PRETRAINED`` where there is one.
        jobs: processes that train references.
        seed: random seed of everything.
        push: NAMESPACE/NAME on the Hub, which the model is published as.
        say: told what is done next.

    Raises:
        UnknownEnvironmentError: there is no such environment.
        UnsupportedSpaceError: it does not fit a model.
        EnvironmentFailure: it broke, or no candidate learned it in the time.
        ChildFailure: a command failed, and has said why.
    """
    if not hours > 0:
        raise ConfigError(f"hours must be above 0, got {hours:g}")
    if push is not None and push.count("/") != 1:
        raise ConfigError(f"push must be NAMESPACE/NAME, got {push!r}")
    environment = find_environment(target, say)
    fit = diagnose(environment)
    if not fit.fits:
        raise UnsupportedSpaceError(f"{environment} does not fit a model: {'; '.join(fit.problems)}")
    folder = Path(output) if output is not None else Path("runs/solve") / environment.replace("/", "--")
    with sole_writer(folder.absolute()):
        return _Search(environment, folder, hours, model, jobs, seed, say).run(push)


def find_environment(target: str, say: Callable[[str], None] = lambda line: None) -> str:
    """The id of an environment, whose library is added first where ``target`` is not an id.

    Raises:
        UnknownEnvironmentError: there is none of this id.
        ConfigError: a library has several, or none that fits.
        ChildFailure: the library cannot be added.
    """
    is_id = "/" in target and not any(sign in target for sign in (":", "@", ".py")) and not Path(target).is_dir()
    if is_id:
        return spec(target).id
    slug = slug_of(target)
    if slug not in load_manifests() or name_of(target) is not None:  # one's own code may have changed
        say(f"ldm env add {shlex.quote(target)}")
        _ldm("env", "add", target)
    found = list_environments(slug)
    fitting = [one.id for one in found if not one.problems]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(fitting[:5]) + (" ..." if len(fitting) > 5 else "")
    raise ConfigError(
        f"{target} has {len(fitting)} environments that fit a model; name one of them: {shown}"
        if fitting
        else f"{target} has no environment that fits a model; `ldm env doctor` says why one does not"
    )


class _Search:
    """The steps of ``solve`` for one environment, and what is known of them on disk."""

    def __init__(
        self, environment: str, folder: Path, hours: float, model: str | None, jobs: int, seed: int, say: Callable
    ) -> None:
        self._environment, self._folder, self._jobs, self._seed, self._say = environment, folder, jobs, seed, say
        self._seconds, self._data = 3600 * hours, folder / "data"
        self._pretrained = model or (PRETRAINED if Path(PRETRAINED).is_dir() else None)
        task = {
            "environment": environment,
            "installation of its library": find_manifest(environment.partition("/")[0]).validation_key,
            "model": self._pretrained,
            "seed": seed,
        }
        self._state: dict[str, Any] = {"rounds": [], "race_seconds": None, "task": task}
        if (folder / "solve.json").is_file():
            self._state = json.loads((folder / "solve.json").read_text(encoding="utf-8"))
        if (begun := self._state.get("task", task)) != task:
            others = " and ".join(name for name in task if begun.get(name) != task[name])
            raise ConfigError(
                f"{folder} was begun with another {others}: give another --output, or remove it to begin again"
            )
        self._rounds = [Round(**values) for values in self._state["rounds"]]

    def run(self, push: str | None) -> Solved:
        """Race, train, choose, evaluate, publish."""
        minutes = RACE_SHARE * self._seconds / 60
        self._say(f"1/4 a reference: candidates race for {minutes:.0f} minutes on {self._jobs} cores at most")
        if self._state["race_seconds"] is None:
            core_minutes = self._core_minutes(minutes)
            race = ["--core-minutes", f"{core_minutes:.3g}", "--jobs", self._jobs, "--seed", self._seed]
            started, before = time.monotonic(), self._state.get("interrupted_seconds", 0.0)
            try:
                _ldm("build", self._environment, *race, "--output", self._data)
            except BaseException:
                self._state["interrupted_seconds"] = before + time.monotonic() - started
                self._save()
                raise
            self._state["race_seconds"] = before + time.monotonic() - started
            self._save()
        reference = self._reference()
        models = [FINE_TUNED, FROM_SCRATCH] if self._pretrained else [FROM_SCRATCH]
        left = self._seconds - self._state["race_seconds"]
        self._say(f"2/4 {' and '.join(models)}: at most {max(0.0, left) / 60:.0f} minutes, until no round plays better")
        for name in models:
            self._train(name, left / len(models), Sample.of(reference).mean)
        best = max(self._rounds, key=lambda one: one.mean)
        self._say(f"3/4 the best is {best.model} after {best.steps} steps: it is played on seeds that chose nothing")
        kept = self._folder / "model"
        _keep(Path(best.folder), kept)
        result = self._evaluate(
            kept, kept, self._seed + _FINAL_SEED, videos=1
        )  # which leaves card, report and video beside it
        returns = [value for rollout in result["returns"] for value in rollout]
        random = None if result["random"] is None else result["random"]["mean"]
        trivial = None if result["trivial"] is None else (result["trivial"]["name"], result["trivial"]["mean"])
        found = Solved(
            self._environment,
            kept,
            best.model,
            returns,
            reference,
            random,
            trivial,
            result["solved"],
            self._rounds,
            significantly_higher(Sample.of(reference), Sample.of(returns)),
        )
        if push is not None:
            namespace, _, name = push.partition("/")
            self._say(f"4/4 publishing {push}")
            _ldm("publish", kept, "--namespace", namespace, "--name", name, "--yes")
        return found

    def _core_minutes(self, minutes: float) -> float:
        """Core time of a race that lasts so long."""
        from ldm_hf.dataset_builder.build.race.race import FIELD, core_seconds
        from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
        from ldm_hf.dataset_builder.reference.candidates import choose_pool

        budget = RaceBudget(minutes)
        pool = budget.pool(self._environment, choose_pool(None))
        fit = len(pool) - len(budget.incompatible(spec(self._environment), pool))
        return core_seconds(minutes, self._jobs, min(FIELD, max(1, fit)))

    def _reference(self) -> list[float]:
        """Returns of the reference policy that the race left."""
        from ldm_hf.dataset_builder.repository.repository import run_records

        library = self._environment.partition("/")[0]
        records = [record for record in run_records(self._data / library) if record.environment == self._environment]
        kept = [record.info for record in records if record.dropped is None and record.info is not None]
        if not kept:
            reasons = "; ".join(f"{record.run}: {record.dropped}" for record in records[:3])
            raise EnvironmentFailure(
                f"no candidate learned {self._environment} in the time: {reasons or 'none finished'}; give it more by "
                "--hours, with another --output"
            )
        return max((info.deterministic_returns for info in kept), key=lambda returns: Sample.of(returns).mean)

    def _train(self, name: str, seconds: float, wanted: float) -> None:
        """Rounds of one model, of doubled steps, until it plays as the reference, no better than before, or time is over."""
        folder = self._folder / name.replace(" ", "-")
        while True:
            done = [one for one in self._rounds if one.model == name]
            if done and self._is_enough(done, seconds, wanted):
                return
            steps, started = _FIRST_STEPS * 2 ** len(done), time.monotonic()
            settings = {**_SHARED, **_SETTINGS[name], "max_steps": steps, "seed": self._seed, "output_dir": folder}
            settings |= {"data": self._data, "model": settings.get("model", self._pretrained)}
            settings["environments"] = json.dumps([self._environment])  # by name: also one whose reference has a flag
            remove(folder / "model")  # of the round before, from whose checkpoint this one continues
            _ldm("train", *(part for key, value in settings.items() for part in (f"--{key}", value)))
            kept = folder / f"after-{steps}"
            _keep(folder / "model", kept)
            result = self._evaluate(kept, folder / f"evaluation-{steps}", self._seed)
            returns = [value for rollout in result["returns"] for value in rollout]
            self._rounds.append(Round(name, steps, returns, time.monotonic() - started, str(kept)))
            self._say(f"    {name}, {steps} steps: {self._rounds[-1].mean:.4g} (reference {wanted:.4g})")
            self._save()

    def _is_enough(self, done: Sequence[Round], seconds: float, wanted: float) -> bool:
        best = max(done, key=lambda one: one.mean)
        no_better = len(done) - 1 - done.index(best) >= 2
        spent = sum(one.seconds for one in done)
        too_long = spent + 2 * done[-1].seconds > seconds
        return best.mean >= wanted or no_better or too_long or len(done) == _MOST_ROUNDS

    def _evaluate(self, model: Path, output: Path, seed: int, videos: int = 0) -> dict[str, Any]:
        chosen = [
            "--data",
            self._data,
            "--environments",
            self._environment,
            "--episodes",
            _EPISODES,
            "--videos",
            videos,
        ]
        _ldm("evaluate", model, *chosen, "--output", output, "--seed", seed)
        (result,) = json.loads((output / "report.json").read_text(encoding="utf-8"))["environments"]
        if result["failure"]:
            raise EnvironmentFailure(f"{self._environment} broke while the model played: {result['failure']}")
        return result

    def _save(self) -> None:
        self._state["rounds"] = [asdict(one) for one in self._rounds]
        with replacing(self._folder / "solve.json") as temporary:
            temporary.write_text(json.dumps(self._state, indent=1), encoding="utf-8")


def _ldm(*arguments: object) -> None:
    run_child([sys.executable, "-m", "ldm_hf", *map(str, arguments)])


def _keep(model: Path, folder: Path) -> None:
    """Copy the files of a model to a folder that may be there, beside what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(one for one in model.iterdir() if one.is_file()):
        with replacing(folder / path.name) as temporary:
            shutil.copy2(path, temporary)
