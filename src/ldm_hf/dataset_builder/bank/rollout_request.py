"""What is rolled out: a policy, an environment, with which noise, and who acts."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.format.schema import POLICY_FOLDER, environment_folder
from ldm_hf.errors import ConfigError

NOISE = (*[0.0] * 8, *[0.1] * 4, *[0.3] * 2, *[1.0] * 2)
"""Noise of each of 16 streams: half of the transitions are the policy's own, the others lead it astray, a few all the time.

Experts with noise of several levels, labelled by what the expert would do, are what Vintix (arXiv 2501.19400) and AD-eps
(arXiv 2312.12275) train on; JAT (arXiv 2402.09844) on experts only.
"""

ROLLOUT_SETTINGS = ("noise", "transitions", "policy_sha256", "normalizer_sha256", "actor_sha256")
"""Keys of the hyperparameters of a run that say how it was rolled out."""

ROLLOUTS_OF = "rollouts of "
"""Beginning of the source of a run that was rolled out."""


@dataclass(frozen=True)
class RolloutRequest:
    """What is rolled out.

    Attributes:
        environment: id of the environment.
        source: of the policy, see ``open_source``.
        timesteps: transitions to record; episodes that run then are played to their ends.
        seed: of the streams and of the noise.
        noise: of each stream, from 0 to 1; by default ``NOISE``, or none where a model acts. Of actions that are
            whole numbers, it is the share that is drawn at random; to real numbers, Gaussian noise is added whose standard
            deviation is this share of half their range.
        keep: ``fit`` keeps the data of a policy that passes curation; ``better`` of one that is better than a random policy,
            as those of a bank are judged, which were curated when they were taken; ``all`` of any.
        normalizer: a file of ``VecNormalize``, of an SB3 zip.
        run: name of the run; by default that of the source.
        actor: folder or Hub name of a model that acts in place of the policy, which only says what it would do.
    """

    environment: str
    source: str
    timesteps: int
    seed: int = 0
    noise: tuple[float, ...] = ()
    keep: str = "fit"
    normalizer: str | None = None
    run: str = ""
    actor: str | None = None

    def __post_init__(self) -> None:
        if not self.noise:
            object.__setattr__(self, "noise", NOISE if self.actor is None else (0.0,) * len(NOISE))
        if not all(0 <= level <= 1 for level in self.noise):
            raise ConfigError(f"noise must be levels from 0 to 1, got {list(self.noise)}")
        if self.timesteps < 1:
            raise ConfigError(f"transitions must be at least 1, got {self.timesteps}")
        if not self.run:
            path = Path(self.source.rpartition(":")[2])
            stem = (path.parent if path.name == POLICY_FOLDER else path).name.partition(".")[0] or "policy"
            object.__setattr__(self, "run", run_name(stem, self.seed, self.actor))
        if not self.run.replace("-", "").replace("_", "").replace(".", "").isalnum() or self.run.startswith("."):
            raise ConfigError(f"the name of a run must be letters, digits, '-', '_' and '.', got {self.run!r}")

    @property
    def settings(self) -> dict[str, Any]:
        """For the record: what tells these rollouts from others of the same name."""
        settings = {
            "noise": list(self.noise),
            "transitions": self.timesteps,
            "policy_sha256": fingerprint(self.source),
            "normalizer_sha256": None if self.normalizer is None else fingerprint(self.normalizer),
            "actor_sha256": None if self.actor is None else fingerprint(self.actor),
        }
        return {key: value for key, value in settings.items() if value is not None}

    def folder(self, root: Path) -> Path:
        """Where the run lies under a data folder."""
        return environment_folder(root, self.environment) / self.run


def run_name(stem: str, seed: int, actor: str | None = None) -> str:
    """Name of the run of the rollouts of ``stem``, and of the model that acted in them."""
    return f"{stem}-rollouts-{seed}" + ("" if actor is None else f"-{Path(actor).name}")


def fingerprint(source: str) -> str:
    """A hash of a policy's or a model's files, or of the name of a function and of the text that lies here."""
    found, path = hashlib.sha256(), Path(source)
    module, _, function = source.rpartition(":")
    if path.is_dir():  # records say when and where a policy was made, not what it is
        files = [one for name in ("policy.json", "*.safetensors", "*.py") for one in sorted(path.rglob(name))]
    else:
        found.update(function.encode())
        files = [one for one in (path, path.with_suffix(".json"), module_file(module)) if one.is_file()]
    for one in files:
        found.update(one.name.encode() + b"\0" + one.read_bytes())
    return found.hexdigest()[:16]


def module_file(module: str) -> Path:
    """Where the text of a module, or of a file with a function, would lie here."""
    return Path(module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
