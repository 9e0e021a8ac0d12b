"""What a model's rollouts in one environment are worth: scores, intervals, and what speaks against scoring."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.curves import BY_END, Sample, significantly_higher
from ldm_hf.env_registry.known_scores import KnownScore, known_score
from ldm_hf.evaluation.scores import mean_interval, normalized_score
from ldm_hf.modeling.spaces_ldm import CONTINUOUS, SlotLayout

if TYPE_CHECKING:  # rollouts do without what reads datasets
    from ldm_hf.dataset_builder.format.schema import RunInfo

TRAINED, HELD_OUT, UNSEEN_LIBRARY, UNKNOWN = "trained on", "held out", "unseen library", "unknown"
"""How an environment relates to the training data; ``HELD_OUT`` ones share their library with some that were trained on."""

RELATIONS = (TRAINED, HELD_OUT, UNSEEN_LIBRARY, UNKNOWN)

NO_IMPROVEMENT = "the reference did not improve"
NOT_ABOVE_RANDOM = "the reference is no better than random"
CURVE_BY_END = "0 % and 100 % are of episodes in the order of their ends, which favours short ones at the start"
NOT_MEASURED = "a random policy was not measured"
SEEN_SEED = "an evaluation seed was used to make the data"
SINGLE_START = "every episode begins alike: nothing is said of other starts"
DETERMINISTIC_NOT_ABOVE_RANDOM = "the deterministic reference is no better than random"


@dataclass(frozen=True)
class EnvironmentResult:
    """A model's result on one environment, beside its reference. Intervals are of 95 %.

    Attributes:
        id: of the environment.
        normalized_score: 0 at ``first10``, 1 at ``last10`` (paper section 5.1); None where ``flags`` say why.
        mean_return: of the model, over all episodes; None where it failed.
        first10, last10: mean return of the first and last 10 % of the reference run's training episodes, by their start.
        deterministic_return: of the reference policy, acting as the labels do; None where that was not measured.
        returns: of every episode, by rollout.
        lengths: their steps.
        failure: why the environment has no result.
        flags: what speaks against its scores.
        return_interval: of the mean return, by a bootstrap over the episodes.
        score_interval: the same as a score; the reference is taken as it is.
        deterministic_score: 0 at ``first10``, 1 at ``deterministic_return``.
        random_score: 0 at ``random``'s mean, 1 at ``last10``.
        random: mean, standard deviation and number of a random policy's returns.
        trivial: the same of the best trivial policy, with its ``name``; None where none was played.
        observation_kind, action_kind: what the spaces are made of.
        training: ``TRAINED``, ``HELD_OUT``, ``UNSEEN_LIBRARY`` or ``UNKNOWN``.
        versions: of the library and of what ran it, under ``data`` and ``evaluation``.
        differences: one line for each of these that is not the same on both sides.
        known_good: ``good``, ``metric``, ``kind``, ``source`` and ``comparable`` of the known good score, if there is one.
        share, solved: how far the model is from a random policy (0) to known good (1), and whether that solves the
            environment; None where no score is known that can be compared.
        reference_share, reference_solved: the same of the reference, acting deterministically.
        successes: whether each of the model's episodes succeeded, by rollout, where the environment says so.
        cleared_returns: of as many episodes, each of which began with an empty context; empty where that was not measured.
    """

    id: str
    normalized_score: float | None
    mean_return: float | None
    first10: float
    last10: float
    deterministic_return: float | None
    returns: list[list[float]]
    lengths: list[list[int]] = field(default_factory=list)
    failure: str | None = None
    flags: list[str] = field(default_factory=list)
    return_interval: list[float] | None = None
    score_interval: list[float] | None = None
    deterministic_score: float | None = None
    random_score: float | None = None
    random: dict[str, float] | None = None
    trivial: dict[str, Any] | None = None
    observation_kind: str = UNKNOWN
    action_kind: str = UNKNOWN
    training: str = UNKNOWN
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    known_good: dict[str, Any] | None = None
    share: float | None = None
    solved: bool | None = None
    reference_share: float | None = None
    reference_solved: bool | None = None
    successes: list[list[bool]] = field(default_factory=list)
    cleared_returns: list[float] = field(default_factory=list)

    @property
    def cleared_mean(self) -> float | None:
        """Mean return of the episodes that began with an empty context; None where there are none."""
        return float(np.mean(self.cleared_returns)) if self.cleared_returns else None

    @property
    def context_verdict(self) -> str:
        """Whether a context of earlier episodes ``helps``, ``harms`` or neither, by one-tailed Welch's t-tests.

        Empty where the episodes with an empty context were not played.
        """
        if not self.cleared_returns:
            return ""
        kept, cleared = (
            Sample.of([value for rollout in self.returns for value in rollout]),
            Sample.of(self.cleared_returns),
        )
        if significantly_higher(kept, cleared):
            return "helps"
        return "harms" if significantly_higher(cleared, kept) else "makes no difference"

    @property
    def environment(self) -> str:
        """Its id, as other things that belong to an environment name it."""
        return self.id

    @property
    def library(self) -> str:
        """Slug of the environment's library."""
        return self.id.partition("/")[0]

    @property
    def kind(self) -> str:
        """What it observes and how it acts."""
        return f"{self.observation_kind} → {self.action_kind}"

    @property
    def episode_scores(self) -> list[float]:
        """The normalised score of every episode, of an environment that has one."""
        scores = [normalized_score(value, self.first10, self.last10) for rollout in self.returns for value in rollout]
        return [score for score in scores if score is not None]


