"""Every setting of training as an option of a command: ``--max_steps 1000``, or ``--max-steps``."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from ldm_hf.training.config import TrainingConfig, read_value, settings

_PANEL = "Settings"


def with_settings(
    left_out: Collection[str] = (), kind: type[TrainingConfig] = TrainingConfig
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command an option per setting; its parameter ``settings`` gets those that were given, by name, as read.

    Args:
        left_out: settings that the command sets itself.
        kind: whose settings.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command).parameters.values() if one.name != "settings"]
        taken = {one.name for one in own}
        added = [_option(name, text, kind) for name, text in settings(kind).items() if name not in {*left_out, *taken}]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {one.name: values.pop(one.name) for one in added}
            chosen = {name: read_value(name, text) for name, text in given.items() if text is not None}
            command(**values, settings=chosen)

        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *added)}
        return run

    return decorate


def _option(name: str, text: str, kind: type[TrainingConfig]) -> inspect.Parameter:
    names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
    shown = None if default in (dataclasses.MISSING, None) else str(default)
    option = typer.Option(*names, help=text, metavar="VALUE", show_default=shown or False, rich_help_panel=_PANEL)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
