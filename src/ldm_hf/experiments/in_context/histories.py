"""Histories of learning: B tasks of a family, acted in worse at first and better later, labelled by an expert.

Supervised pretraining on these is that of Decision-Pretrained Transformers (arXiv 2306.14892), with behaviour that improves
along a history, as algorithm distillation with noise has it (AD-eps, arXiv 2312.12275).
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm_hf.dataset_builder.curves import BY_POLICY, Sample
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files, package_versions
from ldm_hf.dataset_builder.format.schema import RunInfo, environment_folder
from ldm_hf.dataset_builder.format.writer import ChunkRange, plan_chunks, write_dataset
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording, ValueFile
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.experiments.in_context.tasks import FAMILIES, TaskFamily
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions, space_to_json
from ldm_hf.utils.files import replacing, scratch_folder

LIBRARY = "in-context"
_AT_ONCE = 4096  # tasks that are acted in at a time
_NEW_GUESS, _STRAY = 0.15, 0.05  # chances in each step: of another guess while exploring, of a random action while not


class Learner:
    """Acts in B tasks: exploring by guesses and at random at first, then ever more like the expert."""

    def __init__(self, family: TaskFamily, episodes: int, rng: np.random.Generator) -> None:
        """Learn over a number of episodes, each task at a pace of its own."""
        self._family, self._rng = family, rng
        number = family.num_envs
        self._done_exploring = rng.uniform(0, 1.2, number) * episodes  # some never are
        self._guesses = family.draw(number, False, rng)
        self._guessing = rng.random(number) < 0.5  # the others explore at random

    def act(self, episode: int, known: np.ndarray) -> np.ndarray:
        """Actions in an episode, of which ``known`` are the best."""
        number, rng = len(known), self._rng
        renewed = rng.random(number) < _NEW_GUESS
        fresh = self._family.draw(number, False, rng)
        self._guesses = np.where(renewed.reshape(-1, *[1] * (fresh.ndim - 1)), fresh, self._guesses)
        self._guessing = np.where(renewed, rng.random(number) < 0.5, self._guessing)
        guessed, strayed = self._family.expert(self._guesses), self._random(known)
        exploring = rng.random(number) < np.clip(1.5 - 1.5 * episode / np.maximum(self._done_exploring, 1e-9), 0, 1)
        chosen = np.where(_like(exploring, known), np.where(_like(self._guessing, known), guessed, strayed), known)
        return np.where(_like(rng.random(number) < _STRAY, known), strayed, chosen).astype(known.dtype)

    def _random(self, known: np.ndarray) -> np.ndarray:
        if known.dtype.kind == "f":
            return self._rng.uniform(-1, 1, known.shape)
        return self._rng.integers(int(self._family.single_action_space.n), size=known.shape)  # type: ignore[attr-defined]


def _like(flags: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return flags.reshape(-1, *[1] * (actions.ndim - 1))


def record_histories(root: Path, name: str, number: int, episodes: int, seed: int = 0) -> None:
    """Record histories of a family as runs of the dataset ``in-context/NAME`` under a data folder; one that is there stays.

    Args:
        root: data folder.
        name: of the family.
        number: of histories, each of another task; a run has ``_AT_ONCE`` of them at most.
        episodes: of each history.
        seed: of tasks, behaviour and environments.
    """
    for run, start in enumerate(range(0, number, _AT_ONCE)):
        _record_run(root, name, f"learner-{seed + run}", min(number - start, _AT_ONCE), episodes, seed + run)
    update_repository(root / LIBRARY)


def _record_run(root: Path, name: str, run: str, number: int, episodes: int, seed: int) -> None:
    folder = environment_folder(root, f"{LIBRARY}/{name}") / run
    if folder.is_dir():
        return
    rng = np.random.default_rng(seed)
    family = FAMILIES[name](FAMILIES[name].draw(number, False, rng))
    steps = episodes * family.episode_length
    with scratch_folder(folder) as scratch, contextlib.ExitStack() as stack:
        recording = Recording(scratch / "recording", steps, family)
        stack.callback(recording.close)
        (scratch / "labels").mkdir()
        labels = ValueFile(scratch / "labels", "label", family.single_action_space, number)
        stack.callback(labels.close)
        recorder, learner = Recorder(family, steps, family.episode_length, recording), Learner(family, episodes, rng)
        recorder.reset(seed=seed)
        for step in range(steps):
            known = family.expert(family.parameters)
            labels.put(known)
            recorder.step(learner.act(step // family.episode_length, known))
            labels.advance()
        info = _info(name, run, family, recorder, recording, seed)
        layouts = (
            SlotLayout.of(info.observation_space),
            SlotLayout.of(info.action_space, role="action"),
        )
        source = RecordedRows(recording, *layouts)

        def labelled(chunk: ChunkRange) -> Transitions:
            wanted = labels.read(chunk.stream, chunk.start, chunk.stop)
            return replace(source.transitions(chunk), reference_actions=layouts[1].flatten(wanted, batched=True)[0])

        with replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            chunks = plan_chunks(recording.lengths.tolist(), seed)
            write_dataset(temporary, info, chunks, labelled, source.terminals(), resets=recording.resets)
            RunRecord(info.environment, run, None, info, describe_files(temporary), 0.0).write(temporary)


def _info(name: str, run: str, family: TaskFamily, recorder: Recorder, recording: Recording, seed: int) -> RunInfo:
    """What is kept of a run: 0 % is a random policy's return, 100 % the expert's, which knows the parameters."""
    bounds = [Sample.of(returns.mean(1)) for returns in (random_returns(family, 1), expert_returns(family, 1))]
    curve = replace(recorder.curve(), first=bounds[0], last=bounds[1], order=BY_POLICY)
    return RunInfo(
        environment=f"{LIBRARY}/{name}",
        run=run,
        observation_space=space_to_json(family.single_observation_space),
        action_space=space_to_json(family.single_action_space),
        curve=curve,
        deterministic_returns=[bounds[1].mean],
        num_episodes=recording.num_episodes,
        num_transitions=int(recording.lengths.sum()),
        num_streams=recording.num_streams,
        training_steps=0,
        algorithm="expert that knows the hidden parameter",
        hyperparameters={},
        source="ldm_hf.experiments.in_context",
        seed=seed,
        max_episode_steps=family.episode_length,
        seeding=None,
        library_version=None,
        licence="Apache-2.0",
        provenance={},
        packages=package_versions(),
    )


def expert_returns(family: TaskFamily, episodes: int) -> np.ndarray:
    """Returns of the expert, which knows the parameters, of shape (B, episodes)."""
    return _returns(family, episodes, lambda: family.expert(family.parameters))


def random_returns(family: TaskFamily, episodes: int, seed: int = 0) -> np.ndarray:
    """Returns of random actions, of shape (B, episodes)."""
    family.action_space.seed(seed)
    return _returns(family, episodes, family.action_space.sample)


def _returns(family: TaskFamily, episodes: int, act: Callable[[], np.ndarray]) -> np.ndarray:
    family.reset(seed=1_000_003)
    rewards = [family.step(act())[1] for _ in range(episodes * family.episode_length)]
    return np.array(rewards, np.float64).reshape(episodes, family.episode_length, -1).sum(1).T
