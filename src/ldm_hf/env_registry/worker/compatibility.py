"""Environments of any Gym or Gymnasium API as one: ``reset`` gives two values, ``step`` five, all of them plain.

What libraries do, and what becomes of it here:

- a step of four values (old Gym): ``info["TimeLimit.truncated"]`` tells truncation from termination;
- a step of six values (safety libraries): the cost moves into ``info["cost"]``;
- a reset that gives the observation only, ``env.seed`` instead of ``reset(seed=...)``, or a reset that takes a seed and
  ignores it;
- a reward of several values: their weighted sum, the values in ``info["vector_reward"]``;
- no time limit: the default one;
- actions that must be Python integers; observations that are lists, JAX arrays or of another dtype;
- a text in the observation, where the recipe has words for it: a symbol for each word;
- an observation outside its declared space is passed on and counted, and so is a reward that is not finite.

Python 3.7 with only numpy must run this file.
"""

import importlib
import inspect
import math
import random
import re
import sys

import numpy as np

try:
    from space_tree import (
        KINDS,
        SpaceError,
        describe,
        leaves,
    )  # in an isolated installation: the files lie side by side
except ImportError:
    from ldm_hf.env_registry.worker.space_tree import KINDS, SpaceError, describe, leaves


class TranslationError(Exception):
    """The environment does what no API allows."""


