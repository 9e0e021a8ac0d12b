"""Which cells the study has, the most telling ones first."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from ldm_hf.experiments.m3dt.capacity.cells import ADDITIONS, Cell
from ldm_hf.experiments.m3dt.capacity.routers import ROUTERS
from ldm_hf.experiments.m3dt.capacity.study import MEND

COUNTS = (10, 20, 40, 80, 160)
SEEDS = (0, 1, 2)

_MENDS = [f"random+{router}" for router in ROUTERS if router not in (MEND, "one", "five", "task")]
_ROUTED = [f"random+{router}" for router in (MEND, "one", "five", "task")]


def full_plan() -> list[list[Cell]]:
    """Chains of cells: those of a chain start from each other and are made one after the other."""
    additions = [("m3dt", "mixed", variant) for variant in ADDITIONS]
    chains = [
        *_chains("processes", (160, 40), SEEDS[:1], _main()),
        *_chains("processes", (160,), SEEDS[:1], [*_mends(), *additions]),
        *_chains("processes", (10, 20, 80), SEEDS[:1], _main()),
        *_chains("processes", (160, 80), SEEDS, _cheap()),
        *_chains("gridworlds", (160, 40), SEEDS[:1], _main()),
        *_chains("hidden", (160, 40), SEEDS[:1], _hidden()),
        *_chains("processes", COUNTS, SEEDS[:1], [*_wide(), *_matched(), *_one_task()]),
        *_chains("gridworlds", (10, 20, 80), SEEDS[:1], _main()),
        *_chains("hidden", (10, 20, 80), SEEDS[:1], _hidden()),
        *_chains("hidden", (160,), SEEDS, _hidden()),
        *_chains("processes", (160,), SEEDS, [*_mends(), *additions]),
        *_chains("gridworlds", (160,), SEEDS[:1], [*_mends(), *_wide()]),
        *_chains("processes", (10, 20, 40), SEEDS, _cheap()),
    ]
    return _without_repeats(chains)


def short_plan() -> list[list[Cell]]:
    """What shows the argument in minutes: one family, few tasks, one seed."""
    return _without_repeats(_chains("processes", (10, 40), SEEDS[:1], [*_main(), *_one_task()]))


Kind = tuple[str, str, str]
"""Budget, batch and variant."""


def _main() -> list[Kind]:
    return [
        ("fixed", "mixed", "dense"),
        *(("m3dt", "mixed", variant) for variant in ("random", *_ROUTED)),
        ("proportional", "mixed", "dense"),
        *(("m3dt", "mixed", variant) for variant in ("dense", "gradient", "gradient+one")),
    ]


def _wide() -> list[Kind]:
    # Twice the fixed steps of a wide model cost about the FLOPs of backbone, experts and routers.
    return [(budget, "mixed", "wide") for budget in ("twice", "m3dt", "fixed", "proportional")]


def _matched() -> list[Kind]:
    return [("proportional", "mixed", variant) for variant in ("random", "random+one")]


def _mends() -> list[Kind]:
    return [("m3dt", "mixed", variant) for variant in _MENDS]


def _one_task() -> list[Kind]:
    variants = ("dense", "random", "random+one")
    return [("fixed", "one", "dense"), ("proportional", "one", "dense"), *(("m3dt", "one", each) for each in variants)]


def _hidden() -> list[Kind]:
    variants = ("random", "random+one", "random+five", f"random+{MEND}", "dense")
    return [
        ("fixed", "mixed", "dense"),
        ("proportional", "mixed", "dense"),
        *(("m3dt", "mixed", variant) for variant in variants),
    ]


def _cheap() -> list[Kind]:
    return [each for each in _main() if not each[2].startswith("gradient")]


def _chains(family: str, counts: Sequence[int], seeds: Sequence[int], kinds: Sequence[Kind]) -> Iterator[list[Cell]]:
    for count, seed in product(counts, seeds):
        yield [Cell(family, count, budget, batch, variant, seed) for budget, batch, variant in kinds]


def _without_repeats(chains: Iterable[Sequence[Cell]]) -> list[list[Cell]]:
    seen: set[Cell] = set()
    found = []
    for chain in chains:
        new = [cell for cell in dict.fromkeys(chain) if cell not in seen]
        seen.update(new)
        if new:
            found.append(new)
    return found
