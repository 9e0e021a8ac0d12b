"""Candidates that RL Zoo tuned for an environment: ``zoo.json``, which ``scripts/update_zoo.py`` writes."""

import functools
import json
import re
from importlib import resources
from typing import Any

from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.env_registry.ids import EnvironmentId

PREFIX = "zoo-"
"""How the names of tuned candidates begin."""

_VERSION = re.compile(r"-v\d+$")


def tuned(environment: str) -> dict[str, Candidate]:
    """The candidates that were tuned for an environment, by name; none for most.

    Environments match by their Gymnasium id, whatever library has them. Where it is the only version that was tuned,
    another version of the id matches as well, and ``source`` says which one it was.

    Args:
        environment: ``<library>/<Gymnasium id>``.
    """
    name = EnvironmentId.parse(environment).name
    values = _zoo()
    found = name if name in values["tuned"] else None
    if found is None:
        same = [other for other in values["tuned"] if _VERSION.sub("", other) == _VERSION.sub("", name)]
        found = same[0] if len(same) == 1 and _VERSION.search(name) else None
    if found is None:
        return {}
    source = f"RL Zoo {values['version']}, tuned for {found}"
    return {
        f"{PREFIX}{algorithm}": Candidate(algorithm, name=f"{PREFIX}{algorithm}", source=source, **fields)
        for algorithm, fields in values["tuned"][found].items()
    }


@functools.cache
def _zoo() -> dict[str, Any]:
    text = resources.files("ldm_hf.dataset_builder.build.race").joinpath("zoo.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
