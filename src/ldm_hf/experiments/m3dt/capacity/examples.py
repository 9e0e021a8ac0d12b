"""What models read of tasks: batches that are made in memory as ``LDMModel`` wants them, and exact evaluations.

Shapes: B rows, T transitions, N tasks, S states, A actions, M some of the tasks.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch

from ldm_hf.experiments.m3dt.capacity.tasks import FAMILIES, NUM_TASKS, Tasks
from ldm_hf.modeling import LDMConfig, LDMProcessor
from ldm_hf.modeling.packing_ldm import group_rows
from ldm_hf.modeling.processing_ldm import NOT_DONE, START

TRANSITIONS_PER_STEP = 256
"""Of one optimizer step of whatever is trained. M3DT's steps have 320: 16 sequences of 20."""

_CONTEXT = 16  # transitions of a row, where the task has to be recognised
_CONTEXTS = 16  # of each task, for its score
_TASKS_AT_ONCE = 20
_EVALUATION_SEED = 1_000_003  # not one of training

Batch = dict[str, object]
Logits = Callable[[Batch, torch.Tensor], torch.Tensor]
"""Logits (B, T, 1, K) of a batch whose rows are of these tasks, (B,)."""


class Examples:
    """Batches of a family.

    The observation names task and state, and every row is one transition: the score is exact over all states. In the family
    ``hidden`` it has the state only, and a row is a walk of 16 random moves with their rewards.
    """

    def __init__(self, family: str, seed: int = 0):
        self.tasks: Tasks = FAMILIES[family](seed)
        self.is_hidden = family == "hidden"
        self.transitions = _CONTEXT if self.is_hidden else 1
        self.rows_per_step = TRANSITIONS_PER_STEP // self.transitions

    def config(self, **shape: int) -> LDMConfig:
        """A model of which layers are more than 90 % of what acts, and too small for the labels of 160 processes."""
        fixed: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "slot_embedding_size": 4,
            "initializer_range": 0.1,  # at 0.02 a model of this width begins to learn late, and how late is chance
            "num_bins": NUM_TASKS,
            "max_observation_slots": 3,
            "max_action_slots": 1,
            "max_position_embeddings": _CONTEXT,
            "image_size": 36,  # the least: images are not used
            # Of a single transition, it gives queries and keys a gradient that is zero and not nearly so.
            "attn_implementation": "eager",
        }
        return LDMConfig(**{**fixed, **shape})

    def draw(self, tasks_B: torch.Tensor, generator: torch.Generator) -> Batch:
        """Random rows of these tasks, with labels."""
        if self.is_hidden:
            return self._walks(tasks_B, generator)
        return self._identified(tasks_B, torch.randint(self.tasks.num_states, tasks_B.shape, generator=generator))

    def everything(self, tasks_M: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        """All states of these tasks, or some walks in each that are the same every time; and the tasks of the rows."""
        if self.is_hidden:
            generator = torch.Generator().manual_seed(_EVALUATION_SEED + int(tasks_M[0]))
            tasks_B = tasks_M.repeat_interleave(_CONTEXTS)
            return self._walks(tasks_B, generator), tasks_B
        tasks_B = tasks_M.repeat_interleave(self.tasks.num_states)
        states_B = torch.arange(self.tasks.num_states).repeat(len(tasks_M))
        return self._identified(tasks_B, states_B), tasks_B

    @torch.inference_mode()
    def scores(self, logits: Logits, tasks: Sequence[int]) -> list[float]:
        """The score of each of these tasks: 0 is the uniform random policy and 100 the best one.

        Of exact returns; in the family ``hidden`` of the advantage over a random action that the action after 16
        transitions has, as a share of the best action's.
        """
        chosen = []
        for some in torch.tensor(tasks).split(_TASKS_AT_ONCE):
            batch, tasks_B = self.everything(some)
            del batch["labels"]
            actions_B = logits(batch, tasks_B)[:, -1, 0].argmax(-1)
            chosen.append(self._advantages(tasks_B, batch, actions_B) if self.is_hidden else actions_B)
        if self.is_hidden:
            return [round(score, 3) for score in torch.cat(chosen).tolist()]
        # Tasks that were not asked for are given the labels, whose score is not used.
        actions_NS = self.tasks.labels.clone()
        actions_NS[list(tasks)] = torch.cat(chosen).view(len(tasks), -1)
        return [round(score, 3) for score in self.tasks.scores(actions_NS)[list(tasks)].tolist()]

    def _advantages(self, tasks_B: torch.Tensor, batch: Batch, actions_B: torch.Tensor) -> torch.Tensor:
        """One number per task."""
        observations = batch["observations"]
        assert isinstance(observations, torch.Tensor)
        states_B = self._numbers[tuple(observations[:, -1].long().T)]
        values_BA = self.tasks.action_values[tasks_B, states_B]
        mean_B, best_B = values_BA.mean(-1), values_BA.amax(-1)
        gained_B = values_BA.gather(1, actions_B[:, None])[:, 0] - mean_B
        gained_MC, best_MC = (each.view(-1, _CONTEXTS) for each in (gained_B, best_B - mean_B))
        return 100 * gained_MC.sum(1) / best_MC.sum(1)

    @cached_property
    def _numbers(self) -> torch.Tensor:
        """The number of the state at each place."""
        numbers = torch.full(self.tasks.symbols, -1)
        numbers[tuple(self.tasks.observations.T)] = torch.arange(self.tasks.num_states)
        return numbers

    def _identified(self, tasks_B: torch.Tensor, states_B: torch.Tensor) -> Batch:
        slots = torch.cat([tasks_B[:, None], self.tasks.observations[states_B]], 1)
        nothing = torch.zeros(len(tasks_B), 1)
        return {
            **self._described(len(tasks_B)),
            "observations": slots.float().unsqueeze(1),
            "previous_actions": nothing.unsqueeze(2),
            "previous_rewards": nothing,
            "previous_dones": torch.full((len(tasks_B), 1), START),
            "labels": self.tasks.labels[tasks_B, states_B].float()[:, None, None],
        }

    def _walks(self, tasks_B: torch.Tensor, generator: torch.Generator) -> Batch:
        """Uniformly random actions from a random state. Token t has what t-1 brought."""
        tasks, shape = self.tasks, (len(tasks_B), _CONTEXT)
        assert tasks.arrivals is not None
        states_BT = torch.empty(shape, dtype=torch.int64)
        actions_BT = torch.randint(tasks.num_actions, shape, generator=generator)
        chances_BT = torch.rand(shape, generator=generator, dtype=torch.float64)
        states_BT[:, 0] = torch.randint(tasks.num_states, shape[:1], generator=generator)
        for time in range(1, _CONTEXT):
            before = tasks_B, states_BT[:, time - 1], actions_BT[:, time - 1]
            which_B = (chances_BT[:, time, None] > tasks.probabilities[before].cumsum(-1)[:, :-1]).sum(-1)
            states_BT[:, time] = tasks.successors[before].gather(1, which_B[:, None])[:, 0]
        previous_actions, previous_rewards = torch.zeros(shape), torch.zeros(shape)
        previous_actions[:, 1:] = actions_BT[:, :-1].float()
        previous_rewards[:, 1:] = tasks.arrivals[tasks_B[:, None], states_BT[:, 1:]].float()
        previous_dones = torch.full(shape, NOT_DONE)
        previous_dones[:, 0] = START
        return {
            **self._described(len(tasks_B)),
            "observations": tasks.observations[states_BT].float(),
            "previous_actions": previous_actions.unsqueeze(2),
            "previous_rewards": previous_rewards,
            "previous_dones": previous_dones,
            "labels": tasks.labels[tasks_B[:, None], states_BT].float().unsqueeze(2),
        }

    @lru_cache(maxsize=8)  # noqa: B019 # an object lives as long as its process
    def _described(self, rows: int) -> Batch:
        """What is the same in every batch of this number of rows."""
        processor = LDMProcessor.for_config(self.config())
        symbols = (*(() if self.is_hidden else (NUM_TASKS,)), *self.tasks.symbols)
        seen = {"type": "Tuple", "spaces": [{"type": "Discrete", "n": n, "start": 0} for n in symbols]}
        acted = {"type": "Discrete", "n": self.tasks.num_actions, "start": 0}
        layouts = [processor.observation_layout(seen)] * rows, [processor.action_layout(acted)] * rows
        described = processor.describe_rows(*layouts)
        groups = group_rows(described["observation_kinds"], described["action_kinds"])
        return {**described, "row_groups": groups}
