"""An environment whose worker lies: it changes what its process tells the client."""

import gymnasium
import numpy as np
import protocol  # the worker's


def box(**changes):
    return {"type": "Box", "shape": [3], "dtype": "float32", "low": 0.0, "high": 1.0, **changes}


DESCRIPTIONS = {
    "object_dtype": {"observation_space": box(dtype="O")},
    "huge_box": {"observation_space": box(shape=[1 << 40])},
    "large_box": {"observation_space": box(shape=[1 << 31])},
    "large_inner_box": {"observation_space": {"type": "Sequence", "space": box(shape=[1 << 31]), "stack": False}},
    "large_actions": {"action_space": {"type": "MultiBinary", "n": 1 << 31}},
    "negative_shape": {"observation_space": box(shape=[-3])},
    "no_space": {"observation_space": None},
    "render_modes": {"render_modes": 3},
    "frames_per_second": {"render_fps": "many"},
}
STEPS = {
    "infos_number": {"infos": 5},
    "infos_list": {"infos": [1]},
    "infos_short": {"infos": {"a": [[1], []]}},
    "infos_nested": {"infos": {"a": [{"b": 3}, [True]]}},
    "infos_none": {"infos": {"a": None}},
    "infos_scalar": {"infos": {"a": [np.zeros(()), [True]]}},
    "infos_key": {"infos": {b"a": [[1], [True]]}},
    "infos_flags": {"infos": {"a": [[1], [[True, False]]]}},
    "floats_number": {"infos": {b"": 7}},
    "floats_shape": {"infos": {b"": [["a"], np.zeros((5, 5))]}},
    "floats_names": {"infos": {b"": [[["a"]], np.zeros((1, 1))]}},
    "final_infos": {"final_infos": 3},
    "inline": {"inline": 3},
}
NUMBERS = {
    "number_none": {"number": None},
    "number_flag": {"number": True},
    "number_before": {"number": 1},
    "number_after": {"number": 99},
}
FRAMES = {
    "frames_missing": {},
    "frames_number": {"frames": 3},
    "frames_none": {"frames": []},
    "frames_floats": {"frames": [np.zeros((4, 4, 3))]},
    "frames_nested": {"frames": [[[None]]]},
}


class Lying(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, lie):
        send = protocol.Channel.send
        self.steps = 0

        def lying_send(channel, message, timeout=None):
            if "observation_space" in message:
                message = {**message, **DESCRIPTIONS.get(lie, {})}
            elif "frames" in message:
                message = {**FRAMES[lie], "number": message["number"]} if lie in FRAMES else message
            elif self.steps:
                message = {**message, **STEPS.get(lie, {})}
                if lie == "error":
                    message = {"error": "\x1b[2Jgone\nsecond line", "number": message["number"]}
                message.update(NUMBERS.get(lie, {}))
            send(channel, message, timeout)

        protocol.Channel.send = lying_send

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(3, np.float32), 1.0, False, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


gymnasium.register("Lying-v0", entry_point=Lying)
