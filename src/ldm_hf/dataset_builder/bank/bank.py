"""The bank: one reference policy an environment, with all that is known of it. Data are made from it again, and not kept."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.anchors.anchors import measure_anchors
from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.bank.rollout_request import RolloutRequest, run_name
from ldm_hf.dataset_builder.curves import BY_POLICY
from ldm_hf.dataset_builder.format.records import RECORD, RunRecord, describe_files, read_records, sha256
from ldm_hf.dataset_builder.format.schema import POLICY_FOLDER, RunInfo, environment_folder
from ldm_hf.env_registry.registry import spec
from ldm_hf.errors import ConfigError, DatasetFormatError, EnvironmentFailure, UnknownEnvironmentError
from ldm_hf.utils.files import remove_leftovers, replacing, scratch_folder

FORMAT = 1
ENTRY = "bank.json"


@dataclass(frozen=True)
class Entry:
    """A policy of the bank.

    Attributes:
        folder: where it lies: ``policy/``, ``run.json`` and ``bank.json``.
        record: of the run that made it, with its learning curve, settings, seed and versions. Its deterministic returns, and
            what they are worth, are those of the policy as it is kept.
        weights: ``dtype`` of its weights; the ``difference`` that rounding them makes, on a number of ``observations``:
            the largest to a continuous action, as a share of its range, or the share of other discrete ones. Empty of a
            function.
    """

    folder: Path
    record: RunRecord
    weights: dict[str, Any]

    @property
    def info(self) -> RunInfo:
        """What its record says of the run."""
        assert self.record.info is not None
        return self.record.info

    @property
    def assessment(self) -> Assessment:
        """What it is worth."""
        assert self.info.assessment is not None
        return self.info.assessment

    @property
    def solved(self) -> bool | None:
        """Whether it solves its environment; None where that is not known."""
        return self.assessment.anchors.solved(self.info.deterministic_return, self.assessment.successes)

    @property
    def bytes(self) -> int:
        """Size of all of its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @classmethod
    def read(cls, folder: Path) -> "Entry":
        """Read what ``add`` wrote.

        Raises:
            DatasetFormatError: a file is missing, damaged, or not the one that was written.
        """
        record = RunRecord.read(folder)
        try:
            values = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']}, this version of ldm_hf reads {FORMAT}")
            if record.info is None or record.info.assessment is None:
                raise ValueError("its record does not say what it is worth")
            for file in record.files:
                if sha256(folder / file.path) != file.sha256:
                    raise ValueError(f"{file.path} is not the file that was written")
            return cls(folder, record, values["weights"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetFormatError(f"{folder} is not a policy of a bank: {' '.join(str(error).split())}") from error

    def write(self, folder: Path) -> None:
        """Write ``run.json`` and ``bank.json``."""
        self.record.write(folder)
        (folder / ENTRY).write_text(json.dumps({"format": FORMAT, "weights": self.weights}), encoding="utf-8")


def read_bank(bank: Path, environments: Sequence[str] | None = None) -> list[Entry]:
    """The policies of a bank, sorted by environment.

    Args:
        bank: its folder.
        environments: ids, and slugs of libraries; by default all.

    Raises:
        DatasetFormatError: there is no bank, or an entry of it is damaged.
        ConfigError: it has none of an environment or library.
    """
    found = [Entry.read(path.parent) for path in sorted(bank.glob(f"*/*/{ENTRY}"))]
    if not found:
        raise DatasetFormatError(f"{bank} holds no policies: there is no <library>/<environment>/{ENTRY} in it")
    if not environments:
        return found
    chosen = [one for one in found if {one.info.environment, one.folder.parent.name} & set(environments)]
    known = {one.info.environment for one in chosen} | {one.folder.parent.name for one in chosen}
    missing = [name for name in environments if name not in known]
    if missing:
        raise ConfigError(f"{bank} has no policy of {', '.join(missing)}; `ldm bank show` lists what it has")
    return chosen


def best_runs(runs: Path) -> list[Path]:
    """The folder of the best kept run of each environment, in a data folder, a folder of such, or one library's repository.

    The best is the one whose policy returns most, acting deterministically.

    Raises:
        DatasetFormatError: there are no runs, or a record is damaged.
    """
    best: dict[str, tuple[float, Path]] = {}
    environments = sorted({path.parent.parent for path in runs.rglob(RECORD) if ".partial-" not in str(path)})
    for folder in environments:
        for record in read_records(folder):
            if record.dropped is None and record.info is not None:
                value = record.info.deterministic_return
                value = record.info.last10 if np.isnan(value) else value
                if value > best.get(record.environment, (-np.inf, folder))[0]:
                    best[record.environment] = value, folder / record.run
    if not best:
        raise DatasetFormatError(
            f"{runs} holds no runs that were kept: there is no <config>/<run>/{RECORD} of one in it"
        )
    return [folder for _, (_, folder) in sorted(best.items())]


def reference_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """The folders of the references of banks and data folders by environment: the first that has one, the best run of it.

    Raises:
        DatasetFormatError: there are none in one of them, or one is damaged.
    """
    found: dict[str, Path] = {}
    for root in roots:
        is_bank = next(root.glob(f"*/*/{ENTRY}"), None) is not None
        folders = [entry.folder for entry in read_bank(root)] if is_bank else best_runs(root)
        for folder in folders:
            found.setdefault(RunRecord.read(folder).environment, folder / "policy")
    return found


def add(run: Path, bank: Path) -> tuple[Entry, str | None]:
    """Take the policy of a run into a bank, in the place of one of the same environment that is not as good.

    It is played again, and what is kept is what was played: without weights that do not act, and rounded to 16 bits where it
    then acts the same. A flagged one is not taken.

    Returns:
        What was found of it; and why it was not taken, or None.

    Raises:
        DatasetFormatError, CheckpointError, ConfigError: the run, or what the bank holds of its environment, cannot be read.
        UnknownEnvironmentError, EnvironmentFailure: it cannot be played.
        StorageError: the disk is full.
    """
    from ldm_hf.dataset_builder.bank.compact import save_compact
    from ldm_hf.dataset_builder.bank.policies import load_policy
    from ldm_hf.dataset_builder.bank.rollouts import score
    from ldm_hf.dataset_builder.bank.sources import open_source

    record = RunRecord.read(run)
    described = spec(record.environment)
    policy, info = open_source(str(run), described)
    if info is None:
        raise DatasetFormatError(f"{run} is a run that failed")
    folder = environment_folder(bank, record.environment)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    with _no_empty_folder(folder.parent), scratch_folder(folder) as scratch:
        weights = save_compact(policy, record.environment, info.seed, scratch / POLICY_FOLDER)
        played = score(load_policy(scratch / POLICY_FOLDER, described), record.environment, info.seed)
        assessed = Assessment.of(played, measure_anchors(record.environment))
        info = replace(info, deterministic_returns=played.returns, assessment=assessed)
        entry = Entry(folder, replace(record, info=info, files=describe_files(scratch)), weights)
        if assessed.flags:
            return entry, f"flagged: {'; '.join(assessed.flags)}"
        value = info.deterministic_return
        if (folder / ENTRY).is_file() and (held := Entry.read(folder).info.deterministic_return) >= value:
            return entry, f"returns {value:.4g}, what the bank holds {held:.4g}"
        entry.write(scratch)
        with replacing(folder) as temporary:
            scratch.rename(temporary)
    return entry, None


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a folder at the end if there is nothing in it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def add_all(runs: Path, bank: Path, say: Callable[[str], None]) -> int:
    """Take the best run of each environment into a bank; one that cannot be played does not keep the others out.

    Args:
        runs: as of ``best_runs``.
        bank: folder of the bank.
        say: called with a line for each environment.

    Returns:
        How many were taken.

    Raises:
        LDMError: as ``add``, but for environments that break.
    """
    taken = 0
    for run in best_runs(runs):
        name = f"{RunRecord.read(run).environment}, run {run.name}"
        try:
            entry, reason = add(run, bank)
        except EnvironmentFailure as failure:
            reason = str(failure)
        if reason is None:
            taken += 1
            dtype = entry.weights.get("dtype", "a function")
            say(f"{name}: taken, it returns {entry.info.deterministic_return:.4g} ({dtype}, {entry.bytes:,} bytes)")
        else:
            say(f"{name}: not taken, {reason}")
    return taken


def judge(bank: Path, environments: Sequence[str] | None, say: Callable[[str], None]) -> int:
    """Judge the policies of a bank by what random and trivial policies get in the libraries as they are installed now.

    Nothing is played but these, and only where that was not done before; the policies' own episodes are those of the bank.
    An environment that cannot be made or breaks keeps what was found before.

    Args:
        bank: its folder.
        environments: as of ``read_bank``.
        say: called with a line for each policy whose flags are others now, or that could not be judged.

    Returns:
        How many have a flag now.

    Raises:
        LDMError: as ``read_bank``, or the disk is full.
    """
    flagged = 0
    for entry in read_bank(bank, environments):
        before = entry.assessment
        try:
            after = before.by(measure_anchors(entry.info.environment), entry.info.deterministic_returns)
        except (EnvironmentFailure, UnknownEnvironmentError) as failure:
            after = before
            say(f"{entry.info.environment}: as before, {failure}")
        flagged += bool(after.flags)
        if after.flags != before.flags:
            say(f"{entry.info.environment}: {'; '.join(after.flags) or 'no flag any more'}")
        if after != before:
            replace(entry.record, info=replace(entry.info, assessment=after)).write(entry.folder)
    return flagged


def requests(
    bank: Path,
    environments: Sequence[str] | None,
    timesteps: int,
    seed: int = 0,
    noise: tuple[float, ...] = (),
    actor: str | None = None,
) -> list[RolloutRequest]:
    """What makes data again from the policies of a bank; raises as ``read_bank``."""
    return [
        RolloutRequest(
            entry.info.environment,
            str(entry.folder),
            timesteps,
            seed,
            noise,
            keep="better",
            run=run_name(entry.info.run.partition("-rollouts-")[0], seed, actor),
            actor=actor,
        )
        for entry in read_bank(bank, environments)
    ]


COLUMNS = (
    *("environment", "spaces", "trained for", "random", "best trivial", "policy"),
    *("known good", "share", "solved", "made by", "kB", "flags"),
)
"""Of the table of a bank."""


def rows(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    """The table of a bank, a row an entry, as texts."""
    for entry in entries:
        info, anchors = entry.info, entry.assessment.anchors
        trivial, share = anchors.best_trivial, anchors.share(info.deterministic_return)
        yield (
            info.environment,
            f"{info.observation_space['type']} → {info.action_space['type']}",
            f"{info.num_transitions:,}" if info.curve.order != BY_POLICY else "",
            f"{anchors.random.mean:.4g}",
            "" if trivial is None else f"{trivial[1].mean:.4g}",
            f"{info.deterministic_return:.4g}",
            "" if anchors.known is None else f"{anchors.known.good:.4g}",
            "" if share is None else f"{share:.0%}",
            {None: "", True: "yes", False: "no"}[entry.solved],
            info.run.partition("-rollouts-")[0],
            f"{entry.bytes / 1000:.0f}",
            "; ".join(entry.assessment.flags),
        )


def summary(entries: Sequence[Entry]) -> str:
    """A line on a whole bank."""
    libraries = {entry.folder.parent.name for entry in entries}
    known = [entry.solved for entry in entries if entry.solved is not None]
    size, flagged = sum(entry.bytes for entry in entries) / 1e6, sum(bool(entry.assessment.flags) for entry in entries)
    return (
        f"{len(entries)} environments of {len(libraries)} libraries, {size:.1f} MB; {len(known)} with a known good score, "
        f"{sum(known)} of them solved; {flagged} with a flag"
    )
