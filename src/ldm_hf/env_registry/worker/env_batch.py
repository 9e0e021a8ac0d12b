"""The environments of one worker, stepped together; their numbers lie in memory that the client maps too.

Python 3.7 with only numpy must run this file.
"""

import numpy as np
from attributes import get_attribute, set_attribute
from compatibility import Environment, TranslationError, rendering
from decoding import decode
from experts import Expert, load
from fitting import fit
from protocol import FLOATS, SharedBatch
from space_tree import array_format, at, join, leaves, split

_PLAIN = (bool, int, float, str, bytes, type(None))
_FLOAT = (float, np.float64)
_MAX_DEPTH = 8


class EnvBatch:
    """``num_envs`` copies of one environment."""

    def __init__(self, recipe, num_envs, autoreset, expert=None):
        """Make the environments; ``autoreset`` is the value of Gymnasium's ``AutoresetMode``.

        An expert is a map: its function as ``module:function``, and the source of the module or None.
        """
        self.environments = [Environment(recipe) for _ in range(num_envs)]
        first = self.environments[0]
        function = None if expert is None else load(expert["function"], expert["source"])
        self.experts = [] if function is None else [Expert(function, one.env) for one in self.environments]
        self.autoreset = autoreset
        self.outside = np.zeros(num_envs, np.int64)
        self.steps = 0
        self._ended = [True] * num_envs  # A batch that was never reset starts with a reset where steps make them.
        self._space = first.action_space
        self._action_leaves = leaves(first.action_space)
        self._observation_leaves = [(path, leaf, array_format(leaf)) for path, leaf in leaves(first.observation_space)]
        self._limits = [_limits(leaf, shape_and_dtype) for _, leaf, shape_and_dtype in self._observation_leaves]
        self._inline = any(shape_and_dtype is None for _, _, shape_and_dtype in self._observation_leaves)
        self.shared = SharedBatch(first.observation_space, first.action_space, num_envs)

    def description(self):
        """What the client must know of the environments."""
        first = self.environments[0]
        modes, fps = rendering(first.env)
        spec = getattr(first.env, "spec", None)
        return {
            "observation_space": first.observation_space,
            "action_space": first.action_space,
            "max_episode_steps": first.max_episode_steps,
            "time_limit_is_default": first.time_limit_is_default,
            "render_modes": modes,
            "render_fps": fps,
            "kwargs": plain(getattr(spec, "kwargs", getattr(spec, "_kwargs", {}))),
        }

    def share(self, descriptor):
        """Keep the numbers in the memory of an open file from now on."""
        self.shared.attach(descriptor)

    def reset(self, seeds, options, mask):
        """Reset the environments of the mask, or all."""
        infos, inline = [None] * len(self.environments), {}
        for index, environment in enumerate(self.environments):
            if mask is None or mask[index]:
                observation, infos[index] = environment.reset(seeds[index], options[index])
                self._write(self.shared.observations, index, observation, inline)
                self._ended[index] = False
                if self.experts:
                    self.experts[index].begin(observation)
        self._count_outside(self.shared.observations)
        return self._answer(infos, None, inline, None)

    def step(self, actions):
        """Step every environment, and reset those whose episode ends as the autoreset mode says."""
        shared = self.shared
        infos, finals, inline, final_inline = [], None, {}, {}
        rewards, ends = [], []
        same_step, next_step = self.autoreset == "SameStep", self.autoreset == "NextStep"
        actions = self._actions(actions)
        for index, environment in enumerate(self.environments):
            begins = next_step and self._ended[index]
            if begins:
                (observation, info), reward, terminated, truncated = environment.reset(), 0.0, False, False
            else:
                observation, reward, terminated, truncated, info = environment.step(actions[index])
            ended = terminated or truncated
            if ended and same_step:
                self._write(shared.final_observations, index, observation, final_inline)
                finals = [None] * len(self.environments) if finals is None else finals
                finals[index] = info
                observation, info = environment.reset()
                begins = True
            self._ended[index] = ended
            if self.experts and begins:
                self.experts[index].begin(observation)
            elif self.experts:
                self.experts[index].follow(actions[index], observation)
            self._write(shared.observations, index, observation, inline)
            rewards.append(reward)
            ends.append((terminated, truncated))
            infos.append(info)
        shared.rewards[:] = rewards
        shared.ends[:] = ends
        self.steps += len(self.environments)
        self._count_outside(shared.observations)
        if finals is not None:
            self._count_outside(shared.final_observations, [info is not None for info in finals])
        return self._answer(infos, finals, inline, final_inline)

    def diagnostics(self):
        """Counts of what is out of order, over all environments."""
        counts = {
            key: sum(environment.statistics[key] for environment in self.environments)
            for key in self.environments[0].statistics
        }
        counts.update(steps=self.steps, observations_outside_space=int(self.outside.sum()))
        counts.update(step_values=self.environments[0].api)
        return counts

    def has(self, name):
        """What a name is in each environment, or in what its wrappers wrap: "value", "method" or "nothing"."""
        found = []
        for environment in self.environments:
            try:
                found.append("method" if callable(get_attribute(environment.env, name)) else "value")
            except AttributeError:
                found.append("nothing")
        return found

    def set(self, name, values, rows):
        """Set an attribute of the environments of some rows, where it is already, or in the innermost one."""
        for row, value in zip(rows, values):
            set_attribute(self.environments[row].env, name, value)

    def call(self, name, args, kwargs, rows):
        """Call a method of the environments of some rows, or read an attribute; what that gives, as plain data."""
        found = [get_attribute(self.environments[row].env, name) for row in rows]
        return [plain(one(*args, **kwargs) if callable(one) else one, strict=True) for one in found]

    def expert_actions(self):
        """What the expert of each environment would do now: the leaves of an action each, as plain data."""
        chosen = [expert.act() for expert in self.experts]
        return [[plain(part, strict=True) for part in split(self._space, action)] for action in chosen]

    def _actions(self, inline):
        """The actions, one per environment, in the types that libraries expect: Python integers and arrays of their own."""
        shared = [None if array is None else array.copy() for array in self.shared.actions]
        if len(shared) == 1 and shared[0] is not None and self._space["type"] not in ("Dict", "Tuple"):
            return shared[0].tolist() if self._space["type"] == "Discrete" else list(shared[0])
        return [join(self._space, self._parts(shared, index, inline)) for index in range(len(self.environments))]

    def _parts(self, shared, index, inline):
        for array, (_, leaf) in zip(shared, self._action_leaves):
            if array is None:
                yield decode(leaf, inline[index].pop(0))
            else:
                yield int(array[index]) if leaf["type"] == "Discrete" else array[index]

    def _write(self, arrays, index, observation, inline):
        for array, (path, _, shape_and_dtype) in zip(arrays, self._observation_leaves):
            value = at(observation, path) if path else observation
            if shape_and_dtype is None:
                inline.setdefault(index, []).append(plain(value, strict=True))
                continue
            # Identity is enough where it holds, and asked in a tenth of the time.
            if not isinstance(value, np.ndarray) or (
                value.dtype is not shape_and_dtype[1] and value.dtype != array.dtype
            ):
                value = fit(value, array.dtype, _where(path))
            if value.shape != shape_and_dtype[0]:
                value = self._reshape(value, path, shape_and_dtype[0], index)
            array[index] = value

    def _reshape(self, value, path, shape, index):
        squeezed = [[length for length in lengths if length != 1] for lengths in (value.shape, shape)]
        if squeezed[0] != squeezed[1]:
            raise TranslationError(f"{_where(path)} has shape {value.shape}, the space says {shape}")
        self.outside[index] += 1
        return value.reshape(shape)

    def _count_outside(self, arrays, rows=True):
        """Count the environments among ``rows`` whose numbers in ``arrays`` lie outside their space."""
        outside = None
        for array, limits in zip(arrays, self._limits):
            if limits is not None:
                inside = (array >= limits[0]) & (array <= limits[1])
                if not inside.all():  # seldom, and only then which is asked
                    wrong = ~inside.reshape(len(array), -1).all(axis=1) & rows
                    outside = wrong if outside is None else outside | wrong
        if outside is not None:
            self.outside += outside

    def _answer(self, infos, finals, inline, final_inline):
        answer = {}
        if any(infos):
            answer["infos"] = columns(infos)
        if finals is not None:
            answer["final_infos"] = columns(finals)
        if self._inline:
            answer["inline"] = [inline.get(index) for index in range(len(self.environments))]
            if finals is not None:
                answer["final_inline"] = [final_inline.get(index) for index in range(len(self.environments))]
        return answer


