"""Returns of a random policy: measured once for each environment as it is installed, and kept."""

import json

from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.manifest import home
from ldm_hf.evaluation.players import RandomPlayer
from ldm_hf.evaluation.rollout import EPISODES, ROLLOUTS, Protocol, roll_out
from ldm_hf.files import replacing

_BLOCKS = 5  # of the paper's 20 episodes: 100 where episodes are short, for the test against the reference
_STEPS = 20_000  # after which no further block is begun


def random_returns(environment: str, versions: dict[str, str], step_timeout: float) -> Sample:
    """What actions drawn from the action space bring, in 20 to 100 episodes that begin like those of a model.

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
    key = {"episodes": EPISODES, "rollouts": ROLLOUTS, "blocks": _BLOCKS, "steps": _STEPS, "versions": versions}
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
    returns: list[float] = []
    steps = 0
    for block in range(_BLOCKS):
        protocol = Protocol(seed=block, step_timeout=step_timeout)
        (result,) = roll_out(RandomPlayer(protocol.first_seed(0)), [environment], protocol)
        if result.failure is not None:
            raise result.failure
        returns += [value for rollout in result.returns for value in rollout]
        steps += sum(map(sum, result.lengths))
        if steps >= _STEPS:
            break
    return returns
