"""Why a reference is degenerate: reasons not to imitate it, whatever its learning curve says."""

import math
from collections.abc import Sequence

import numpy as np

from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.anchors.playing import Conduct
from ldm_hf.dataset_builder.curves import Sample, significantly_higher

_ROUNDING = 1e-9
ALIKE = "because every episode begins alike"
"""How the one reason ends that lies in the environment: no other run on it is without."""

SAME = 1e-3
"""Share of a return within which returns of one start are one number: rounding depends on what is computed beside it, and
grows along an episode."""

BARELY = 0.01
"""Share of the way from random to known good below which nothing was learned, however significant the difference."""

EARLY = 0.5
"""Share of a random policy's mean length below which episodes end early."""


def flags(
    returns: Sequence[float],
    lengths: Sequence[int],
    conduct: Conduct | None,
    anchors: Anchors,
    successes: Sequence[bool] = (),
) -> list[str]:
    """The reasons why a reference is degenerate, one line each; none of one that may be imitated.

    - It is not significantly better (Welch's t-test at 5 %) than a random policy or the best trivial one.
    - It has come less than 1 % of the way from random to known good.
    - It ends its episodes early while steps cost: they are less than half as long as a random policy's, rewards are
      negative, the step that ends an episode costs even more, and known good is not reached. Where all steps cost the same,
      ending episodes soon is what the rewards ask for.
    - It always does the same.
    - Its returns are one number, to three digits, because every episode begins alike.

    Args:
        returns, lengths: of the reference's deterministic episodes; at least one. No lengths where they are not known.
        conduct: how it acted in them; None where that is not known, so that two of the rules cannot be asked.
        anchors: of the environment.
        successes: whether each of the episodes succeeded, where the environment says so.
    """
    found = []
    reached = Sample.of(returns)
    best = anchors.best_trivial
    if not _better(reached, anchors.random):
        found.append(f"is no better than random: {reached.mean:.4g} against {anchors.random.mean:.4g}")
    elif best is not None and not _better(reached, best[1]):
        found.append(f"is no better than a trivial policy, {best[0]}: {reached.mean:.4g} against {best[1].mean:.4g}")
    elif (share := anchors.share(reached.mean)) is not None and share < BARELY:
        found.append(f"is {share:.1%} of the way from random to known good: {reached.mean:.4g}")
    length, usual = float(np.mean(lengths)) if lengths else math.inf, anchors.random_length.mean
    if (
        conduct is not None
        and length < EARLY * usual
        and _pays(conduct)
        and not anchors.solved(reached.mean, successes)
    ):
        found.append(f"ends its episodes after {length:.3g} steps, a random policy after {usual:.3g}, while steps cost")
    if conduct is not None and conduct.only_action and conduct.steps > 1:
        found.append(f"always does the same: {conduct.only_action}")
    if len(returns) > 1 and anchors.starts == 1 and np.ptp(returns) <= SAME * abs(returns[0]):
        found.append(f"returns {returns[0]:.4g} in every episode, {ALIKE}")
    return found


def _better(one: Sample, other: Sample) -> bool:
    """Significantly higher, and by more than rounding, which tells returns apart that do not vary."""
    return significantly_higher(one, other) and one.mean - other.mean > _ROUNDING * max(1.0, abs(other.mean))


def _pays(conduct: Conduct) -> bool:
    """Whether steps cost, and the one that ends an episode more than the others: a penalty, and no goal."""
    last, other = conduct.last_reward, conduct.other_reward
    if last is None:
        return False
    return last < 0 if other is None else other < 0 and last < other * (1 + 1e-6)
