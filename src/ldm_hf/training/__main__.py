"""``accelerate launch -m ldm_hf.training --config FILE [--set name=value ...]``."""

from ldm_hf.cli import run_command, train

if __name__ == "__main__":
    run_command(train)
