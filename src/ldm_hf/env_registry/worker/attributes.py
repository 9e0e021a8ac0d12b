"""Attributes of an environment and of what its wrappers wrap, for old Gym's wrappers as for Gymnasium's.

Python 3.7 with only numpy must run this file.
"""

_MAX_WRAPPERS = 50


def layers(env):
    """An environment and what it wraps, the outermost first."""
    innermost, found = getattr(env, "unwrapped", env), [env]
    while found[-1] is not innermost and _own(found[-1]).get("env") is not None and len(found) < _MAX_WRAPPERS:
        found.append(_own(found[-1])["env"])
    return found


def get_attribute(env, name):
    """An attribute of the outermost layer that has it; ``AttributeError`` if there is none."""
    for layer in layers(env):
        try:
            return getattr(layer, name)
        except AttributeError:
            pass
    raise AttributeError("{!r} object has no attribute {!r}".format(type(layers(env)[-1]).__name__, name))


def set_attribute(env, name, value):
    """Set an attribute of the outermost layer that has it, or a new one of the innermost, whose code may ask for it."""
    found = layers(env)
    owners = [layer for layer in found if name in _own(layer) or hasattr(type(layer), name)]
    setattr((owners or found[-1:])[0], name, value)


def _own(layer):
    return getattr(layer, "__dict__", {})
