"""The model's side of a server: opens rollouts, and acts in several of them with one forward pass."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_hf.errors import InvalidValueError, LDMError, ServingError, UnsupportedSpaceError, one_line
from ldm_hf.modeling import LDMPolicy
from ldm_hf.modeling.joint_ldm import JointStep
from ldm_hf.modeling.steps_ldm import packed

if TYPE_CHECKING:
    from ldm_hf.modeling import LDMModel, LDMProcessor
    from ldm_hf.modeling.spaces_ldm import SlotLayout

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spaces:
    """What a policy must know of an environment: its spaces as JSON."""

    observation_space: dict[str, Any]
    action_space: dict[str, Any]


@dataclass(eq=False)
class Step:
    """A transition of all environments of a rollout, and what came of it.

    Attributes:
        policy: the rollout.
        seen: the arguments of ``LDMPolicy.observe``.
        actions: one per environment, if it could act.
        error: why it could not.
        is_lost: whether the rollout is of no use any more.
    """

    policy: LDMPolicy
    seen: tuple[Any, ...]
    actions: list[Any] = field(default_factory=list)
    error: LDMError | None = None
    is_lost: bool = False

    @property
    def num_reads(self) -> int:
        """Transitions that the model reads a second time before it can act."""
        return self.policy.num_reads


class Engine:
    """A model that acts for all sessions. Its methods are called by one thread.

    Args:
        model: on its device.
        processor: of the model.
    """

    def __init__(self, model: "LDMModel", processor: "LDMProcessor") -> None:
        self.num_parameters = model.num_parameters()
        self.model, self.processor = packed(model.eval()), processor
        self._act = JointStep(self.model)

    @property
    def bytes_per_environment(self) -> int:
        """Memory for keys and values of an environment's whole context, and of its newer half once more.

        That is most of what it takes without images.
        """
        config = self.model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * size * config.max_position_embeddings
        return numbers * self.model.dtype.itemsize * 3 // 2

    @property
    def bytes_of_images(self) -> int:
        """Memory for the images of an environment's whole context, where it has some."""
        return 3 * self.processor.image_size**2 * self.model.config.max_position_embeddings

    def open(self, environments: Sequence[Spaces], options: dict[str, Any]) -> LDMPolicy:
        """Begin a rollout; options are those of ``LDMPolicy``.

        Raises:
            UnsupportedSpaceError: a space does not fit, or is none.
            InvalidValueError: an option cannot be used.
            ServingError: there is not enough memory.
        """
        for spaces in environments:
            try:
                _check_numbers(self.processor.observation_layout(spaces.observation_space))
                _check_numbers(self.processor.action_layout(spaces.action_space))
            except LDMError:
                raise
            except Exception as error:  # whatever a description holds that is none
                reason = f"{type(error).__name__}: {one_line(error, 200)}"
                raise UnsupportedSpaceError(f"a space's description cannot be read: {reason}") from error
        try:
            return LDMPolicy(self.model, self.processor, environments, **options)
        except LDMError:
            raise
        except ValueError as error:
            raise InvalidValueError(one_line(error)) from error
        except (RuntimeError, MemoryError) as error:
            _log.exception("a rollout could not be begun")
            raise ServingError(f"no memory for {len(environments)} environments: {one_line(error, 200)}") from error

    def act(self, steps: Sequence[Step]) -> None:
        """Take in what was seen, and act; ``actions`` or ``error`` of each step says what came of it."""
        seeing = [step for step in steps if self._observe(step)]
        if not seeing:
            return
        try:
            acted = self._act([step.policy for step in seeing])
        except Exception as error:  # of torch or of the device: the contexts hold what the caches may not
            _log.exception("the model failed")
            for step in seeing:
                step.error = ServingError(f"the model failed, and this session is lost: {one_line(error, 200)}")
                step.is_lost = True
            return
        for step, actions in zip(seeing, acted, strict=True):
            step.actions = actions

    def _observe(self, step: Step) -> bool:
        try:
            step.policy.observe(*step.seen)
        except LDMError as error:
            step.error = error
        except (RuntimeError, MemoryError) as error:
            _log.exception("a context could not be read again")
            step.error = ServingError(f"the model failed, and this session is lost: {one_line(error, 200)}")
            step.is_lost = True
        except Exception as error:  # NumPy's, of observations that are no arrays
            step.error = InvalidValueError(f"an observation cannot be read: {one_line(error, 200)}")
        return step.error is None


def _check_numbers(layout: "SlotLayout") -> None:
    """Refuse spaces that Gymnasium would not make, and whose values could not be sent."""
    for leaf in layout.leaves:
        if np.dtype(leaf.space.get("dtype", "int64")).kind not in "biuf":
            raise UnsupportedSpaceError(f"{leaf.name} has the dtype {leaf.space['dtype']}: it must be of real numbers")
    if np.isnan(layout.low).any() or np.isnan(layout.high).any():
        raise UnsupportedSpaceError("a bound of the space is not a number")