def resolve(path):
    """The object that ``module:name.name`` names."""
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def evaluate(value):
    """Replace every ``{"call": "module:name", "args": [...], "kwargs": {...}}`` inside a value by what the call returns."""
    if isinstance(value, list):
        return [evaluate(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "call" not in value:
        return {key: evaluate(part) for key, part in value.items()}
    return resolve(value["call"])(*evaluate(value.get("args", [])), **evaluate(value.get("kwargs", {})))


def registries():
    """The registered specs of gymnasium and gym, as far as they are imported: (name of the registry, id -> spec)."""
    found = []
    for name in ("gymnasium", "gym"):
        registration = sys.modules.get(name + ".envs.registration")
        registry = getattr(registration, "registry", None)
        if registry is not None:
            found.append(
                (name, getattr(registry, "env_specs", registry))
            )  # gym before 0.26 keeps them one level lower.
    return found


def registering(modules):
    """Functions of imported modules, as ``module:name``, whose name says that they register and that need no argument."""
    found = []
    for module in modules:
        for name, function in sorted(vars(sys.modules[module]).items()):
            if name.startswith("register") and inspect.isfunction(function):
                parameters = inspect.signature(function).parameters.values()
                if all(
                    one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
                    for one in parameters
                ):
                    found.append("{}:{}".format(module, name))
    return found


def construct(recipe):
    """Make an environment: by its own entry point if the recipe names one, otherwise as the libraries' registry does."""
    kwargs = evaluate(recipe.get("kwargs", {}))
    if recipe.get("render_mode") is not None:
        kwargs["render_mode"] = recipe["render_mode"]
    if recipe.get("entry_point") is not None:
        entry_point = recipe["entry_point"]
        kwargs = dict(evaluate(entry_point.get("kwargs", {})), **kwargs)
        return resolve(entry_point["call"])(*evaluate(entry_point.get("args", [])), **kwargs)
    for registry, specs in registries():
        if recipe["name"] in specs:
            if (
                registry == "gymnasium"
                or "disable_env_checker" in inspect.signature(sys.modules[registry].make).parameters
            ):
                kwargs["disable_env_checker"] = True  # Observations outside their space are counted here.
            return sys.modules[registry].make(recipe["name"], **kwargs)
    raise TranslationError("no registry knows {!r}".format(recipe["name"]))


def _described(space):
    try:
        described = describe(space)
    except SpaceError as error:
        raise TranslationError(str(error)) from error
    for _, leaf in leaves(described):
        if leaf["type"] not in KINDS:
            raise TranslationError("a space of type {} is none of Gymnasium's".format(leaf["type"]))
    return described


def rendering(env):
    """The render modes that an environment declares, and its frames per second or None."""
    metadata = getattr(env, "metadata", None) or {}
    modes = metadata.get("render_modes", metadata.get("render.modes")) or []
    fps = metadata.get("render_fps", metadata.get("video.frames_per_second"))
    return [mode for mode in modes if isinstance(mode, str)], float(fps) if isinstance(fps, (int, float)) else None


def renders(env, mode):
    """Whether an environment has a render mode: one that it declares, or a list of what that gives at each step."""
    known = rendering(env)[0] or ["human", "rgb_array", "ansi"]
    return mode is None or mode in known or (mode.endswith("_list") and mode[: -len("_list")] in known)


class Text:
    """A text at a path of keys in an observation, as symbols of its words; see ``Texts`` of the manifest."""

    def __init__(self, path, words, length):
        self._path, self._length = path, length
        self._symbols = {word: symbol for symbol, word in enumerate(words, 2)}
        self._last, self._encoded = None, None

    def describe(self, space):
        """The observation's space, as JSON, with symbols in place of the text."""
        numbers = [len(self._symbols) + 2] * self._length
        symbols = {"type": "MultiDiscrete", "nvec": numbers, "start": [0] * self._length, "dtype": "int64"}
        return self._replaced(space, self._path, lambda part: symbols, lambda part: part["spaces"])

    def encode(self, observation):
        """The observation with symbols in place of the text, int64 of shape (length,)."""
        return self._replaced(observation, self._path, self._encode, lambda part: part)

    def _encode(self, text):
        if text != self._last:  # it stays for an episode
            words = re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())[: self._length]
            self._encoded = np.zeros(self._length, np.int64)
            self._encoded[: len(words)] = [self._symbols.get(word, 1) for word in words]
            self._last = text
        return self._encoded.copy()

    def _replaced(self, value, path, change, inside):
        """A copy of nested dictionaries in which what stands at the path is changed; ``inside`` finds a level's entries."""
        if not path:
            return change(value)
        try:
            entries = dict(inside(value))
            entries[path[0]] = self._replaced(entries[path[0]], path[1:], change, inside)
        except (KeyError, TypeError, ValueError):
            raise TranslationError("the observation has no text at {}".format("/".join(self._path))) from None
        return dict(value, spaces=entries) if inside(value) is not value else entries


class Environment:
    """One environment behind the one API.

    Attributes:
        env: the library's own object.
        observation_space, action_space: its spaces, as JSON.
        max_episode_steps: steps after which an episode is truncated.
        api: which form of steps and resets the library has, as seen so far.
        statistics: counts of what is out of order: "nonfinite_rewards", "vector_rewards".
    """

    def __init__(self, recipe):
        """Make the environment of a recipe (name, kwargs, entry_point, render_mode, limits, reward weights, texts)."""
        mode = recipe.get("render_mode")
        self._frames = None  # since the last `render`, where they are collected here
        if mode is not None and mode.endswith("_list") and recipe.get("entry_point") is not None:
            recipe, self._frames = dict(recipe, render_mode=mode[: -len("_list")]), []
        self._lists = mode is not None and mode.endswith("_list")
        self.env = construct(recipe)
        if not renders(self.env, mode):
            raise TranslationError("render_mode must be one of {}, got {!r}".format(rendering(self.env)[0], mode))
        self._texts = [Text(**text) for text in recipe.get("texts") or ()]
        self.observation_space = _described(self.env.observation_space)
        for text in self._texts:
            self.observation_space = text.describe(self.observation_space)
        self.action_space = _described(self.env.action_space)
        self.max_episode_steps, self.time_limit_is_default = self._limit_time(recipe)
        self.api = None
        self.statistics = {"nonfinite_rewards": 0, "vector_rewards": 0}
        self._weights = recipe.get("reward_weights")
        self._steps = 0
        takes = self._parameters_of_reset()
        self._takes_seed, self._takes_options = "seed" in takes, "options" in takes
        self._seeds_by_method = False  # whether reset has been seen to ignore its seed
        self._step = self.env.step

    def reset(self, seed=None, options=None):
        """Start an episode; returns the observation as the library gives it, and the info."""
        kwargs = {}
        if seed is not None:
            self._seed(seed, kwargs)
        if options and self._takes_options:
            kwargs["options"] = options
        result = self.env.reset(**kwargs)
        if seed is not None and not self._seeds_by_method and self._ignored(seed):
            self._seeds_by_method = True
            self._seed(seed, kwargs)
            result = self.env.reset(**kwargs)
        self._steps = 0
        if self._frames is not None:
            self._frames = [self._render()]
        has_info = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        observation, info = result if has_info else (result, {})
        return self._in_symbols(observation), info

    def step(self, action):
        """Take an action; returns observation, reward (a float), terminated, truncated, info."""
        result = self._step(action)
        if len(result) == 5:
            observation, reward, terminated, truncated, info = result
        elif len(result) == 4:
            observation, reward, done, info = result
            truncated = done and bool(info.get("TimeLimit.truncated", False))
            terminated = done and not truncated
        elif len(result) == 6:
            observation, reward, cost, terminated, truncated, info = result
            info = dict(info, cost=cost)
        else:
            raise TranslationError(f"a step gave {len(result)} values; 4, 5 or 6 are known")
        self.api = len(result)
        self._steps += 1
        if self._frames is not None:
            self._frames.append(self._render())
        if type(reward) is not float:
            reward, info = self._scalar(reward, info)
        if not math.isfinite(reward):
            self.statistics["nonfinite_rewards"] += 1
        terminated, truncated = _flag(terminated), _flag(truncated)
        return (
            self._in_symbols(observation),
            reward,
            terminated,
            truncated or (self._steps >= self.max_episode_steps and not terminated),
            info,
        )

    def render(self):
        """An image as uint8 of shape (height, width, 3), a text, a list of these as the render mode says; or None."""
        if self._frames is not None:
            frames, self._frames = self._frames, []
            return frames
        return self._render()

    def _in_symbols(self, observation):
        for text in self._texts:
            observation = text.encode(observation)
        return observation

    def _render(self):
        takes_mode = "mode" in inspect.signature(self.env.render).parameters
        rendered = self.env.render(mode="rgb_array") if takes_mode else self.env.render()
        if isinstance(rendered, (list, tuple)):
            frames = [frame(part) for part in rendered]
            return frames if self._lists else (frames or [None])[-1]
        return frame(rendered)

    def _seed(self, seed, kwargs):
        # Many libraries draw from the global generators, which no argument of theirs seeds.
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if self._takes_seed:
            kwargs["seed"] = seed
        seeded = self.env.unwrapped if self._seeds_by_method else self.env
        if (self._seeds_by_method or not self._takes_seed) and hasattr(seeded, "seed"):
            try:
                seeded.seed(seed)
            except (TypeError, AttributeError):
                # procgen's takes no seed, OCAtari's hands it to a method that Gymnasium no longer has: what that comes to is
                # found out by validation.
                pass

    def _ignored(self, seed):
        """Whether reset took a seed and did nothing with it, in an environment with a method `seed`: Meta-World's do."""
        inner = getattr(self.env, "unwrapped", None)
        return (
            self._takes_seed
            and callable(getattr(type(inner), "seed", None))
            and getattr(inner, "_np_random_seed", seed) != seed
        )

    def _parameters_of_reset(self):
        """The arguments that reset of the environment and of all its wrappers takes."""
        layers = [self.env]
        while hasattr(layers[-1], "env") and hasattr(layers[-1].env, "reset") and len(layers) < 50:
            layers.append(layers[-1].env)
        taken = {"seed", "options"}
        for layer in layers:
            parameters = inspect.signature(layer.reset).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                taken &= {parameter.name for parameter in parameters}
        return taken

    def _limit_time(self, recipe):
        """Give the library's own time limit another length where one is asked for; returns the limit in force."""
        layer, limiters = self.env, []
        while layer is not None and len(limiters) < 50:
            if type(layer).__name__ == "TimeLimit" and hasattr(layer, "_max_episode_steps"):
                limiters.append(layer)
            layer = layer.__dict__.get("env")
        registered = [limiter._max_episode_steps for limiter in limiters if limiter._max_episode_steps]
        spec = getattr(self.env, "spec", None)
        if not registered and getattr(spec, "max_episode_steps", None):
            registered = [spec.max_episode_steps]
        wanted = recipe.get("max_episode_steps")
        if wanted is None:
            return (min(registered), False) if registered else (recipe["default_max_episode_steps"], True)
        for limiter in limiters:
            limiter._max_episode_steps = wanted
        return wanted, not registered

    def _scalar(self, reward, info):
        values = np.asarray(reward, np.float64)
        if values.size == 1:
            return float(values.reshape(())), info
        weights = np.ones(values.size) if self._weights is None else np.asarray(self._weights, np.float64)
        if weights.shape != values.shape:
            raise TranslationError(f"a reward of shape {values.shape} with {weights.size} weights")
        self.statistics["vector_rewards"] += 1
        return float(values @ weights), dict(info, vector_reward=values)


def frame(rendered):
    """What ``render`` gave as uint8 RGB of shape (height, width, 3), a text as it is, or None for anything else.

    Colours that are floats are shares of 255, as MinAtar gives them, unless one is larger than 1.
    """
    if isinstance(rendered, str) or np.ndim(rendered) != 3:
        return rendered if isinstance(rendered, str) else None
    pixels = np.asarray(rendered)[:, :, :3]
    if pixels.dtype.kind == "f":
        pixels = np.clip(np.nan_to_num(pixels) * (255 if np.nanmax(pixels, initial=0) <= 1 else 1), 0, 255).round()
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _flag(value):
    return value if type(value) is bool else bool(np.asarray(value).any())
