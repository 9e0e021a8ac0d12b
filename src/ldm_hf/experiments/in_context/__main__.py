"""``python -m ldm_hf.experiments.in_context``: record histories, train on them, act on held-out tasks.

For each family, and with ``--together`` for all of them at once, a model is trained by ``ldm train``'s loop on data of this
package's format. What was made lies in the output folder, and is only read when the command is run again.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ldm_hf.cli.main import run_command
from ldm_hf.experiments.figures import print_table
from ldm_hf.experiments.in_context.page import Played
from ldm_hf.experiments.in_context.tasks import FAMILIES, held_out
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import replacing

TOGETHER = "together"


def run(
    output: Annotated[Path, typer.Option(help="Folder for data, models and results.")] = Path("runs/in-context"),
    family: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FAMILIES)}; repeatable. Default: all, one after another.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Train one model on all families.")] = False,
    histories: Annotated[int, typer.Option(min=1, help="Training histories of a family, each of one task.")] = 12_288,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes of a history, and of a held-out task.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, of 32 histories.")] = 500,
    tasks: Annotated[int, typer.Option(min=2, help="Held-out tasks of a family that are played.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of data, training and evaluation.")] = 0,
) -> None:
    """Show learning in context: returns on held-out tasks by episode, with the context kept and cleared."""
    require("learning in context", "build", "train")
    from ldm_hf.experiments.in_context.histories import record_histories

    names = family or list(FAMILIES)
    for name in names:
        record_histories(output / "data", name, histories, episodes, seed)
    for model in [TOGETHER] if together else names:
        trained = names if model == TOGETHER else [model]
        folder = output / f"{model}-{seed}"
        if not (folder / "model").is_dir():
            _train(output / "data", folder, trained, episodes, steps, seed)
        for name in trained:
            path = folder / f"{name}.json"
            if not path.is_file():
                found = _evaluate(folder / "model", name, episodes, tasks, seed)
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            played = Played.read(path)
            head, *rows = played.rows()
            print_table(played.title, head, rows)


def _train(data: Path, folder: Path, names: list[str], episodes: int, steps: int, seed: int) -> None:
    from ldm_hf.experiments.in_context.histories import LIBRARY
    from ldm_hf.training.config import TrainingConfig
    from ldm_hf.training.loop import train

    context = max(episodes * FAMILIES[name].episode_length for name in names)
    config = TrainingConfig(
        data=str(data),
        output_dir=str(folder),
        environments=[f"{LIBRARY}/{name}" for name in names],
        model="nano",
        model_overrides={"max_position_embeddings": context},
        context_length=context,
        max_steps=steps,
        train_batch_size=32,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        warmup_steps=min(50, steps),
        decay_fraction=0.3,
        bf16=False,
        save_steps=100,
        save_total_limit=1,
        dataloader_num_workers=0,
        report_to="none",
        seed=seed,
    )
    if train(config) is None:
        raise typer.Exit(143)


def _evaluate(model: Path, name: str, episodes: int, tasks: int, seed: int) -> dict[str, Any]:
    """Returns by episode of each way to act on held-out tasks, as lists of one per task."""
    from ldm_hf.experiments.in_context.histories import expert_returns, random_returns
    from ldm_hf.experiments.in_context.playing import BANDIT_BASELINES, modes, play, play_bandits
    from ldm_hf.experiments.in_context.tasks import Bandit
    from ldm_hf.hub.pretrained import load_pretrained

    loaded, processor = load_pretrained(model)
    kind = FAMILIES[name]
    family = kind(held_out(name, tasks, seed))
    found = {"expert": expert_returns(family, episodes), "random": random_returns(family, episodes, seed)}
    for label, mode in modes(episodes).items():
        found[label] = play(loaded, processor, family, episodes, mode, seed)
    if isinstance(family, Bandit):
        found |= {label: play_bandits(family, episodes, label, seed) for label in BANDIT_BASELINES}
    return {label: np.round(returns, 4).tolist() for label, returns in found.items()}


if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(run)
    run_command(single)
