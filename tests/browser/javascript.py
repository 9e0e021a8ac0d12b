"""Running JavaScript from tests: in the Node.js that Playwright brings."""

import json
import subprocess
from pathlib import Path

import numpy as np
import playwright

HERE = Path(__file__).parent
NODE = Path(playwright.__file__).parent / "driver" / "node"


def run_node(program, **given):
    """What a program beside this file answers, as JSON, to what it is given."""
    done = subprocess.run(
        [NODE, HERE / program], input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False
    )
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout)


def json_value(value):
    """A value of a space as JavaScript has it: arrays are flat."""
    if isinstance(value, dict):
        return {key: json_value(part) for key, part in value.items()}
    return np.ravel(value).tolist() if np.ndim(value) else np.asarray(value).item()
