"""What a model's episodes are measured against: reference runs, known from their data or from a report of the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm_hf.dataset_builder.anchors.anchors import Anchors, measure_anchors
from ldm_hf.errors import LDMError
from ldm_hf.evaluation.results import NOT_MEASURED, SEEN_SEED, EnvironmentResult, judge, judge_again
from ldm_hf.evaluation.versions import differences, versions_here, versions_of_data
from ldm_hf.modeling.spaces_ldm import SlotLayout

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
    from ldm_hf.dataset_builder.format.schema import RunInfo
    from ldm_hf.evaluation.protocol import Protocol, RolloutResult


class ReferenceOfData:
    """A reference whose data are here. A random policy is played, unless one was before.

    Attributes:
        environment: its id.
        key: what its scores depend on; results measured against another are not kept.
        expected_length: mean length of an episode, in steps.
        has_image: whether observations have an image.
    """

    def __init__(self, dataset: "EnvironmentDataset"):
        self._info, self._runs = dataset.info, dataset.runs
        self.environment = dataset.environment
        self.key: list[Any] = [self._info.run, self._info.first10, self._info.last10]
        self.expected_length = self._info.num_transitions / max(1, self._info.num_episodes)
        self.has_image = SlotLayout.of(self._info.observation_space).image is not None

    def judged(self, played: "RolloutResult", protocol: "Protocol", training: str) -> EnvironmentResult:
        """The result of a model's rollouts; ``training`` says whether it was trained on the environment."""
        info, anchors = self._info, None
        notes = [SEEN_SEED] if any(_shares_seeds(run, protocol) for run in self._runs) else []
        versions, failure = {"data": versions_of_data(info)}, _reason(played)
        try:
            versions["evaluation"] = versions_here(self.environment)
            if failure is None:
                anchors = environment_anchors(info, protocol.step_timeout)
        except LDMError as error:
            notes.append(f"{NOT_MEASURED}: {error}")
        judged = judge(
            info,
            played.returns,
            played.lengths,
            None if anchors is None else anchors.random,
            failure,
            anchors,
            played.successes,
            training=training,
            versions=versions,
            differences=differences(versions["data"], versions.get("evaluation", {})),
        )
        return replace(judged, flags=[*judged.flags, *notes])


class ReferenceOfReport:
    """A reference as a report shows it: its scores, and those of random and trivial policies, are taken from there.

    Attributes as of ``ReferenceOfData``.
    """

    def __init__(self, result: EnvironmentResult):
        self._result = result
        self.environment = result.id
        self.key: list[Any] = ["report", result.first10, result.last10]
        lengths = [length for rollout in result.lengths for length in rollout]
        self.expected_length = sum(lengths) / max(1, len(lengths))
        self.has_image = "image" in result.observation_kind

    def judged(self, played: "RolloutResult", protocol: "Protocol", training: str) -> EnvironmentResult:
        """As of ``ReferenceOfData``."""
        made = self._result.versions.get("data", {})
        versions, notes = {"data": made}, []
        try:
            versions["evaluation"] = versions_here(self.environment)
        except LDMError as error:
            notes.append(f"what runs it here is not known: {error}")
        judged = judge_again(
            self._result,
            played.returns,
            played.lengths,
            _reason(played),
            played.successes,
            training=training,
            versions=versions,
            differences=differences(made, versions.get("evaluation", {})),
        )
        return replace(judged, flags=[*judged.flags, *notes])


Reference = ReferenceOfData | ReferenceOfReport


def known_references(found: "Sequence[EnvironmentDataset] | Sequence[EnvironmentResult]") -> list[Reference]:
    """References of datasets, or of the results of a report."""
    return [ReferenceOfReport(one) if isinstance(one, EnvironmentResult) else ReferenceOfData(one) for one in found]


def environment_anchors(info: "RunInfo", step_timeout: float) -> Anchors:
    """The anchors of an environment as it runs here; the trivial policies are those that were played for the reference.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: as ``measure_anchors``.
    """
    anchors = measure_anchors(info.environment, trivial=False, step_timeout=step_timeout)
    if anchors.trivial or info.assessment is None:
        return anchors
    return replace(anchors, trivial=info.assessment.anchors.trivial)


def _reason(played: "RolloutResult") -> str | None:
    return None if played.failure is None else str(played.failure)


def _shares_seeds(run: "RunInfo", protocol: "Protocol") -> bool:
    """Whether a rollout begins with the seed of one of the environments that a run was recorded in."""
    recorded = range(run.seed, run.seed + run.num_streams)
    return any(protocol.first_seed(rollout) in recorded for rollout in range(protocol.rollouts))
