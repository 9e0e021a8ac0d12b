"""The command that fine-tunes a model: ``ldm finetune``."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.cli.settings import with_settings
from ldm_hf.utils.dependencies import require

_OWN = "Own rollouts, without --data"
_LORA_RANK = 8


@with_settings(left_out=("data", "output_dir", "model", "environments"))
def finetune(
    model: Annotated[str, typer.Argument(help="Model folder, or name on the Hub.")],
    environment: Annotated[str, typer.Argument(help="Id: <library>/<Gymnasium id>.")],
    output: Annotated[Path, typer.Option(help="Folder for data, checkpoints and the model.")],
    episodes: Annotated[
        int,
        typer.Option(
            min=1, help="Episodes of the reference to train on; without --data, episodes to collect per round."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of datasets, or hf://datasets/..., with a reference run of the environment. Without it, the model "
            "learns from its own rollouts."
        ),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help=f"Train LoRA adapters of rank {_LORA_RANK} only.")] = False,
    rounds: Annotated[
        int | None, typer.Option(help="How often to act, filter and train. Default: 1.", rich_help_panel=_OWN)
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="Share of the episodes that is trained on, by return. Default: 0.25.", rich_help_panel=_OWN),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="At which actions are sampled. Default: 1.", rich_help_panel=_OWN)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Torch device that acts. Default: cpu.", rich_help_panel=_OWN)
    ] = None,
    *,
    settings: dict[str, Any],
) -> None:
    """Fine-tune a model on episodes of one environment: recorded ones, or the best of its own.

    Of five episodes or more one in five is held back: training ends when the model's actions there come no nearer to the
    labels, and the weights that came nearest are kept. Interrupted, the same command resumes from the last checkpoint. Here
    max_steps is 200 by default, train_batch_size 8, learning_rate 1e-3, warmup_steps 20, previous_action_dropout 0.5,
    metric_for_best_model action_error, save_steps 100, validation_steps 10 and early_stopping_patience 5.
    """
    require("`ldm finetune`", "train")
    from ldm_hf.errors import ConfigError
    from ldm_hf.finetuning.finetune import FineTuning, OwnRollouts
    from ldm_hf.finetuning.finetune import finetune as run
    from ldm_hf.utils.processes import exit_with_owner

    exit_with_owner()
    given = {"rounds": rounds, "keep": keep, "temperature": temperature, "device": device}
    own = {name: value for name, value in given.items() if value is not None}
    if data is not None and own:
        raise ConfigError(f"--{', --'.join(own)} are about own rollouts: leave out either them or --data")
    chosen = {**({"lora_rank": _LORA_RANK} if lora else {}), **settings}

    source = OwnRollouts(**own) if data is None else data  # type: ignore[arg-type]
    tuning = FineTuning(model, environment, episodes, source)
    folder = run(tuning, output, chosen, say=lambda line: typer.echo(line, err=True))
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    typer.echo(f"The model is in {folder}/", err=True)