def judge(
    info: "RunInfo",
    returns: list[list[float]],
    lengths: list[list[int]],
    random: Sample | None = None,
    failure: str | None = None,
    anchors: Anchors | None = None,
    successes: list[list[bool]] | None = None,
    **known: Any,
) -> EnvironmentResult:
    """Score the returns of an environment.

    A reference counts as no better than random where a one-tailed Welch's t-test at 5 % does not say that its returns are
    above a random policy's; a score against it is None then.

    Args:
        info: of the reference run.
        returns, lengths: of the model's episodes, by rollout.
        random: returns of a random policy, None where there are none.
        failure: why the model has no result.
        anchors: of the environment, None where they were not measured.
        successes: whether each of the model's episodes succeeded, by rollout, where the environment says so.
        **known: further attributes of the result.
    """
    deterministic = None if math.isnan(info.deterministic_return) else info.deterministic_return
    flags = reference_flags(info, random) + [CURVE_BY_END] * (info.curve.order == BY_END)
    flags += [f"the reference is degenerate: it {reason}" for reason in info.flags]
    flags += [SINGLE_START] * (anchors is not None and anchors.starts == 1)
    best = None if anchors is None else anchors.best_trivial
    result = EnvironmentResult(
        info.environment,
        None,
        None,
        info.first10,
        info.last10,
        deterministic,
        [],
        flags=flags,
        random=None if random is None else vars(random),
        trivial=None if best is None else {"name": best[0], **vars(best[1])},
        observation_kind=_kind(SlotLayout.of(info.observation_space)),
        action_kind=_kind(SlotLayout.of(info.action_space, role="action")),
    )
    if anchors is not None and deterministic is not None:
        shown = () if info.assessment is None else info.assessment.successes
        solved = anchors.solved(deterministic, shown)
        result = replace(result, reference_share=anchors.share(deterministic), reference_solved=solved)
    return _with_scores(result, returns, lengths, failure, anchors, successes, **known)


def judge_again(
    result: EnvironmentResult,
    returns: list[list[float]],
    lengths: list[list[int]],
    failure: str | None = None,
    successes: list[list[bool]] | None = None,
    **known: Any,
) -> EnvironmentResult:
    """Score other episodes against the reference that a result was scored against; arguments as of ``judge``."""
    flags = [flag for flag in result.flags if not flag.startswith(NOT_MEASURED)]
    return _with_scores(
        replace(result, flags=flags), returns, lengths, failure, _anchors_of(result), successes, **known
    )


