"""Why a model falls short where it does: what it finds on its reference's own paths, and whether that can be found.

    python -m ldm_hf.experiments.failures pretrained/ldm-base --data runs/base-data --fresh runs/base-fresh --below 1

Of each environment whose score in the model's ``report.json`` is below ``--below``, on windows of the recorded transitions:

- *found*: how far the model's actions are the labels, given the recorded history. Of discrete slots the share that is equal,
  of continuous ones the share of the labels' variance that is explained (R2, at least 0).
- *fresh*: the same on rollouts of other seeds, which it was not trained on.
- *alike*: of pairs of the same observation, to the bit, in different chunks of the recording, the share with the same label.
  What pairs disagree in is not to be seen in an observation: it takes memory, or is luck. Where there are fewer than 200
  pairs nothing is given, and labels may be ambiguous all the same.

The cause is named by a rule: pairs disagree in more than a tenth, *ambiguous*; else less than 0.9 is found, *not learned*;
else fresh paths lose more than 0.05, *overfitted*; else *off the path*: the labels are known where the reference goes, and
errors lead elsewhere.

Before the table stands how many environments a perfect copy of all references would match in expectation: where its mean is
theirs, the mean of as many episodes as were played is below it half of the time.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.evaluation.lineage import published_references
from ldm_hf.evaluation.results import TRAINED, EnvironmentResult
from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.modeling.processing_ldm import TokenSequence
from ldm_hf.modeling.quantization_ldm import ActionCode
from ldm_hf.modeling.spaces_ldm import CONTINUOUS, Transitions
from ldm_hf.training.batches import model_inputs

AMBIGUOUS, LEARNED, OVERFITTED = 0.1, 0.9, 0.05
WINDOWS, LEAST_PAIRS = 48, 200
_SAME = 1e-9  # of a return: two numbers are one


@dataclass(frozen=True)
class Finding:
    """What was measured in an environment; shares from 0 to 1."""

    environment: str
    score: float
    found: float
    fresh: float | None
    alike: float | None

    @property
    def cause(self) -> str:
        """By the rule above."""
        if self.alike is not None and self.alike < 1 - AMBIGUOUS:
            return "ambiguous"
        if self.found < LEARNED:
            return "not learned"
        if self.fresh is not None and self.fresh < self.found - OVERFITTED:
            return "overfitted"
        return "off the path"


def perfect_matches(results: Sequence[EnvironmentResult]) -> float:
    """How many environments a perfect copy of the references, acting deterministically, matches in expectation.

    The mean of as many episodes as the model played is taken as normal, around the reference's deterministic return, with
    the spread of the model's own returns, as the report has none of the reference's.
    """
    expected = 0.0
    for result in results:
        returns = np.concatenate(result.returns)
        center = result.last10 if result.deterministic_return is None else result.deterministic_return
        error, margin = float(np.std(returns, ddof=1) / np.sqrt(len(returns))), center - result.last10
        if error > _SAME * max(1.0, abs(center)):
            expected += NormalDist(0, error).cdf(margin)
        else:
            expected += margin >= -_SAME * max(1.0, abs(center))
    return expected


def windows(dataset: EnvironmentDataset, processor: LDMProcessor, length: int) -> Iterator[TokenSequence]:
    """The beginnings of chunks that are evenly spaced over a dataset."""
    layouts = processor.observation_layout(dataset.observation_space), processor.action_layout(dataset.action_space)
    for index in np.unique(np.linspace(0, dataset.num_chunks - 1, WINDOWS).astype(int)):
        yield processor.align(dataset.chunk(int(index))[:length], *layouts)


@torch.no_grad()
def found(model: LDMModel, processor: LDMProcessor, dataset: EnvironmentDataset) -> float:
    """How far the model's most likely actions are the labels, on windows as long as its context."""
    chosen, wanted = [], []
    sequences = list(windows(dataset, processor, model.config.max_position_embeddings))
    for start in range(0, len(sequences), 16):
        batch = model_inputs(processor, sequences[start : start + 16])
        labels = batch.pop("labels")
        kinds, bounds = batch["action_kinds"].unsqueeze(1), batch["action_bounds"].unsqueeze(1)
        bins = model(**batch).logits.argmax(-1)
        actions = ActionCode.of(model.config).decode(bins, kinds, bounds)
        labelled = ~labels.isnan().any(-1)
        chosen.append(actions[labelled])
        wanted.append(labels[labelled])
    continuous = sequences[0].action_layout.kinds == CONTINUOUS
    return agreement(torch.cat(chosen).numpy(), torch.cat(wanted).numpy(), continuous)


