"""Which episodes are trained on, and which are held back: written as data folders."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.format.schema import MANIFEST, RunInfo
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import ConfigError
from ldm_hf.finetuning.episodes import (
    Episode,
    best_episodes,
    drawn_episodes,
    in_orders,
    read_episodes,
    recorded_episodes,
    write_run,
)

HELD_BACK = 5
"""One in this many episodes is held back: its loss says when to stop. Of fewer episodes none is."""

LAST = 0.1
"""Share of a reference's training whose episodes are demonstrations: what 100 % of a score is measured by."""

OWN = "LDM"
"""Algorithm of runs that are a model's own rollouts."""

_ORDERS, _ORDERED = 16, 2**16  # orders of the episodes, and transitions of all of them, at most


def choose_episodes(
    runs: Sequence[EnvironmentDataset], count: int, folder: Path, seed: int, say: Callable[[str], None]
) -> None:
    """Write episodes of runs to ``folder/data``, and what is held back of them to ``folder/validation``.

    Of a reference's training they are drawn from the last 10 %, of rollouts of a policy that learned nothing from all; of a
    model's own they are those of highest return.

    Episodes that are trained on are written in up to sixteen orders, a stream each.

    Args:
        runs: datasets of one run each; the last describes what is written.
        count: how many episodes.
        folder: where to; what is there already stays.
        seed: of what is drawn, and of the orders.
        say: told which they are.

    Raises:
        ConfigError: there are fewer episodes; or they are a model's own, and none is better than another.
    """
    info = runs[-1].info
    if is_written(folder / "data", info.environment):
        return
    episodes = recorded_episodes(runs)
    if len(episodes) < count:
        raise ConfigError(f"{count} episodes of {info.environment} were asked for, and its data have {len(episodes)}")
    if info.algorithm == OWN:
        _check_difference(episodes, info.environment)
        chosen, how = best_episodes(episodes, count), "of highest return"
    else:
        share = 1.0 if info.training_steps == 0 else LAST
        chosen, how = drawn_episodes(episodes, count, seed, share), "drawn from those of its end"
    held_back = chosen[HELD_BACK - 1 :: HELD_BACK]
    note = f"{info.source}; of it, {count} of {len(episodes)} episodes, {how}"
    if held_back:
        _write(folder / "validation", runs, held_back, replace(info, source=f"{note}, one in {HELD_BACK}"), 1, seed)
    trained = [episode for episode in chosen if episode not in held_back]
    orders = 1 if len(trained) == 1 else max(1, min(_ORDERS, _ORDERED // sum(map(len, trained))))
    rest = f", {'' if not held_back else 'the others, '}in {orders} orders"
    _write(folder / "data", runs, trained, replace(info, source=note + rest), orders, seed)
    say(f"{info.environment}: {_described(chosen)}, {how}, of {_described(episodes)}")


def _write(
    root: Path, runs: Sequence[EnvironmentDataset], episodes: Sequence[Episode], info: RunInfo, orders: int, seed: int
) -> None:
    """Write episodes of runs as the one run of a data folder, each order as a stream."""
    streams, terminals = in_orders(*read_episodes(runs, episodes), orders, seed)
    written = replace(
        info,
        run=f"{info.run}-best-{len(episodes)}",
        num_episodes=orders * len(episodes),
        num_transitions=sum(map(len, streams)),
        num_streams=orders,
        training_steps=None,  # the episodes of several streams, one after another
        hyperparameters={key: value for key, value in info.hyperparameters.items() if key not in ("slices", "planned")},
    )
    write_run(root, written, streams, terminals)


def is_written(root: Path, environment: str) -> bool:
    """Whether a data folder has the library of an environment."""
    return (root / EnvironmentId.parse(environment).library / MANIFEST).is_file()


def _check_difference(episodes: Sequence[Episode], environment: str) -> None:
    totals = {episode.total for episode in episodes}
    if len(totals) == 1:
        raise ConfigError(
            f"all {len(episodes)} episodes in {environment} returned {totals.pop():g}: none is better than another, and "
            "nothing can be learned from them; try more episodes or another temperature"
        )


def _described(episodes: Sequence[Episode]) -> str:
    totals = [episode.total for episode in episodes]
    return f"{len(totals)} episodes with returns from {min(totals):g} to {max(totals):g}"
