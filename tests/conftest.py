"""A toy corpus and a toy model, made once by the real parts, and helpers."""

import contextlib
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Small tensors: more threads only wait for each other.
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # No test reaches beyond this machine.

from ldm_hf.cli.main import main
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.reference.run import build_run
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.experiments.m3dt.stages import attach_experts, is_expert, is_router
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor

hypothesis.settings.register_profile("untimed", deadline=None)  # A busy machine fails no test.
hypothesis.settings.load_profile("untimed")

CARTPOLE, CLIFF, PENDULUM = "gymnasium/CartPole-v1", "gymnasium/CliffWalking-v1", "gymnasium/Pendulum-v1"
TOY_MODEL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "slot_embedding_size": 16,
    "max_position_embeddings": 16,
    "max_action_slots": 4,
}
NUM_EXPERTS = 3
_REFERENCES = {
    CARTPOLE: (Candidate("PPO", {"n_steps": 64}, num_envs=4), 2048),
    CLIFF: (Candidate("DQN", {"learning_starts": 100}, num_envs=4), 12_000),
    PENDULUM: (Candidate("PPO", {"n_steps": 64, "use_sde": True}, num_envs=4, normalize=True), 4096),
}


def run_ldm(*arguments: object, module: str = "ldm_hf", **options) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)


def run_ldm_here(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command line in this process, which has imported what takes a process of its own seconds to import."""
    command, output, errors = ["ldm", *map(str, arguments)], io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", command)
        if cwd is not None:
            patch.chdir(cwd)
        main()
    return subprocess.CompletedProcess(command, ended.value.code or 0, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def small_disk(largest_file: int) -> Iterator[None]:
    """The largest file that this process may write, in bytes, stands in for the space that is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory) -> Iterator[None]:
    """Returns of random policies are kept there: measured once, and none of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Datasets of three real environments, from runs far too short to learn much."""
    root = tmp_path_factory.mktemp("corpus") / "data"
    for environment, (candidate, timesteps) in _REFERENCES.items():
        build_run(RunRequest(environment, candidate, timesteps, 0, keep="all"), root)
    update_repository(root / "gymnasium")
    return root


@pytest.fixture(scope="session")
def processor() -> LDMProcessor:
    return LDMProcessor(max_action_slots=TOY_MODEL["max_action_slots"])


@pytest.fixture(scope="session")
def model() -> LDMModel:
    """A small model with random weights, large enough ones that its choices differ from input to input."""
    import torch

    torch.manual_seed(0)
    made = LDMModel(LDMConfig.preset("nano", **TOY_MODEL, initializer_range=0.3, action_smoothing=0.0)).eval()
    return made


@pytest.fixture(scope="session")
def address(model, processor) -> Iterator[str]:
    """Of a server of the small model, with places for ``serving.FULL`` environments."""
    from serving import serving

    with serving(model, processor) as found:
        yield found


@pytest.fixture
def client(address):
    """A client of that server."""
    from ldm_hf.serving.client import Client

    with Client(address) as made:
        yield made


@pytest.fixture(scope="session")
def mixture_model(model) -> LDMModel:
    """The small model with experts that have something to say, and routers that prefer some to others."""
    import torch

    torch.manual_seed(1)
    made = attach_experts(model, NUM_EXPERTS).eval()
    for name, parameter in made.named_parameters():
        if is_expert(name) or is_router(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return made
