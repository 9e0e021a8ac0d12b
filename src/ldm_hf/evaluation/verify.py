"""Plays again what a model's report says, on other seeds, and compares."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.lineage import REPORT
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import EVALUATION_SEED, Protocol, RolloutResult
from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.results import EnvironmentResult
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.evaluation.scores import Interval, mean_interval
from ldm_hf.hub.model_card import weights_hash
from ldm_hf.hub.pretrained import load_pretrained

AGREES, DIFFERS, FAILED, NOT_PLAYED = "agrees", "differs", "failed", "not played"

LEVEL = 0.05
"""Probability that some environment of a verification is said to differ though none does."""

MARGIN = 0.01
"""Share of the reference's improvement by which means may differ whatever a test says: other processors round otherwise."""

_PERMUTATIONS = 9999
_FINEST = 4
"""Times that the smallest p of a test, after correction, fits into ``LEVEL``: many environments take more permutations."""


@dataclass(frozen=True)
class Verification:
    """What became of a published figure.

    Attributes:
        environment: its id.
        published: mean return of the report.
        again: mean return of the episodes that were played now; None where there are none.
        interval: the 95 % interval of that.
        verdict: ``AGREES``, ``DIFFERS``, ``FAILED`` or ``NOT_PLAYED``.
        reason: of the last three, in a line.
    """

    environment: str
    published: float
    again: float | None
    interval: Interval | None
    verdict: str
    reason: str = ""


def verify(
    folder: Path,
    *,
    sample: int | None = None,
    minutes: float = float("inf"),
    seed: int | None = None,
    progress: Callable[[str, int, int], None] = lambda environment, done, total: None,
) -> Iterator[Verification]:
    """Play environments of a model's own report again, and compare returns.

    Means differ where a permutation test of the episodes says so at 5 %, corrected for the number of environments
    (Bonferroni), and where more than 1 % of the reference's improvement lies between them.

    Args:
        folder: of the model, with its ``report.json``.
        sample: how many environments, drawn at random; by default all.
        minutes: after which no further episode is waited for.
        seed: of the protocol and of the draw; by default the one after the report's.
        progress: told an environment, how many of its episodes ended, and of how many.

    Raises:
        ConfigError: there is no report, or it is of other weights.
        DatasetFormatError: the report cannot be read.
        CheckpointError: the folder holds no Large Decision Model.
    """
    model, processor = load_pretrained(folder)
    report = _report(folder)
    first = int(report.protocol.get("seed", EVALUATION_SEED))
    protocol = Protocol(
        int(report.protocol["episodes"]),
        int(report.protocol["rollouts"]),
        (first - EVALUATION_SEED) // 1000 + 1 if seed is None else seed,
    )
    published = [result for result in report.environments if result.mean_return is not None]
    generator = random.Random(protocol.seed)
    chosen = generator.sample(published, len(published) if sample is None else min(sample, len(published)))
    player, deadline = ModelPlayer(model, processor), time.monotonic() + 60 * minutes
    for result in chosen:
        total = protocol.episodes * protocol.rollouts

        def watch(environment: str, done: int, total: int = total) -> None:
            progress(environment, done, total)
            if done < total and time.monotonic() > deadline:
                raise _OutOfTimeError(f"the time was over after {done} of {total} episodes")

        try:
            if time.monotonic() > deadline:
                raise _OutOfTimeError("the time was over")
            (played,) = roll_out(player, [result.id], protocol, progress=watch)
        except _OutOfTimeError as error:
            yield Verification(result.id, _mean(result), None, None, NOT_PLAYED, str(error))
        else:
            yield compare(result, played, len(chosen))


def compare(result: EnvironmentResult, played: RolloutResult, comparisons: int) -> Verification:
    """Compare the episodes of a report with others.

    Args:
        result: of the report.
        played: the others.
        comparisons: how many environments are compared, for the correction.
    """
    from scipy import stats

    published = _mean(result)
    if played.failure is not None:
        return Verification(result.id, published, None, None, FAILED, str(played.failure))
    before, now = ([value for rollout in returns for value in rollout] for returns in (result.returns, played.returns))
    mean, interval = float(np.mean(now)), mean_interval(now)
    difference, margin = abs(mean - published), MARGIN * max(0.0, result.last10 - result.first10)
    if difference <= max(margin, 1e-6 * abs(published)):
        return Verification(result.id, published, mean, interval, AGREES)
    test = stats.permutation_test(
        (before, now),
        lambda one, other, axis: np.mean(one, axis) - np.mean(other, axis),
        n_resamples=max(_PERMUTATIONS, math.ceil(_FINEST * 2 * comparisons / LEVEL)),
        batch=_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    corrected = min(1.0, float(test.pvalue) * comparisons)
    if corrected >= LEVEL:
        return Verification(result.id, published, mean, interval, AGREES)
    return Verification(result.id, published, mean, interval, DIFFERS, f"p = {corrected:.2g} after correction")


class _OutOfTimeError(Exception):
    """No further episode is waited for."""


def _mean(result: EnvironmentResult) -> float:
    assert result.mean_return is not None  # others are not chosen
    return result.mean_return


def _report(folder: Path) -> Report:
    if not (folder / REPORT).is_file():
        raise ConfigError(f"{folder} has no {REPORT}: there is nothing to verify; `ldm evaluate` makes one")
    report = Report.load(folder / REPORT)
    known = report.model.get("weights_sha256")
    if known is not None and known != weights_hash(folder):
        raise ConfigError(f"{folder / REPORT} is of other weights than the folder holds")
    return report