def _with_scores(
    result: EnvironmentResult,
    returns: list[list[float]],
    lengths: list[list[int]],
    failure: str | None,
    anchors: Anchors | None,
    successes: list[list[bool]] | None,
    **known: Any,
) -> EnvironmentResult:
    """A result whose reference is known, with what a model's episodes are worth beside it."""
    first10, last10, deterministic, flags = result.first10, result.last10, result.deterministic_return, result.flags
    mean = interval = score = deterministic_score = random_score = score_interval = None
    complete = successes is not None and list(map(len, successes)) == list(map(len, returns))
    told = successes if complete and successes else []
    if failure is None:
        every = [value for rollout in returns for value in rollout]
        mean, interval = float(np.mean(every)), mean_interval(every)
        if NOT_ABOVE_RANDOM not in flags:
            score = normalized_score(mean, first10, last10)
            random = result.random
            random_score = None if random is None else normalized_score(mean, random["mean"], last10)
        if deterministic is not None and DETERMINISTIC_NOT_ABOVE_RANDOM not in flags:
            deterministic_score = normalized_score(mean, first10, deterministic)
        if score is not None and interval is not None:
            score_interval = [(value - first10) / (last10 - first10) for value in interval]
    return replace(
        result,
        normalized_score=score,
        mean_return=mean,
        returns=returns,
        lengths=lengths,
        failure=failure,
        return_interval=None if interval is None else list(interval),
        score_interval=score_interval,
        deterministic_score=deterministic_score,
        random_score=random_score,
        successes=told or [],
        share=None if anchors is None or mean is None else anchors.share(mean),
        solved=None if anchors is None or mean is None else anchors.solved(mean, [one for row in told for one in row]),
        known_good=_known_good(known_score(result.id) if anchors is None else anchors.known),
        **known,
    )


def read_result(values: dict[str, Any]) -> EnvironmentResult:
    """Read a result of a report; what reports of earlier versions did not say of known good scores is worked out."""
    result = EnvironmentResult(**values)
    if "known_good" in values or result.random is None:
        return result
    anchors = _anchors_of(result)
    assert anchors is not None
    mean, deterministic = result.mean_return, result.deterministic_return
    return replace(
        result,
        known_good=_known_good(anchors.known),
        share=None if mean is None else anchors.share(mean),
        solved=None if mean is None else anchors.solved(mean),
        reference_share=None if deterministic is None else anchors.share(deterministic),
        reference_solved=None if deterministic is None else anchors.solved(deterministic),
    )


def _anchors_of(result: EnvironmentResult) -> Anchors | None:
    """The anchors that a result was scored beside, as far as it says; None where no random policy was measured."""
    if result.random is None:
        return None
    random, trivial = Sample(**result.random), {}  # type: ignore[arg-type]
    if result.trivial is not None:
        trivial = {result.trivial["name"]: Sample(**{key: result.trivial[key] for key in ("mean", "std", "size")})}
    return Anchors(result.id, random, random, trivial, known=known_score(result.id))


def _known_good(known: KnownScore | None) -> dict[str, Any] | None:
    names = ("good", "metric", "kind", "source", "comparable")
    return None if known is None else {name: getattr(known, name) for name in names}


def reference_flags(info: "RunInfo", random: Sample | None) -> list[str]:
    """What speaks against scoring by a reference run; ``random`` has a random policy's returns, where they are known."""
    flags = [] if info.last10 > info.first10 else [NO_IMPROVEMENT]
    if random is None:
        return flags
    if not significantly_higher(info.curve.last, random):
        flags.append(NOT_ABOVE_RANDOM)
    if info.deterministic_returns and not significantly_higher(Sample.of(info.deterministic_returns), random):
        flags.append(DETERMINISTIC_NOT_ABOVE_RANDOM)
    return flags


def _kind(layout: SlotLayout) -> str:
    parts = [] if layout.image is None else ["image"]
    continuous = layout.kinds == CONTINUOUS
    parts += ["continuous"] if continuous.any() else []
    parts += ["discrete"] if (~continuous).any() else []
    return " and ".join(parts) or "nothing"
