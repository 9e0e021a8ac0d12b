"""Whatever a worker answers, the client raises a typed error of one line."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ldm_hf.env_registry.remote.vector_env import RemoteEnv, RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from ldm_hf.errors import EnvironmentFailure
from test_remote_env import ODD, Here

LYING = dataclasses.replace(ODD, modules=("lying_environment",), packages=("lying_environment",))


def lies(table):
    """The keys of a table of the lying environment, which only a worker can import."""
    tree = ast.parse((Path(__file__).parent / "lying_environment.py").read_text())
    found = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == table)
    return [key.value for key in found.keys]


def settings(lie, **changes):
    return RemoteSettings(Here(LYING), "Lying-v0", kwargs={"lie": lie}, **changes)


def use(lie, vector):
    env = RemoteVectorEnv(settings(lie), 1) if vector else RemoteEnv(settings(lie))
    try:
        env.reset(seed=0)
        env.step(np.zeros(1, int) if vector else 0)
        env.render()
    finally:
        env.close()


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("lie", [*lies("DESCRIPTIONS"), *lies("STEPS"), *lies("FRAMES")])
def test_lies_are_typed_errors(lie, vector):
    with pytest.raises(EnvironmentFailure, match="its answer is not understood") as caught:
        use(lie, vector)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("lie", lies("NUMBERS"))
def test_an_answer_to_another_request_is_a_typed_error(lie):
    with pytest.raises(EnvironmentFailure, match=r"step was answered by garbage \(answer number"):
        use(lie, vector=True)


def test_errors_of_a_worker_are_one_line_without_control_characters():
    with pytest.raises(EnvironmentFailure, match=r"step failed: \[2Jgone second line$"):
        use("error", vector=False)


def test_a_worker_that_lies_is_replaced():
    env = RemoteVectorEnv(settings("infos_number", restart=True), 2, num_workers=2, autoreset_mode="SameStep")
    env.reset(seed=0)
    _, _, _, truncated, info = env.step(np.zeros(2, int))
    assert truncated.tolist() == [True, True]
    assert all("not understood" in reason for reason in info["final_info"]["worker_failure"])
    env.close()
