"""The commands that train: ``ldm train`` and ``ldm launch``."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.cli.settings import with_settings
from ldm_hf.dependencies import require
from ldm_hf.errors import ConfigError

LAUNCH: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}
"""How ``launch`` is registered: its options are those of ``accelerate launch``."""


@with_settings()
def train(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options win over it.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Stage experts: how many at a time. Default: one per processor, or one GPU."),
    ] = None,
    executor: Annotated[str, typer.Option(help="Stage experts: local, or ray.")] = "local",
    address: Annotated[str, typer.Option(help="Address of the Ray cluster: host:6379, auto, or local.")] = "auto",
    gpus: Annotated[float, typer.Option(min=0, help="With ray: share of a GPU for each expert.")] = 0.0,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a model on datasets, continuing from the newest checkpoint. `ldm launch` does on several processes."""
    require("`ldm train`", "train")
    from ldm_hf.processes import exit_with_owner
    from ldm_hf.training.config import TrainingConfig
    from ldm_hf.training.preflight import check_machine

    exit_with_owner()
    loaded = TrainingConfig.load(config, settings)
    check_machine(loaded)  # before the seconds that torch takes to be imported
    folder: Path | None
    if loaded.stage == "experts":
        folder = _train_experts(loaded, jobs, executor, address, gpus)
    else:
        from ldm_hf.training.loop import train as run

        folder = run(loaded)
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"The model is in {folder}/", err=True)


def launch(context: typer.Context) -> None:
    """Train on several devices: `accelerate launch` with all its options; what fails ends in one line and its status.

    For example: ldm launch --num_processes 8 --multi_gpu -m ldm_hf.training --config FILE
    """
    require("`ldm launch`", "train")
    from ldm_hf.training.launch import launch as run

    raise typer.Exit(run(context.args))


def _train_experts(config: Any, jobs: int | None, executor: str, address: str, gpus: float) -> Path | None:
    import torch

    from ldm_hf.cli.data import make_executor
    from ldm_hf.training.experts import train_experts

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("stage experts starts its own processes: run it by `ldm train`, not by `accelerate launch`")
    at_once = jobs or (1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))
    root = Path(config.output_dir).absolute()
    try:
        folder = train_experts(
            config, lambda waiting: make_executor(executor, min(at_once, waiting), address, gpus, root)
        )
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command continues with the experts that are not finished", err=True)
        raise typer.Exit(130) from None
    if folder is None:
        typer.echo("SIGTERM: stopped after a checkpoint of every expert; started again, it continues", err=True)
    return folder
