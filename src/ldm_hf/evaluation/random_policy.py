"""Returns of a random policy: measured once for each environment as it is installed, and kept."""

import json

from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.manifest import home
from ldm_hf.evaluation.players import RandomPlayer
from ldm_hf.evaluation.rollout import EPISODES, ROLLOUTS, Protocol, roll_out
from ldm_hf.files import replacing

_MORE_EPISODES = 40  # of each rollout, where they are short: 100 in all make the test against the reference sharper
_MOST_STEPS = 20_000  # that these may take


def random_returns(environment: str, versions: dict[str, str], step_timeout: float) -> Sample:
    """What actions drawn from the action space bring, in 20 or 100 episodes that begin like those of a model.

    The result is kept in ``$LDM_HOME/random_returns``, for these versions of what runs the environment.

    Args:
        environment: id of the environment.
        versions: of the library and of what runs it.
        step_timeout: as in ``Protocol``.

    Raises:
        LDMError: the environment failed.
    """
    parsed = EnvironmentId.parse(environment)
    path = home() / "random_returns" / parsed.library / f"{parsed.config_name}.json"
    key = {"episodes": [EPISODES, _MORE_EPISODES, _MOST_STEPS], "rollouts": ROLLOUTS, "versions": versions}
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return Sample(**stored["sample"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Not there, or not ours: it is measured again and replaced.
    sample = Sample.of(_measure(environment, step_timeout))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"key": key, "sample": vars(sample)}))
    return sample


def _measure(environment: str, step_timeout: float) -> list[float]:
    returns, steps = _play(environment, Protocol(step_timeout=step_timeout))
    if steps / len(returns) * _MORE_EPISODES * ROLLOUTS <= _MOST_STEPS:
        returns += _play(environment, Protocol(_MORE_EPISODES, seed=1, step_timeout=step_timeout))[0]
    return returns


def _play(environment: str, protocol: Protocol) -> tuple[list[float], int]:
    """Returns of all episodes, and how many steps they took together."""
    (result,) = roll_out(RandomPlayer(protocol.first_seed(0)), [environment], protocol)
    if result.failure is not None:
        raise result.failure
    return [value for rollout in result.returns for value in rollout], sum(map(sum, result.lengths))
