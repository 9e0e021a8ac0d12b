"""``accelerate launch -m ldm_hf.training --config FILE [--name value ...]``."""

import typer

from ldm_hf.cli.main import run_command
from ldm_hf.cli.training import train

if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(train)
    run_command(single)
