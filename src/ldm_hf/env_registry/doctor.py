"""Does an environment fit a model? ``ldm env doctor``."""

from dataclasses import dataclass

from ldm_hf.env_registry import registry
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.modeling.spaces_ldm import (
    IMAGE_SIZE,
    MAX_ACTION_SLOTS,
    MAX_OBSERVATION_SLOTS,
    NUM_BINS,
    SlotLayout,
    UnsupportedSpaceError,
)


@dataclass(frozen=True)
class Fit:
    """Whether an environment fits a model.

    Attributes:
        environment: its id.
        problems: one line for each space that does not fit; empty if the environment fits.
        observation_slots: scalar slots of the observation, None where it does not fit.
        action_slots: slots of the action, None where it does not fit.
        image_shape: shape of the observation's image before it is resized, None without an image.
        image_name: where the image is found in the observation: ``space['camera']``.
    """

    environment: str
    problems: tuple[str, ...]
    observation_slots: int | None
    action_slots: int | None
    image_shape: tuple[int, ...] | None
    image_name: str | None

    @property
    def fits(self) -> bool:
        """Whether a model of these limits can act in the environment."""
        return not self.problems


def diagnose(
    environment: str | EnvironmentSpec,
    *,
    max_observation_slots: int = MAX_OBSERVATION_SLOTS,
    max_action_slots: int = MAX_ACTION_SLOTS,
    num_bins: int = NUM_BINS,
    image_size: int = IMAGE_SIZE,
) -> Fit:
    """Lay an environment's spaces out for a model; the limits are named as in ``LDMProcessor``, with its defaults.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: as ``ldm_hf.env_registry.registry.spec``.
    """
    spec = registry.spec(environment) if isinstance(environment, str) else environment
    layouts: dict[str, SlotLayout] = {}
    problems = []
    for role, space, max_slots in (
        ("observation", spec.observation_space, max_observation_slots),
        ("action", spec.action_space, max_action_slots),
    ):
        try:
            layouts[role] = SlotLayout.of(
                space, role=role, max_slots=max_slots, num_bins=num_bins, image_size=image_size
            )
        except UnsupportedSpaceError as error:
            problems.append(f"{role}: {error}")
    observation, action = layouts.get("observation"), layouts.get("action")
    image = observation.image if observation else None
    return Fit(
        environment=spec.id,
        problems=tuple(problems),
        observation_slots=observation.num_slots if observation else None,
        action_slots=action.num_slots if action else None,
        image_shape=image.shape if image else None,
        image_name=image.name if image else None,
    )
