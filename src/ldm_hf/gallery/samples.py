"""A few transitions of an environment's data, to be looked at."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.errors import UnknownEnvironmentError

_ROWS, _MOST_SLOTS = 6, 12


@dataclass(frozen=True)
class Sample:
    """The first transitions of the newest stream.

    Attributes:
        transitions: how many the data hold.
        rows: observation, image (a data URI or ""), action, label, reward and end of each, in words.
    """

    transitions: int
    rows: list[tuple[str, str, str, str, str, str]]


def draw_samples(folders: Sequence[Path]) -> dict[str, Sample]:
    """By environment, a sample of each in data folders.

    Raises:
        DatasetFormatError: data are damaged.
    """
    found: dict[str, Sample] = {}
    for folder in folders:
        try:
            datasets = open_datasets(str(folder))
        except UnknownEnvironmentError:
            continue
        for dataset in datasets:
            found.setdefault(dataset.environment, _sample(dataset))
    return found


def _sample(dataset: EnvironmentDataset) -> Sample:
    transitions = dataset.chunk(0)[:_ROWS]
    rows = []
    for step in range(len(transitions)):
        labels = transitions.reference_actions
        ended = "terminated" if transitions.terminated[step] else "truncated" if transitions.truncated[step] else ""
        rows.append(
            (
                _numbers(transitions.observations[step]),
                "" if transitions.images is None else _image(transitions.images[step]),
                _numbers(transitions.actions[step]),
                "" if labels is None else _numbers(labels[step]),
                f"{transitions.rewards[step]:.4g}",
                ended,
            )
        )
    return Sample(dataset.num_transitions, rows)


def _numbers(slots: np.ndarray) -> str:
    shown = " ".join(f"{value:.3g}" for value in slots[:_MOST_SLOTS])
    return shown + (f" … ({len(slots)})" if len(slots) > _MOST_SLOTS else "")


def _image(pixels: np.ndarray) -> str:
    import imageio.v3 as imageio

    content, brightest = io.BytesIO(), max(int(pixels.max()), 1)  # which is 10 of 255 where symbols are drawn
    imageio.imwrite(content, (pixels.astype(np.float32) * (255 / brightest)).astype(np.uint8), extension=".png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
