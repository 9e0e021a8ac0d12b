"""Videos of some environments for a report."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pebble

from ldm_hf.env_registry import registry
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import LDMError
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.evaluation.trial import Watch
from ldm_hf.evaluation.video import RENDER_MODE, recording_video
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.utils.processes import exit_with_owner

EPISODES = 2
_FRAMES = 600  # of a video: drawing and encoding take longer than acting
FOLDER = "videos"


def record_videos(
    model: Path, device: str, report: Report, number: int, folder: Path, protocol: Protocol
) -> dict[str, dict[str, str]]:
    """Record some of a report's environments, from the best score to the worst, in rollouts of their own.

    Rendering may be slow, may fail, and may use an environment's random numbers, so what is scored is never rendered. It may
    also end the process (a driver of graphics that finds no screen does), so it has one of its own.

    Args:
        model: folder of what acts.
        device: torch device of the model.
        report: says which environments there are.
        number: of videos.
        folder: of the report; the videos lie in ``videos``.
        protocol: of the seeds; the first ``EPISODES`` episodes of the first rollout are shown.

    Returns:
        By environment, the ``file`` relative to ``folder``, or the ``note`` why there is none.
    """
    worked = [result for result in report.environments if result.failure is None]
    worked.sort(key=lambda result: -(result.normalized_score or 0.0))
    shown = [result for result in worked if RENDER_MODE in registry.spec(result.id).render_modes]
    notes = {result.id: {"note": "it shows no images"} for result in worked if result not in shown}
    # Those without images need not all be told of: as many as could have been chosen.
    videos = dict(list(notes.items())[:number])
    context = multiprocessing.get_context("spawn")
    start = (model.resolve(), device, os.getpid())
    with pebble.ProcessPool(1, context=context, initializer=_start, initargs=start) as pool:
        for index in np.unique(np.linspace(0, max(0, len(shown) - 1), min(number, len(shown))).round().astype(int)):
            environment = shown[index].id
            try:
                videos[environment] = pool.schedule(_record, args=(environment, folder, protocol)).result()
            except pebble.ProcessExpired as error:
                videos[environment] = {"note": f"drawing it ended the process (exit code {error.exitcode})"}
    return videos


_player: Any = None


def _start(model: Path, device: str, owner: int) -> None:
    global _player  # noqa: PLW0603  (how a pool's initializer hands something to its tasks)
    exit_with_owner(owner)
    loaded, processor = load_pretrained(model)
    loaded.to(device)  # type: ignore[arg-type]
    _player = ModelPlayer(loaded, processor)


def _at_most(number: int, watch: Watch) -> Watch:
    """Watch a number of resets and steps only."""
    left = iter(range(number))

    def watch_some(env: gymnasium.Env) -> None:
        if next(left, None) is not None:
            watch(env)

    return watch_some


def _record(environment: str, folder: Path, protocol: Protocol) -> dict[str, str]:
    parsed = EnvironmentId.parse(environment)
    path = Path(FOLDER) / parsed.library / f"{parsed.config_name}.mp4"
    shown = Protocol(min(EPISODES, protocol.episodes), 1, protocol.seed, protocol.step_timeout)
    try:
        with recording_video(folder / path) as add:
            (rolled,) = roll_out(_player, [environment], shown, watch=_at_most(_FRAMES, add))
            if rolled.failure is not None:
                raise rolled.failure
    except (LDMError, ValueError) as error:
        return {"note": str(error)}
    returns = ", ".join(f"{value:g}" for value in rolled.returns[0])
    return {"file": path.as_posix(), "note": f"returns {returns}"}
