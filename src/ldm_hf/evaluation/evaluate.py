"""Evaluates a saved model on environments that have a reference, one result file each, and writes the report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.evaluation.asynchronous import roll_out_as_ready
from ldm_hf.evaluation.batches import batches
from ldm_hf.evaluation.known_references import Reference, known_references
from ldm_hf.evaluation.lineage import relation
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import Protocol, RolloutResult
from ldm_hf.evaluation.render import write_all
from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.results import EnvironmentResult
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.evaluation.showcase import record_videos
from ldm_hf.evaluation.versions import package_versions
from ldm_hf.hub.model_card import kept_metadata, model_name, weights_hash
from ldm_hf.hub.pretrained import load_pretrained, training_settings
from ldm_hf.utils.files import replacing

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.format.reader import EnvironmentDataset

Progress = Callable[[str, int], None]
"""Called with an environment and how many of its episodes have ended."""

BATCH_ROWS = 32


def evaluate(
    model_folder: Path,
    references: "Sequence[EnvironmentDataset] | Sequence[EnvironmentResult]",
    output: Path,
    protocol: Protocol = Protocol(),
    *,
    device: str = "cpu",
    batch_rows: int = BATCH_ROWS,
    videos: int = 0,
    cleared: bool = False,
    asynchronous: bool = False,
    progress: Progress = lambda environment, done: None,
) -> Report:
    """Evaluate a model folder and write ``report.json``, and what ``render.write_all`` makes of it, to ``output``.

    An environment whose result is in ``output/environments`` already, from the same weights and protocol, is not repeated;
    one that failed is tried again. A failure is a row of the report, and the others continue.

    Args:
        model_folder: a folder that ``AutoModel.from_pretrained`` reads.
        references: what holds the scores of the reference runs: datasets of the environments, or the results of a report.
        output: folder of the report.
        protocol: how much is rolled out.
        device: torch device of the model.
        batch_rows: rollouts that the model acts in at a time.
        videos: how many environments to record, see ``record_videos``.
        cleared: whether to play as many episodes again, each of which begins with an empty context: what a context of
            earlier episodes is worth.
        asynchronous: whether environments act as they are ready (``roll_out_as_ready``) instead of in batches that wait for
            their slowest, and last as long as their longest.
        progress: told of every episode.

    Raises:
        CheckpointError: the folder holds no Large Decision Model.
    """
    model, processor = load_pretrained(model_folder)
    model.to(device)  # type: ignore[arg-type]
    weights = weights_hash(model_folder)
    store = _Store(output / "environments", {"weights": weights, "protocol": _described(protocol)})
    trained = model.config.environments
    waiting = []
    results: dict[str, EnvironmentResult] = {}

    def finished(environment: str, played: RolloutResult) -> None:
        reference = by_id[environment]
        results[environment] = reference.judged(played, protocol, relation(environment, trained))
        store.write(reference, results[environment])
        progress(environment, protocol.episodes * protocol.rollouts)

    by_id = {reference.environment: reference for reference in known_references(references)}
    for environment, reference in by_id.items():
        done = store.read(reference)
        if done is None:
            waiting.append(reference)
        else:
            results[environment] = replace(done, training=relation(environment, trained))
            progress(environment, protocol.episodes * protocol.rollouts)
    player = ModelPlayer(model, processor)
    play = partial(_roll_out, player, batch_rows=batch_rows, asynchronous=asynchronous)
    play(waiting, protocol, progress=progress, finished=finished)
    if cleared:
        _play_cleared(play, results, protocol, store, by_id)
    report = Report(
        [results[environment] for environment in sorted(results)],
        _described(protocol),
        {
            "name": model_name(model_folder),
            "folder": str(model_folder),
            "card": kept_metadata(model_folder),
            "parameters": model.num_parameters(),
            "context_length": model.config.max_position_embeddings,
            "weights_sha256": weights,
        },
        _settings_of(model_folder),
        package_versions(),
    )
    if videos:
        report = replace(report, videos=record_videos(model_folder, device, report, videos, output, protocol))
    report.save(output / "report.json")
    write_all([report], output, [output])
    return report


def _roll_out(
    player: ModelPlayer,
    references: Sequence[Reference],
    protocol: Protocol,
    *,
    batch_rows: int,
    asynchronous: bool,
    progress: Progress = lambda environment, done: None,
    finished: Callable[[str, RolloutResult], None],
) -> None:
    """Roll out in the environments of references, ``batch_rows`` rollouts at a time, the longest episodes first."""
    at_once = max(1, batch_rows // protocol.rollouts)
    ordered = list(batches(references, at_once))
    if asynchronous:
        every = [environment for batch in ordered for environment in batch]
        roll_out_as_ready(player, every, protocol, at_once=at_once, progress=progress, finished=finished)
        return
    for batch in ordered:
        roll_out(player, batch, protocol, progress=progress, finished=finished)


def _play_cleared(
    play: Callable[..., None],
    results: dict[str, EnvironmentResult],
    protocol: Protocol,
    store: "_Store",
    references: dict[str, Reference],
) -> None:
    """Play as many episodes of each environment, all of them rollouts of their own, unless that is done."""
    single = replace(protocol, episodes=1, rollouts=protocol.episodes * protocol.rollouts)
    missing = [name for name, result in results.items() if result.failure is None and not result.cleared_returns]

    def finished(environment: str, played: RolloutResult) -> None:
        if played.failure is None:
            returns = [value for rollout in played.returns for value in rollout]
            results[environment] = replace(results[environment], cleared_returns=returns)
            store.write(references[environment], results[environment])

    play([references[name] for name in missing], single, finished=finished)


class _Store:
    """Results that are finished, a file for each environment."""

    def __init__(self, folder: Path, key: dict[str, Any]):
        self._folder, self._key = folder, key

    def read(self, reference: Reference) -> EnvironmentResult | None:
        """The result of an environment, if it was got in the same way and did not fail."""
        try:
            stored = json.loads(self._path(reference).read_text())
            result = EnvironmentResult(**stored["result"])
            return result if stored["key"] == self._key_of(reference) and result.failure is None else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # Not there, or not ours: it is evaluated again and replaced.

    def write(self, reference: Reference, result: EnvironmentResult) -> None:
        with replacing(self._path(reference)) as temporary:
            temporary.write_text(json.dumps({"key": self._key_of(reference), "result": asdict(result)}))

    def _path(self, reference: Reference) -> Path:
        parsed = EnvironmentId.parse(reference.environment)
        return self._folder / parsed.library / f"{parsed.config_name}.json"

    def _key_of(self, reference: Reference) -> dict[str, Any]:
        return {**self._key, "reference": reference.key}


def _described(protocol: Protocol) -> dict[str, int]:
    return {"episodes": protocol.episodes, "rollouts": protocol.rollouts, "seed": protocol.first_seed(0)}


def _settings_of(folder: Path) -> dict[str, Any]:
    # Folders of the machine that trained it help nobody.
    return {
        name: value for name, value in training_settings(folder).items() if name not in ("data", "output", "output_dir")
    }