def _where(path):
    return "observation" + "".join(f"[{part!r}]" for part in path)


def columns(infos):
    """Infos of several environments by key: (values, where there is one).

    The values are an array where they are numbers or arrays of one kind, otherwise a list; a dictionary's are columns again.
    """
    found, numbers = {}, {}
    for key in {key: None for info in infos if info for key in info}:
        if all(info and type(info.get(key)) in _FLOAT for info in infos):
            numbers[str(key)] = [info[key] for info in infos]
            continue
        present = [bool(info) and key in info for info in infos]
        values = [info[key] if there else None for info, there in zip(infos, present)]
        given = values if all(present) else [value for value, there in zip(values, present) if there]
        found[str(key)] = [_column(values, given), present]
    if numbers:
        found[FLOATS] = [list(numbers), np.array(list(numbers.values()))]
    return found


def _column(values, given):
    first = given[0]
    kind = type(first)
    if all(isinstance(value, dict) for value in given):
        return columns([value if isinstance(value, dict) else {} for value in values])
    if kind in (bool, int, float) or isinstance(first, (np.number, np.bool_)):
        if all(type(value) is kind for value in given):
            array = np.array(given)
            if array.dtype.kind != "O":
                return _spread(array, values, given)
    if isinstance(first, np.ndarray) and first.dtype.kind in "biufc":
        if all(isinstance(value, np.ndarray) and value.shape == first.shape for value in given):
            return _spread(np.array(given), values, given)
    return [plain(value) for value in values]


