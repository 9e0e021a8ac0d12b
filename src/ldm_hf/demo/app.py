"""The page of ``ldm demo``, made with Gradio: choose an environment and a player, watch, compare."""

import contextlib
import functools
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ldm_hf.demo.stage import MODEL, RANDOM, REFERENCE, Moment, Stage
from ldm_hf.errors import LDMError

_FRAMES_PER_SECOND = 12  # that are shown while an episode is played; the video has them all
_VIDEO_FRAMES = 2000
_KEPT, _CLEARED = "kept between episodes", "cleared before each episode"
_NAMES = {MODEL: "model", REFERENCE: "reference", RANDOM: "random policy"}
_SHOWN = "what the environment shows"
_BLANK = np.full((300, 450, 3), 128, np.uint8)  # an empty image is one that screen readers cannot make out
_HEAD = ["player", "mean return", "lowest", "highest", "mean length", "seconds"]
LAUNCH: dict[str, Any] = {
    "prevent_thread_lock": True,
    "share": False,
    "quiet": True,
    "ssr_mode": False,
    "show_error": True,
    "theme": gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        block_info_text_color="*neutral_700",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
    ),
    "css": "footer {display: none !important}",
}
"""How the page is served: without fonts, statistics or anything else of another host."""


def app(stage: Stage, name: str) -> gr.Blocks:
    """The page of a model; ``show`` serves it."""
    names = stage.environments()
    first = names[0]
    videos = tempfile.TemporaryDirectory(prefix="ldm-demo-")  # as long as the page
    with gr.Blocks(title=f"{name}: demo", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            f"# {name}\nA Large Decision Model, trained on {len(stage.trained_on)} environments. It acts here in "
            f"{len(names)}; those that it was trained on are listed first."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                environment = gr.Dropdown(names, value=first, label="Environment", filterable=True)
                who = gr.Radio(_choices(stage, first), value=MODEL, label="Player")
                context = gr.Radio([_KEPT, _CLEARED], value=_KEPT, label="Context of the model")
                temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature of the model", info="0 is greedy.")
                episodes = gr.Slider(1, 20, value=3, step=1, label="Episodes")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Row():
                    play = gr.Button("Play", variant="primary")
                    stop = gr.Button("Stop")
                    compare = gr.Button("Compare all players")
                about = gr.Markdown(_about(stage, first))
            with gr.Column(scale=2, min_width=300):
                frame = gr.Image(
                    _BLANK, label="Live", alt_text=_SHOWN, buttons=[], interactive=False, height=420, format="jpeg"
                )
                status = gr.Markdown("Press *Play*.", elem_id="status")
                table = gr.Dataframe(headers=_HEAD, label="Comparison", interactive=False)
                video = gr.Video(label="Video", interactive=False, visible=False)
        settings = [environment, who, episodes, seed, context, temperature]
        environment.change(
            lambda one: (gr.Radio(_choices(stage, one), value=MODEL), _about(stage, one)),
            environment,
            [who, about],
            api_visibility="private",
        )
        playing = play.click(
            functools.partial(_played, stage, Path(videos.name)), settings, [frame, status, video], api_name="play"
        )
        comparing = compare.click(
            functools.partial(_compared, stage), [environment, *settings[2:]], [table, status], api_name="compare"
        )
        stop.click(lambda: "Stopped.", None, status, cancels=[playing, comparing], api_visibility="private")
    page.videos = videos  # which are deleted with the page
    return page


def show(
    page: gr.Blocks, host: str, port: int | None, *, browser: bool = False, say: Callable[[str], None] = print
) -> None:
    """Serve the page until it is interrupted; nothing is asked of, or sent to, another host. ``say`` is told its address."""
    _, address, _ = page.queue().launch(**LAUNCH, server_name=host, server_port=port, inbrowser=browser)
    say(address)
    page.block_thread()


def _choices(stage: Stage, environment: str) -> list[tuple[str, str]]:
    return [(_NAMES[who], who) for who in stage.players(environment)]


def _about(stage: Stage, environment: str) -> str:
    spec = stage.specs[environment]
    known = "The model was trained on it." if environment in stage.trained_on else "The model has not seen it."
    missing = "" if REFERENCE in stage.players(environment) else " No reference policy of it is at hand."
    return (
        f"`{environment}`: {known}{missing} At most {spec.max_episode_steps:,} steps; "
        f"observations {spec.observation_space['type']}, actions {spec.action_space['type']}; {spec.licence}."
    )


def _played(
    stage: Stage,
    videos: Path,
    environment: str,
    who: str,
    episodes: float,
    seed: float,
    context: str,
    temperature: float,
) -> Iterator[tuple[Any, ...]]:
    """Frames as they come, a few each second, and at the end a video of all."""
    frames: list[np.ndarray] = []
    shown, moment = 0.0, Moment(1, 0, 0.0)
    options: dict[str, Any] = {"seed": int(seed), "kept": context == _KEPT, "temperature": temperature}
    with _readable():
        for moment in stage.play(environment, who, episodes=int(episodes), **options):
            assert moment.frame is not None
            if len(frames) < _VIDEO_FRAMES:
                frames.append(moment.frame)
            if time.monotonic() - shown >= 1 / _FRAMES_PER_SECOND:
                shown = time.monotonic()
                yield moment.frame, _said(who, moment), gr.skip()
        yield moment.frame, _said(who, moment), gr.Video(_video(frames, videos), visible=True)


def _compared(
    stage: Stage, environment: str, episodes: float, seed: float, context: str, temperature: float
) -> Iterator[tuple[Any, ...]]:
    """A row for each player, one after another: the same seeds for all."""
    rows: list[list[Any]] = []
    options: dict[str, Any] = {"seed": int(seed), "kept": context == _KEPT, "temperature": temperature}
    with _readable():
        for who in stage.players(environment):
            started, length, moment = time.monotonic(), 0, Moment(1, 0, 0.0)
            for moment in stage.play(environment, who, episodes=int(episodes), rendered=False, **options):
                length += moment.step > 0
                if moment.step % 50 == 0:
                    yield gr.skip(), _said(who, moment)
            returns = moment.returns
            rows.append(
                [
                    _NAMES[who],
                    *(float(f"{value:.4g}") for value in (np.mean(returns), min(returns), max(returns))),
                    round(length / len(returns), 1),
                    round(time.monotonic() - started, 1),
                ]
            )
            yield rows, _said(who, moment)


def _said(who: str, moment: Moment) -> str:
    done = ", ".join(f"{value:.4g}" for value in moment.returns[-10:])
    ended = f" Returns of ended episodes: {done}." if done else ""
    return f"**{_NAMES[who]}**, episode {moment.episode}, step {moment.step}: return {moment.total:.4g} so far.{ended}"


def _video(frames: list[Any], folder: Path) -> str:
    import imageio.v2 as imageio

    path = folder / f"{uuid.uuid4()}.mp4"
    imageio.mimwrite(path, frames, fps=30, codec="libx264", macro_block_size=1, ffmpeg_log_level="error")
    return str(path)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Shows errors that a user can act on as they are."""
    try:
        yield
    except LDMError as error:
        raise gr.Error(str(error)) from error
