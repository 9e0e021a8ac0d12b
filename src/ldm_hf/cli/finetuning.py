"""The command that fine-tunes a model: ``ldm finetune``."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.dependencies import require

_OWN = "Own rollouts, without --data"
_LORA_RANK = 8


def finetune(
    model: Annotated[str, typer.Argument(help="Model folder, or name on the Hub.")],
    environment: Annotated[str, typer.Argument(help="Id: <library>/<Gymnasium id>.")],
    output: Annotated[Path, typer.Option(help="Folder for data, checkpoints and the model.")],
    episodes: Annotated[
        int, typer.Option(min=1, help="Of the data, so many of highest return; of own rollouts, so many each round.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of datasets, or hf://datasets/..., with a reference run of the environment. Without it, the model "
            "learns from its own rollouts."
        ),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help=f"Train adapters of rank {_LORA_RANK} alone (needs peft).")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, of own rollouts each round.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, any other setting of training; repeatable.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="How often to act, filter and train. Default: 1.", rich_help_panel=_OWN)
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="Share of the episodes that is trained on, by return. Default: 0.25.", rich_help_panel=_OWN),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="At which actions are drawn. Default: 1.", rich_help_panel=_OWN)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Torch device that acts. Default: cpu.", rich_help_panel=_OWN)
    ] = None,
) -> None:
    """Fine-tune a model on episodes of one environment: recorded ones, or the best of its own.

    Interrupted, it resumes from the last finished step when it is started again.
    """
    require("`ldm finetune`", "train")
    from ldm_hf.errors import ConfigError
    from ldm_hf.finetuning.finetune import FineTuning, OwnRollouts
    from ldm_hf.finetuning.finetune import finetune as run
    from ldm_hf.processes import exit_with_owner
    from ldm_hf.training.config import read_settings

    exit_with_owner()
    given = {"rounds": rounds, "keep": keep, "temperature": temperature, "device": device}
    own = {name: value for name, value in given.items() if value is not None}
    if data is not None and own:
        raise ConfigError(f"--{', --'.join(own)} are about own rollouts: leave out either them or --data")
    chosen: dict[str, Any] = {"steps": steps, "seed": seed, **({"lora_rank": _LORA_RANK} if lora else {})}
    chosen |= read_settings(settings or [])

    source = OwnRollouts(**own) if data is None else data  # type: ignore[arg-type]
    tuning = FineTuning(model, environment, episodes, source)
    folder = run(tuning, output, chosen, say=lambda line: typer.echo(line, err=True))
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    typer.echo(f"The model is in {folder}/", err=True)