def _spread(array, values, given):
    if len(given) == len(values):
        return array
    spread = np.zeros((len(values),) + array.shape[1:], array.dtype)
    spread[[value is not None for value in values]] = array
    return spread


def plain(value, strict=False, depth=0):
    """A value as data that a message holds; what is none becomes None, or with ``strict`` an error."""
    if isinstance(value, _PLAIN):
        return str(value) if type(value) is int and not -(2**63) <= value < 2**64 else value
    if depth < _MAX_DEPTH:
        if isinstance(value, dict):
            return {str(key): plain(part, strict, depth + 1) for key, part in value.items()}
        if isinstance(value, (list, tuple, set)):
            return [plain(part, strict, depth + 1) for part in value]
        if isinstance(value, np.generic):
            return plain(value.item(), strict, depth + 1)
        if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
            array = np.asarray(value)
            if array.dtype.kind in "biufc":
                return array
            return plain(array.tolist(), strict, depth + 1)
    if strict:
        raise TranslationError(f"a {type(value).__name__} is not plain data and cannot leave the installation")
    return None


def _limits(leaf, shape_and_dtype):
    """Bounds to hold observations against, or None where every value of the dtype is inside."""
    if shape_and_dtype is None:
        return None
    shape, dtype = shape_and_dtype
    if leaf["type"] == "Box":
        low, high = (
            np.array(_numbers(leaf[key]), dtype).reshape(shape if isinstance(leaf[key], list) else ())
            for key in ("low", "high")
        )
        if dtype.kind in "iu" and (low == np.iinfo(dtype).min).all() and (high == np.iinfo(dtype).max).all():
            return None
        return low, high
    if leaf["type"] == "Discrete":
        return leaf["start"], leaf["start"] + leaf["n"] - 1
    if leaf["type"] == "MultiDiscrete":
        start = np.array(leaf["start"])
        return start, start + np.array(leaf["nvec"]) - 1
    return 0, 1


def _numbers(bounds):
    if isinstance(bounds, list):
        return [_numbers(bound) for bound in bounds]
    return float(bounds) if isinstance(bounds, str) else bounds
