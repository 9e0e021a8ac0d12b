"""What the demo shows: episodes of one environment, moment by moment, by a model, a reference or a random policy."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ldm_hf.env_registry import registry
from ldm_hf.env_registry.doctor import diagnose
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.players import ModelPlayer, Player, RandomPlayer
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.video import RENDER_MODE, shown_frame
from ldm_hf.hub.pretrained import load_pretrained

MODEL, REFERENCE, RANDOM = "model", "reference", "random"


@dataclass
class Moment:
    """What is to be seen after a reset or a step.

    Attributes:
        episode: counted from 1.
        step: of the episode; 0 after its reset.
        total: rewards of the episode so far.
        returns: of the episodes that have ended, with this one if it has.
        frame: uint8 RGB, None where nothing is rendered.
    """

    episode: int
    step: int
    total: float
    returns: list[float] = field(default_factory=list)
    frame: np.ndarray | None = None


class Stage:
    """A model, and the environments that it can be watched in here.

    Args:
        model: folder, or name on the Hub.
        references: banks and data folders whose policies can be watched too; scripted experts cannot.
        environments: ids to offer; by default all that fit the model, can be rendered, and need no installation.

    Raises:
        CheckpointError: there is no such model.
        UnknownEnvironmentError: there is no such environment.
        ConfigError: there is no environment to offer, or one that is asked for does not fit.
    """

    def __init__(self, model: str, references: Sequence[Path] = (), environments: Sequence[str] = ()) -> None:
        self._model, self._processor = load_pretrained(model)
        self.trained_on = list(self._model.config.environments or [])
        self._references = _networks(references)
        specs = [registry.spec(name) for name in environments] or registry.ready_environments()
        self.specs = {spec.id: spec for spec in specs if environments or self._is_offered(spec)}
        if refused := [spec.id for spec in self.specs.values() if not self._is_offered(spec)]:
            raise ConfigError(f"{', '.join(refused)} cannot be watched: it does not fit the model, or draws no image")
        if not self.specs:
            raise ConfigError(
                "no environment is installed that fits the model and can be rendered: see `ldm env install`"
            )

    def environments(self) -> list[str]:
        """Ids: those that the model was trained on first."""
        return sorted(self.specs, key=lambda name: (name not in self.trained_on, name))

    def players(self, environment: str) -> list[str]:
        """Who can play there."""
        return [MODEL, *([REFERENCE] if environment in self._references else []), RANDOM]

    def play(
        self,
        environment: str,
        who: str,
        *,
        episodes: int,
        seed: int = 0,
        kept: bool = True,
        temperature: float = 0.0,
        rendered: bool = True,
    ) -> Iterator[Moment]:
        """Play, one moment after another; the environment is closed when the iterator is.

        Args:
            environment: id.
            who: ``MODEL``, ``REFERENCE`` or ``RANDOM``.
            episodes: how many, one after another.
            seed: the first episode begins as the first of rollouts with this seed in an evaluation.
            kept: whether the model's context is kept between episodes, or cleared.
            temperature: of the model's actions; 0 is greedy.
            rendered: whether moments have frames.

        Raises:
            EnvironmentFailure: the environment broke, or cannot be rendered.
        """
        player = self._player(environment, who, seed, temperature)
        env = registry.make(environment, render_mode=RENDER_MODE if rendered else None)
        try:
            yield from _episodes(env, player, episodes, Protocol(seed=seed).first_seed(0), kept, rendered)
        finally:
            env.close()

    def _player(self, environment: str, who: str, seed: int, temperature: float) -> Player:
        if who == RANDOM:
            return RandomPlayer(seed)
        if who == REFERENCE:
            from ldm_hf.dataset_builder.reference.player import ReferencePlayer
            from ldm_hf.dataset_builder.reference.policy import ReferencePolicy

            return ReferencePlayer(ReferencePolicy.load(self._references[environment]))
        return ModelPlayer(self._model, self._processor, temperature=temperature, seed=seed)

    def _is_offered(self, spec: EnvironmentSpec) -> bool:
        limits = {name: getattr(self._processor, name) for name in ("max_observation_slots", "max_action_slots")}
        return RENDER_MODE in spec.render_modes and diagnose(spec, **limits).fits


def _episodes(
    env: gymnasium.Env, player: Player, episodes: int, seed: int, kept: bool, rendered: bool
) -> Iterator[Moment]:
    policy = player.start([env])
    outcome: tuple[list[Any], ...] = ()
    returns: list[float] = []
    for episode in range(1, episodes + 1):
        observation, _ = env.reset(seed=seed if episode == 1 else None)
        if episode > 1 and not kept:
            policy, outcome = player.start([env]), ()
        moment, over = Moment(episode, 0, 0.0, returns), False
        while True:
            moment.frame = shown_frame(env) if rendered else None
            yield moment
            if over:
                break
            (action,) = policy.act([observation], *outcome)
            observation, reward, terminated, truncated, _ = env.step(action)
            outcome, over = ([float(reward)], [bool(terminated)], [bool(truncated)]), bool(terminated or truncated)
            total = moment.total + float(reward)
            returns = [*returns, total] if over else returns
            moment = Moment(episode, moment.step + 1, total, returns)


def _networks(roots: Sequence[Path]) -> dict[str, Path]:
    """Folders of the references that look at observations only; a scripted expert acts inside its environment."""
    if not roots:
        return {}
    from ldm_hf.dataset_builder.bank.bank import reference_folders

    return {
        environment: folder
        for environment, folder in reference_folders(roots).items()
        if "kind" not in json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    }
