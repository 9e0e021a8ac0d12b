"""Registers an environment as Gym 0.11 does, whose specs keep their entry point under a name of its own."""

import sys
import types

spec = types.SimpleNamespace(id="Counting-v0", _entry_point="odd_environments:Counting", max_episode_steps=50)
registration = types.ModuleType("gym.envs.registration")
registration.registry = types.SimpleNamespace(env_specs={spec.id: spec})
sys.modules[registration.__name__] = registration
