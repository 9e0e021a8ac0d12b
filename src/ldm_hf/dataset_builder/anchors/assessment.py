"""What a reference policy is worth: its deterministic episodes beside those of random and trivial policies."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ldm_hf.dataset_builder.anchors.anchors import Anchors, measure_anchors
from ldm_hf.dataset_builder.anchors.flags import flags
from ldm_hf.dataset_builder.anchors.playing import Conduct, Episodes
from ldm_hf.errors import LDMError


@dataclass(frozen=True)
class Assessment:
    """What is kept of a reference beside its returns.

    Attributes:
        lengths: of its deterministic episodes, in steps.
        conduct: how it acted in them.
        anchors: of the environment, with the best of the trivial policies only.
        flags: the reasons why it is degenerate; none of one that may be imitated.
        successes: whether each of its deterministic episodes succeeded, where the environment says so; empty elsewhere.
    """

    lengths: list[int]
    conduct: Conduct
    anchors: Anchors
    flags: list[str]
    successes: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, episodes: Episodes, anchors: Anchors) -> "Assessment":
        """Assess the episodes of a policy that acted deterministically."""
        unjudged = cls(episodes.lengths, episodes.conduct, anchors, [], episodes.successes)
        return unjudged.by(anchors, episodes.returns)

    def by(self, anchors: Anchors, returns: Sequence[float]) -> "Assessment":
        """The same episodes, whose returns these are, judged by other anchors, such as those of another installation."""
        found = flags(returns, self.lengths, self.conduct, anchors, self.successes)
        best = anchors.best_trivial
        kept = replace(anchors, trivial={} if best is None else dict([best]))
        return replace(self, anchors=kept, flags=found)

    def to_json(self) -> dict[str, Any]:
        """The assessment as plain data; known scores are the package's."""
        return {**asdict(self), "anchors": self.anchors.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Assessment":
        """Read what ``to_json`` gave."""
        anchors = Anchors.from_json(values["anchors"])
        successes = values.get("successes", [])  # which earlier versions did not ask for
        return cls(values["lengths"], Conduct(**values["conduct"]), anchors, values["flags"], successes)


def assess(episodes: Episodes, environment: str) -> Assessment | None:
    """Assess the deterministic episodes of a reference beside the anchors of its environment, which may be measured first.

    None where these cannot be measured: an environment that breaks under some trivial policy costs nobody a trained run.
    """
    try:
        return Assessment.of(episodes, measure_anchors(environment))
    except LDMError:
        return None
