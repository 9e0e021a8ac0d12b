"""Where a policy that is adopted comes from: a folder of ours, a zip of Stable-Baselines3, an MLP, a function."""

from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.bank.policies import Policy, ScriptedPolicy, load_policy
from ldm_hf.dataset_builder.bank.rollout_request import ROLLOUT_SETTINGS, ROLLOUTS_OF, module_file
from ldm_hf.dataset_builder.curves import BY_POLICY
from ldm_hf.dataset_builder.format.records import RECORD, RunRecord
from ldm_hf.dataset_builder.format.schema import POLICY_FOLDER, RunInfo
from ldm_hf.env_registry.experts import Expert
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import CheckpointError, ConfigError

SHIPPED = ("experts:metaworld", "experts:babyai")
"""Experts that libraries ship, in ``env_registry/worker/experts.py``."""


def open_source(
    source: str, described: EnvironmentSpec, normalizer: str | None = None
) -> tuple[Policy, RunInfo | None]:
    """Read a policy, and what is known of its training.

    Args:
        source: one of
            - a run of a build, or its policy's folder;
            - a zip of Stable-Baselines3 or SB3-Contrib, of which nothing is unpickled;
            - a safetensors file of an MLP, with a JSON file of the same name beside it, see ``mlp.py``;
            - ``module:function`` or ``FILE.py:function``, see ``env_registry/worker/experts.py``. It runs beside the
              environment, in isolation. A module that lies here goes there as text; others are those of the installation.
        described: the environment that it shall act in.
        normalizer: the statistics that ``VecNormalize`` saved beside a zip.

    Raises:
        ConfigError: the source is none of these, or a policy of another environment.
        CheckpointError: its files cannot be read.
    """
    path = Path(source)
    if normalizer is not None and path.suffix != ".zip":
        raise ConfigError(f"--normalizer belongs to a zip of Stable-Baselines3, not to {source}")
    if (path / RECORD).is_file():
        record = RunRecord.read(path)
        if record.environment != described.id:
            raise ConfigError(f"{source} is a run of {record.environment}, not of {described.id}")
        policy = load_policy(path / POLICY_FOLDER, described)
        if record.info is not None:
            policy.description = _description(record.info)
        return policy, record.info
    if path.is_dir():
        return load_policy(path, described), None
    if path.is_file() and path.suffix == ".zip":
        from ldm_hf.dataset_builder.bank.sb3_zip import read_zip

        return read_zip(path, described, None if normalizer is None else Path(normalizer)), None
    if path.is_file() and path.suffix == ".safetensors":
        from ldm_hf.dataset_builder.bank.mlp import read_mlp

        return read_mlp(path, described), None
    module, colon, function = source.rpartition(":")
    if colon and module and function.isidentifier():
        return ScriptedPolicy(find_function(module, function)), None
    if path.suffix in (".zip", ".safetensors", ".py"):
        raise CheckpointError(f"no such file: {source}")
    raise ConfigError(
        f"a policy is a folder with policy.json, an SB3 zip, a safetensors file with a JSON file beside it, or "
        f"module:function (the libraries' own: {', '.join(SHIPPED)}), got {source!r}"
    )


def _description(info: RunInfo) -> dict[str, Any]:
    settings = {key: value for key, value in info.hyperparameters.items() if key not in ROLLOUT_SETTINGS}
    if info.curve.order == BY_POLICY:  # of rollouts itself
        source = info.source.removeprefix(ROLLOUTS_OF)
    else:
        source = f"{info.run}, trained on {info.num_transitions} transitions with the seed {info.seed}; {info.source}"
    return {"algorithm": info.algorithm, "hyperparameters": settings, "source": source.removesuffix("; ")}


def find_function(module: str, function: str) -> Expert:
    """A function by the name of its module or file: the text of what lies here, the name of what is installed there."""
    path = module_file(module)
    if not path.is_file():
        if module.endswith(".py"):
            raise CheckpointError(f"no such file: {module}")
        return Expert(f"{module}:{function}")
    try:
        source = path.read_text(encoding="utf-8")
        compile(source, str(path), "exec")  # which executes nothing
    except (OSError, ValueError, SyntaxError) as error:
        raise CheckpointError(f"{path} is not a module of Python: {' '.join(str(error).split())}") from error
    return Expert(f"{path.stem}:{function}", source)
