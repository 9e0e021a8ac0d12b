"""Which candidates race on an environment: what is known of the library."""

from collections.abc import Sequence

from ldm_hf.dataset_builder.build.race.zoo import PREFIX

_PRIOR = (
    *("PPO-normalized", "SAC", "DQN-frequent", "PPO-images", "TRPO-normalized", "TQC-exploring", "PPO-long-rollouts"),
    *("QRDQN", "TD3-noise", "A2C-8-envs", "ARS-linear", "PPO-short-rollouts", "DQN", "A2C-normalized", "A2C-images"),
    *("TRPO-short-rollouts", "DQN-large-steps", "PPO", "TRPO", "ARS-small", "DQN-images", "QRDQN-large-steps"),
)
"""The order in which candidates enter a race where nothing is known of the library: algorithms that differ come first."""


def order(fitting: Sequence[str], races: Sequence[Sequence[str]]) -> list[str]:
    """Candidates in the order in which they enter a race.

    Those that are tuned for the environment first, then by their mean place in the library's other races, from 0 (won) to 1
    (was out first), where each candidate counts as having had one race more, in the middle; ties by ``_PRIOR``.

    Args:
        fitting: names of the candidates.
        races: the orders in which the library's other races ended, the best first.
    """
    shares: dict[str, list[float]] = {}
    for race in races:
        for place, name in enumerate(race):
            shares.setdefault(name, []).append(place / max(1, len(race) - 1))

    def key(name: str) -> tuple[bool, float, int]:
        known = [0.5, *shares.get(name, [])]
        return not name.startswith(PREFIX), sum(known) / len(known), _prior(name)

    return sorted(fitting, key=key)


def _prior(name: str) -> int:
    """The place in ``_PRIOR``; of a candidate that was tuned for an environment, that of the first of its algorithm."""
    if name.startswith(PREFIX):
        algorithm = name.removeprefix(PREFIX)
        return min((place for place, other in enumerate(_PRIOR) if other.partition("-")[0] == algorithm), default=0)
    return _PRIOR.index(name) if name in _PRIOR else len(_PRIOR)
