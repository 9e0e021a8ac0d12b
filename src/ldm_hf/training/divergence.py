"""What is said of a training step that does not end in finite numbers."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from ldm_hf.errors import StorageError, TrainingDivergedError
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.mixture import Mixture, Source
from ldm_hf.utils.files import replacing

MAY_FAIL = ("loss", "gradient norm", "weights")
RECORD = "diverged.json"
_NAMED = 8  # sequences in the message; all are in the record


def divergence(
    accelerator: Accelerator,
    mixture: Mixture,
    config: TrainingConfig,
    step: int,
    failed: Sequence[bool],
    saved: int | None,
) -> TrainingDivergedError:
    """The error for a step, which all processes raise together; the main one writes it to ``output`` as well.

    Args:
        accelerator, mixture, config: of the run.
        step: which, counted from 0.
        failed: which of ``MAY_FAIL`` are not finite on any process; all that are given.
        saved: the steps of the newest checkpoint.
    """
    what = [name for name, one in zip(MAY_FAIL, failed, strict=False) if one]
    first = step * config.train_batch_size
    sources = [mixture.source(number) for number in range(first, first + config.train_batch_size)]
    if accelerator.is_main_process:
        record = {"step": step + 1, "not_finite": what, "sequences": [asdict(source) for source in sources]}
        # Where that cannot be written, what the message names has to do.
        with contextlib.suppress(OSError, StorageError), replacing(Path(config.output_dir) / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    kept = "no checkpoint was written before" if saved is None else f"the checkpoint of step {saved} is kept"
    verb = "is" if len(what) == 1 and what != ["weights"] else "are"
    return TrainingDivergedError(
        f"step {step + 1}: the {' and the '.join(what)} {verb} not finite after training on {_described(sources)}; {kept}. "
        "Started again, the run comes to the same step: lower learning_rate or max_grad_norm, or look at these data"
    )


def _described(sources: Sequence[Source]) -> str:
    """The first few sequences, those of one file together: ``<environment> <file> rows 0-15, 64-79``."""
    rows: dict[str, list[str]] = {}
    for source in sources[:_NAMED]:
        place = f"{source.environment} {source.file} rows"
        rows.setdefault(place, []).append(f"{source.first_row}-{source.last_row}")
    text = " and ".join(f"{place} {', '.join(parts)}" for place, parts in rows.items())
    left = len(sources) - _NAMED
    return f"{text} and {left} more sequences ({RECORD} in the output names all)" if left > 0 else text
