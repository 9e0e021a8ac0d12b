"""The held-out environments of the benchmark, by the model that it judges: none of them is in that model's training list.

Both lists were fixed before anything was trained on their environments. Each has a reference that passes every flag.
"""

from dataclasses import dataclass
from pathlib import Path

from ldm_hf.errors import ConfigError


@dataclass(frozen=True)
class HeldOut:
    """Environments that a model has not seen.

    Attributes:
        known: of libraries of which the model knows other environments.
        unknown: of libraries of which it knows none.
    """

    known: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def environments(self) -> tuple[str, ...]:
        """All of them, known libraries first."""
        return (*self.known, *self.unknown)


HELD_OUT = {
    "ldm-mini": HeldOut(
        known=(
            "gymnasium/BipedalWalker-v3",
            "metaworld/MT1/drawer-open-v3",
            "minigrid/BabyAI-GoToRedBallGrey-v0",
            "mo-gymnasium/breakable-bottles-v0",
            "nasim/TinySmall2D-v0",
        ),
        unknown=(
            "gymnax/Acrobot-v1",  # another implementation of a task that ldm-mini knows
            "gymnax/Catch-bsuite",  # the same
            "or-gym/Knapsack-v3",
            "panda-gym/PandaReachDense-v3",
            "panda-gym/PandaReachJointsDense-v3",
        ),
    ),
    # Known: all of recipes/ldm-base/held_out.txt. Unknown: so far the only libraries that it does not know of which a race
    # made a reference that passes every flag (docs/worth.md).
    "ldm-base": HeldOut(
        known=(
            "gymnasium/Acrobot-v1",  # gymnax' Acrobot is in its training list
            "metaworld/MT1/hammer-v3",
            "metaworld/MT1/lever-pull-v3",
            "metaworld/MT1/reach-wall-v3",
            "metaworld/MT1/sweep-into-v3",
            "metaworld/MT1/window-open-v3",
            "minigrid/BabyAI-GoToRedBall-v0",
            "minigrid/BabyAI-GoToRedBlueBall-v0",
        ),
        unknown=(
            "carl-bench/carl/CARLCartPole-v0",  # another implementation of a task that ldm-base knows
            "carl-bench/carl/CARLPendulum-v0",  # the same
            "gym-classics/WindyGridworldKingsStochastic-v0",
            "gym-simplegrid/SimpleGrid-4x4-v0",
        ),
    ),
}
"""By the name of the model's folder or repository."""

UNKNOWN = frozenset(name for held_out in HELD_OUT.values() for name in held_out.unknown)


def held_out(model: str) -> tuple[str, ...]:
    """The environments that a model is judged on.

    Args:
        model: folder or Hub name.

    Raises:
        ConfigError: it has no list.
    """
    name = Path(model).name
    if name not in HELD_OUT:
        raise ConfigError(
            f"no environments are held out for {model!r}: name some with --environment, or use one of {', '.join(HELD_OUT)}"
        )
    return HELD_OUT[name].environments


def in_order(names: set[str]) -> list[str]:
    """Environments in the order of pages: those of the lists as they are there, then others by name."""
    listed = [name for one in HELD_OUT.values() for name in one.environments]
    return [name for name in dict.fromkeys(listed) if name in names] + sorted(names - set(listed))
