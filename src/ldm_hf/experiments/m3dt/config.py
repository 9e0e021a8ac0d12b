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

    router_hidden_layers: Annotated[int, Ge(1), Doc("Of each router that the stage experts attaches.")] = 4
    router_hidden_size: Annotated[
        Annotated[int, Ge(1)] | None, Doc("Of each router. Default: four times the model's hidden_size.")
    ] = None
    router_aux_loss_coef: Annotated[
        float,
        Ge(0),
        Doc(
            "Stage routers: weight of the cross-entropy between routers' weights and the expert of a row's environment."
        ),
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank is not None:
            raise ConfigError(f"lora_rank is of `ldm train`: the stage {self.stage} chooses what is trained")
        if self.stage == "routers" and self.torch_compile and self.router_aux_loss_coef:
            raise ConfigError(
                "router_aux_loss_coef reads what routers of a compiled layer do not show: set torch_compile or it to off"
            )
        if Path(self.model).resolve() == (Path(self.output_dir) / "model").resolve():
            raise ConfigError(
                f"stage {self.stage} would replace {self.model}, which it starts from; set another output_dir"
            )
