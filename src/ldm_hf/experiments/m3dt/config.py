"""The settings of the later stages: those of training, and what is attached."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge
from typing_extensions import Doc

from ldm_hf.errors import ConfigError
from ldm_hf.training.config import TrainingConfig


@dataclass(frozen=True)
class ExpertsConfig(TrainingConfig):
    """The settings of the stages ``experts`` and ``routers``."""

    stage: Annotated[
        Literal["experts", "routers"],
        Doc("What is trained: experts, each on its group of environments; or only the routers, on all of them."),
    ] = "experts"
    num_experts: Annotated[Annotated[int, Ge(1)] | None, Doc("Experts that the stage experts attaches.")] = None
    grouping: Annotated[
        Literal["gradient", "direction", "random"], Doc("How it divides the environments among the experts.")
    ] = "gradient"
    gradient_batches: Annotated[int, Ge(1), Doc("Batches over which an environment's gradient is averaged for it.")] = (
        10
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank is not None:
            raise ConfigError(f"lora_rank is of `ldm train`: the stage {self.stage} chooses what is trained")
        if Path(self.model).resolve() == (Path(self.output_dir) / "model").resolve():
            raise ConfigError(
                f"stage {self.stage} would replace {self.model}, which it starts from; set another output_dir"
            )
