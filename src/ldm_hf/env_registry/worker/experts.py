"""Experts: functions that choose actions beside the environments, inside an installation; and those that libraries ship.

An expert is named ``module:function``. A function of an observation is asked at every step. One whose first parameter is
called ``env`` is given the environment when an episode begins, and returns what is asked at every step of it: a function of
the observation and of the action that was taken last (None at first), which need not be the one that it chose.

Python 3.7 with only numpy must run this file.
"""

import inspect
import sys
import types

from compatibility import resolve


def load(function, source):
    """The function that ``module:function`` names: in a text of Python, if there is one, otherwise in what is installed."""
    if source is None:
        return resolve(function)
    name = function.partition(":")[0]
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
    return resolve(function)


class Expert:
    """The expert of one environment."""

    def __init__(self, function, env):
        """Take a function, see above, and the library's environment."""
        parameters = list(inspect.signature(function).parameters)
        self._function, self._env = function, env
        self._takes_env = bool(parameters) and parameters[0] == "env"
        self._choose = self._observation = self._last = None

    def begin(self, observation):
        """An episode begins with an observation."""
        self._choose = self._function(self._env) if self._takes_env else None
        self._observation, self._last = observation, None

    def follow(self, action, observation):
        """An action was taken, and this is what came of it."""
        self._last, self._observation = action, observation

    def act(self):
        """What the expert would do now."""
        if self._choose is None:
            return self._function(self._observation)
        return self._choose(self._observation, self._last)


def metaworld(env):
    """Meta-World's scripted policy of a task, by the name that its environment was made with."""
    from metaworld.policies import ENV_POLICY_MAP

    policy = ENV_POLICY_MAP[env.spec.kwargs["env_name"]]()
    return lambda observation, last: policy.get_action(observation)


def babyai(env):
    """BabyAI's bot, which sees the whole grid. Where it lost its way, because another's action was taken, it plans again.

    Where it has no plan at all, an object that was dropped being in the way, say, it does what it does at the end of one:
    ``done``, which changes nothing.
    """
    from minigrid.utils.baby_ai_bot import BabyAIBot

    bots = [BabyAIBot(env)]

    def act(observation, last):
        try:
            return bots[0].replan(last)
        except Exception:
            bots[0] = BabyAIBot(env)
        try:
            return bots[0].replan()
        except Exception:
            bots[0] = BabyAIBot(env)
            return env.unwrapped.actions.done

    return act
