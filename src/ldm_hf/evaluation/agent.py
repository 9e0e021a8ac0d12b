"""The short way to act: ``ldm_hf.load`` gives an agent that plays, or predicts actions as Stable-Baselines3's models do."""

from pathlib import Path
from typing import Any

import gymnasium

from ldm_hf.evaluation.protocol import RolloutResult
from ldm_hf.evaluation.rollout import evaluate_environment
from ldm_hf.evaluation.video import recording_video
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMModel, LDMPolicy, LDMProcessor


class Agent:
    """A pretrained model that acts.

    ``play`` runs whole episodes in a registered environment. ``predict`` gives one action after another in an environment of
    yours, which ``set_env`` wraps: the model reads rewards and ends of episodes, so it must be told what its actions
    brought. To act in many environments at once, use ``model.policy``.

    Args:
        model, processor: what ``AutoModel`` and ``AutoProcessor`` load.

    Examples:
        >>> agent = ldm_hf.load("pretrained/ldm-mini")
        >>> agent.play("gymnasium/CartPole-v1", episodes=10).mean_return
        >>> env = agent.set_env(gymnasium.make("CartPole-v1"))
        >>> observation, info = env.reset(seed=0)
        >>> action, state = agent.predict(observation)
        >>> observation, reward, terminated, truncated, info = env.step(action)
    """

    def __init__(self, model: LDMModel, processor: LDMProcessor) -> None:
        self.model, self.processor = model, processor
        self._env: _Outcomes | None = None
        self._policy: LDMPolicy | None = None

    def play(
        self, environment: str, episodes: int = 10, *, seed: int = 0, video: str | Path | None = None
    ) -> RolloutResult:
        """Act in a registered environment, episodes one after another in one context, by the most likely actions.

        Args:
            environment: id, ``<library>/<Gymnasium id>``; see ``ldm_hf.list_environments``.
            episodes: how many.
            seed: of the environment.
            video: ``.mp4`` or ``.gif`` file to record them to.

        Returns:
            Returns and lengths of the episodes, and ``mean_return``.

        Raises:
            UnknownEnvironmentError: there is no environment of this id.
            UnsupportedSpaceError: it does not fit the model.
            EnvironmentFailure: it broke.
        """
        options = {"episodes": episodes, "rollouts": 1, "seed": seed}
        if video is None:
            return evaluate_environment(self.model, self.processor, environment, **options)  # type: ignore[arg-type]
        with recording_video(Path(video)) as watch:
            return evaluate_environment(self.model, self.processor, environment, **options, watch=watch)  # type: ignore[arg-type]

    def set_env(self, env: gymnasium.Env) -> gymnasium.Env:
        """Start a rollout in an environment; returns the environment to step, which tells the agent what it sees.

        Raises:
            UnsupportedSpaceError: the environment does not fit the model.
        """
        self._policy = LDMPolicy(self.model, self.processor, [env])
        self._env = _Outcomes(env)
        return self._env

    def get_env(self) -> gymnasium.Env | None:
        """The environment that ``set_env`` gave."""
        return self._env

    def predict(
        self, observation: Any, state: None = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, None]:
        """The action after an observation, and None, as ``predict`` of Stable-Baselines3's models gives them.

        Args:
            observation: what the last ``reset`` or ``step`` of the environment gave.
            state, episode_start: taken for the sake of Stable-Baselines3's callers; the agent remembers both itself.
            deterministic: the most likely action; otherwise one is sampled.

        Raises:
            RuntimeError: ``set_env`` was not called, or the environment was not stepped since the last call.
            InvalidValueError: the observation is not of the environment's space.
        """
        if self._policy is None or self._env is None:
            raise RuntimeError("call set_env before predict: an agent acts in an environment whose rewards it is told")
        outcome = self._env.take_outcome()
        self._policy.temperature = 0.0 if deterministic else 1.0
        reward, terminated, truncated = (None, None, None) if outcome is None else ([value] for value in outcome)
        (action,) = self._policy.act([observation], reward, terminated, truncated)  # type: ignore[arg-type]
        return action, None


class _Outcomes(gymnasium.Wrapper):
    """Remembers what the last action brought."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._outcome: tuple[float, bool, bool] | None = None
        self._acted = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._outcome = float(reward), bool(terminated), bool(truncated)
        return observation, reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self._outcome is not None and not any(self._outcome[1:]):
            self._outcome = self._outcome[0], False, True  # a reset in the middle of an episode truncates it
        elif self._outcome is None and self._acted:
            self._outcome = 0.0, False, True  # before the step after an action
        return self.env.reset(**kwargs)

    def take_outcome(self) -> tuple[float, bool, bool] | None:
        """What the last action brought, once; None before the first."""
        outcome, self._outcome = self._outcome, None
        if outcome is None and self._acted:
            raise RuntimeError("predict was called again before the environment that set_env gave was stepped")
        self._acted = True
        return outcome


def load(model: str | Path, device: str = "cpu") -> Agent:
    """Load a model folder, or a model of the Hub, to act with.

    Args:
        model: folder, or ``<namespace>/<name>``.
        device: torch device.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    loaded, processor = load_pretrained(model)
    loaded.to(device)  # type: ignore[arg-type]
    return Agent(loaded, processor)
