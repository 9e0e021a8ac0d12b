"""Which runs are kept, and why the others are not (paper section 4.2, and two rules more)."""

from collections.abc import Mapping

from ldm_hf.dataset_builder.curves import WINDOW, LearningCurve, Sample, significantly_higher

NEAR_BEST = 0.95
"""Share of the best run's improvement that a run must reach (paper section 4.2)."""

DETERMINISTIC_TOLERANCE = 0.05
"""Share of its improvement by which the deterministic policy may always stay below the training return."""


def unfit(curve: LearningCurve, deterministic: Sample | None, random: Sample | None = None) -> str | None:
    """Why a run is dropped on its own account, or None.

    A run must improve: the returns of the last 10 % of its episodes are significantly above those of the first 10 %.
    And, which the paper does not ask: its deterministic policy, whose actions are the labels, must not fall short of its
    training, significantly and by more than ``DETERMINISTIC_TOLERANCE`` of the improvement.

    A short run, whose first "10 %" are ten episodes or fewer and may be half of the run, can learn most within them. Its
    last episodes need only be higher, if they are significantly above those of a random policy.

    Args:
        curve: of the run.
        deterministic: returns of the final policy acting deterministically, or None to leave that rule out.
        random: returns of a random policy, where they are known.
    """
    first, last = curve.first, curve.last
    learned_early = (
        random is not None and first.size <= WINDOW and last.mean > first.mean and significantly_higher(last, random)
    )
    if not learned_early and not significantly_higher(last, first):
        few = ", too few to tell" if first.size < 2 else ""
        return (
            f"no significant improvement: {first.mean:.4g} in the first and {last.mean:.4g} in the last "
            f"{last.size} episodes{few}"
        )
    if deterministic is None:
        return None
    wanted = last.mean - DETERMINISTIC_TOLERANCE * (last.mean - first.mean)
    if deterministic.mean < wanted and significantly_higher(last, deterministic):
        return f"the deterministic policy returns {deterministic.mean:.4g}, its training {last.mean:.4g}"
    return None


def unfit_policy(random: Sample, deterministic: Sample) -> str | None:
    """Why a policy that learned elsewhere, or nothing at all, is dropped; None if it does better than a random one.

    Args:
        random: returns of a random policy.
        deterministic: returns of the policy acting deterministically.
    """
    if significantly_higher(deterministic, random):
        return None
    return f"no better than random: it returns {deterministic.mean:.4g}, a random policy {random.mean:.4g}"


def below_best(curves: Mapping[str, LearningCurve]) -> dict[str, str]:
    """The runs of one environment, by name, that fall short of its best run, each with the reason.

    The paper keeps runs within 95 % of the best return. Returns may be negative, so it is the improvement that is compared:
    0 % is where the best run started, 100 % where it ended, exactly as a model is scored.

    Args:
        curves: of the runs that are fit by themselves.
    """
    if not curves:
        return {}
    winner = max(curves, key=lambda name: curves[name].last.mean)
    start, end = curves[winner].first.mean, curves[winner].last.mean
    shares = {name: (curve.last.mean - start) / (end - start) for name, curve in curves.items()}
    return {
        name: f"reaches {share:.1%} of the best run, {winner}: {curves[name].last.mean:.4g} of {end:.4g}"
        for name, share in shares.items()
        if share < NEAR_BEST
    }