def agreement(chosen_NA: np.ndarray, wanted_NA: np.ndarray, continuous_A: np.ndarray) -> float:
    """The mean over slots: the share that is equal, or the explained share of the variance."""
    shares = []
    for chosen_N, wanted_N, continuous in zip(chosen_NA.T, wanted_NA.T, continuous_A, strict=True):
        if continuous:
            error, spread = np.mean((chosen_N - wanted_N) ** 2), np.var(wanted_N)
            shares.append(max(0.0, 1 - float(error / spread)) if spread > 0 else float(error < 1e-6))
        else:
            shares.append(float(np.mean(chosen_N == wanted_N)))
    return float(np.mean(shares))


def alike(dataset: EnvironmentDataset) -> float | None:
    """Of transitions whose observation, to the bit, was seen in a chunk before: the share with the label of then."""
    labels: dict[bytes, tuple[int, np.ndarray]] = {}
    equal: list[bool] = []
    for index in range(dataset.num_chunks):
        transitions: Transitions = dataset.chunk(index)
        wanted_TA = transitions.reference_actions
        assert wanted_TA is not None
        for step, wanted in enumerate(wanted_TA):
            image = b"" if transitions.images is None else transitions.images[step].tobytes()
            key = transitions.observations[step].tobytes() + image
            before = labels.get(key)
            if before is not None and before[0] != index:
                equal.append(bool(np.allclose(before[1], wanted, atol=1e-3)))
            labels[key] = (index, wanted)
    return float(np.mean(equal)) if len(equal) >= LEAST_PAIRS else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder of a model, with its report.json.")
    parser.add_argument("--data", required=True, help="What it was trained on.")
    parser.add_argument("--fresh", help="Rollouts of other seeds.")
    parser.add_argument("--below", type=float, default=1.0, help="Score below which an environment is looked at.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, processor = load_pretrained(options.model)
    model.eval()
    results = [each for each in published_references(Path(options.model)) if each.training == TRAINED]
    scored = [(each, each.normalized_score) for each in results if each.normalized_score is not None]
    scores = {each.id: score for each, score in scored if score < options.below}
    matched, expected = sum(score >= 1 for _, score in scored), perfect_matches([each for each, _ in scored])
    print(f"{matched} of {len(scored)} are matched; a perfect copy of the references would match {expected:.0f}")
    recorded = {each.environment: each for each in open_datasets(options.data)}
    fresh = {} if options.fresh is None else {each.environment: each for each in open_datasets(options.fresh)}
    findings = [
        Finding(
            name,
            value,
            found(model, processor, recorded[name]),
            found(model, processor, fresh[name]) if name in fresh else None,
            alike(recorded[name]),
        )
        for name, value in sorted(scores.items(), key=lambda item: item[1])
        if name in recorded
    ]
    columns = ("environment", "score", "found", "fresh", "alike", "cause")
    rows = [
        [each.environment, f"{each.score:.0%}", *map(_share, (each.found, each.fresh, each.alike)), each.cause]
        for each in findings
    ]
    print_table("where the model falls short", columns, rows)
    write_json(options.json, {each.environment: {**each.__dict__, "cause": each.cause} for each in findings})


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
