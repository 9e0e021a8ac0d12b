"""``python -m ldm_hf.experiments.m3dt``: the stages that follow ``ldm train``; options as of it, and those of the stages."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.cli.common import make_executor
from ldm_hf.cli.main import run_command
from ldm_hf.cli.settings import with_settings
from ldm_hf.errors import ConfigError
from ldm_hf.experiments.m3dt.config import ExpertsConfig
from ldm_hf.training.preflight import check_machine
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.processes import exit_with_owner


@with_settings(kind=ExpertsConfig)
def train_stage(
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
    """Train experts beside a trained backbone, each on its group of environments, or the routers that choose among them.

    Interrupted, the same command resumes. `ldm launch -m ldm_hf.experiments.m3dt --stage routers` trains on several devices.
    """
    require("a mixture of experts", "train")
    exit_with_owner()
    loaded = ExpertsConfig.load(config, settings)
    check_machine(loaded, shares=loaded.stage == "routers")
    folder: Path | None
    if loaded.stage == "experts":
        folder = _train_experts(loaded, jobs, executor, address, gpus)
    else:
        from ldm_hf.experiments.m3dt.stages import load_stage
        from ldm_hf.training.loop import train

        folder = train(loaded, load=load_stage)
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"The model is in {folder}/", err=True)


def _train_experts(config: ExpertsConfig, jobs: int | None, executor: str, address: str, gpus: float) -> Path | None:
    import torch

    from ldm_hf.experiments.m3dt.experts import train_experts

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("stage experts starts its own processes: run it by itself, not by `accelerate launch`")
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


if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(train_stage)
    run_command(single)
