"""How a cell is measured and kept: a JSON file, and weights from which other cells start.

What has its file is not made again.
"""

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ldm_hf.errors import ConfigError
from ldm_hf.experiments.m3dt.capacity.additions import add_experts
from ldm_hf.experiments.m3dt.capacity.cells import ADDED_TASKS, ADDITIONS, Budget, Cell, num_experts
from ldm_hf.experiments.m3dt.capacity.examples import Batch, Examples
from ldm_hf.experiments.m3dt.capacity.gradients import gradients_of, groups_of, mean_cosine
from ldm_hf.experiments.m3dt.capacity.routers import ROUTERS, Rows, give_routing
from ldm_hf.experiments.m3dt.capacity.training import (
    Groups,
    Recipe,
    acting_parameters,
    groups_by_task,
    train_dense,
    train_experts,
    train_routers,
)
from ldm_hf.experiments.m3dt.stages import attach_experts, is_router
from ldm_hf.modeling import LDMModel
from ldm_hf.utils.files import replacing

MEND = "five-supervised"
"""The router that keeps what experts know: of the cells that add tasks."""

_LEARNING_RATE, _WIDE_LEARNING_RATE = 1e-2, 5e-3
_M3DT_CLIP = 0.25
_WATCHED = (0.1, 0.5, 1.0)  # shares of a dense training after which gradients are compared

Record = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Where cells are kept, and how long they are trained.

    Attributes:
        folder: of records and weights.
        per_task: steps for each task.
    """

    folder: Path
    per_task: int

    def begin(self) -> None:
        """Note the settings; raises ``ConfigError`` where the folder holds cells of others."""
        path, own = self.folder / "settings.json", {"steps_per_task": self.per_task}
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != own:
            raise ConfigError(f"{self.folder} holds cells of other steps; set another output")
        _write(path, own)

    def record(self, cell: Cell) -> Record | None:
        """What was measured, if it was."""
        path = self._record(cell)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def measure(self, cell: Cell) -> Record:
        """Train and score a cell, and before it what it starts from, unless that was done."""
        found = self.record(cell)
        if found is not None:
            return found
        before = self.measure(cell.base)["flops"] if cell.base else 0
        started = time.perf_counter()
        trial = _Trial(self, cell)
        record = trial.run()
        if cell.router is None:  # nothing starts from routers
            with replacing(self._weights(cell)) as temporary:
                save_file(_without_routers(trial.model), temporary)
        record |= {"score": float(np.mean(record["scores"])), "flops": record["flops"] + before}
        record |= {"cell": asdict(cell), "seconds": round(time.perf_counter() - started, 1)}
        _write(self._record(cell), record)
        return record

    def model(self, cell: Cell) -> tuple[LDMModel, Groups]:
        """The trained model of a cell that has no router, and the tasks of its experts."""
        groups: Groups = self.measure(cell).get("groups", [])
        model = _new_model(cell, len(groups))
        missing, unexpected = model.load_state_dict(load_file(self._weights(cell)), strict=False)
        assert not unexpected and all(map(is_router, missing))
        return model, groups

    def _record(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _weights(self, cell: Cell) -> Path:
        return self.folder / "weights" / f"{cell.name}.safetensors"


class _Trial:
    """The measuring of one cell."""

    model: LDMModel

    def __init__(self, study: Study, cell: Cell):
        self._study, self._cell = study, cell
        self._examples, self._tasks = examples_of(cell.family), range(cell.tasks)
        self._budget = Budget.of(cell.budget, cell.tasks, study.per_task)
        rate = _WIDE_LEARNING_RATE if "wide" in cell.variant else _LEARNING_RATE
        self._recipe = Recipe(rate, _M3DT_CLIP, True) if cell.batch == "one" else Recipe(rate)
        self._rows = Rows()
        seed = zlib.crc32(cell.name.encode())
        torch.manual_seed(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def run(self) -> Record:
        """Train; then the scores of all tasks."""
        cell = self._cell
        if cell.variant == "add-experts":
            record = self._added_experts()
        elif cell.variant in ADDITIONS:
            record = self._trained_further()
        elif cell.base is None:
            record = self._dense()
        elif cell.router is None:
            record = self._experts()
        else:
            self.model, groups = self._study.model(cell.base)
            record = self._routers(groups, cell.router)
        record["scores"] = scores_of(self.model, self._examples, self._tasks, self._rows)
        record["parameters"] = acting_parameters(self.model, self._examples, self._tasks, self._rows)
        return record

    def _dense(self) -> Record:
        self.model, steps = _new_model(self._cell), self._budget.total
        cosines: list[float] = []

        def watch() -> None:
            gradients = gradients_of(self.model, self._examples, self._tasks)
            cosines.append(round(mean_cosine(gradients), 4))

        moments = {} if self._cell.variant == "wide" else {round(share * steps): watch for share in _WATCHED}
        given = self._examples, self._tasks, steps, self._recipe, self._generator
        return {"flops": train_dense(self.model, *given, moments), "steps": steps, "cosines": cosines}

    def _experts(self) -> Record:
        cell, steps = self._cell, self._budget.expert
        assert cell.base is not None and cell.grouping is not None
        backbone, _ = self._study.model(cell.base)
        count = num_experts(cell.tasks)
        groups = groups_of(backbone, self._examples, self._tasks, cell.grouping, count, cell.seed)
        self.model = attach_experts(backbone, count).eval()
        flops = train_experts(self.model, self._examples, groups, steps, self._recipe, self._generator)
        give_routing(self.model, groups_by_task(groups), self._rows)
        return {"flops": flops, "steps": steps * count, "groups": groups}

    def _routers(self, groups: Groups, router: str) -> Record:
        kind, steps = ROUTERS[router], self._budget.routers
        given = self._examples, groups, steps, self._recipe, kind, self._rows, self._generator
        return {"flops": train_routers(self.model, *given), "steps": round(steps * kind.steps)}

    def _added_experts(self) -> Record:
        """New experts on the same backbone, and new routers for all tasks; of the old ones experts are as they were."""
        base = self._cell.base
        assert base is not None and base.base is not None
        (old, groups), (backbone, _) = self._study.model(base), self._study.model(base.base)
        experts = num_experts(self._cell.tasks) - len(groups)
        added = groups_of(backbone, self._examples, self._tasks[-ADDED_TASKS:], "random", experts, self._cell.seed)
        given = self._examples, added, self._budget.expert, self._recipe, self._generator
        self.model, flops = add_experts(backbone, old, *given)
        groups = [*groups, *added]
        give_routing(self.model, groups_by_task(groups), self._rows)
        own = scores_of(self.model, self._examples, self._tasks, self._rows)
        routed = self._routers(groups, MEND)
        steps = experts * self._budget.expert + routed["steps"]
        return {"flops": flops + routed["flops"], "steps": steps, "own": own, "groups": groups}

    def _trained_further(self) -> Record:
        """A dense model, for the steps that experts and routers are given."""
        cell = self._cell
        assert cell.base is not None
        self.model, _ = self._study.model(cell.base)
        experts = num_experts(cell.tasks) - num_experts(cell.base.tasks)
        steps = experts * self._budget.expert + self._budget.routers
        tasks = self._tasks[-ADDED_TASKS:] if cell.variant.endswith("new") else self._tasks
        flops = train_dense(self.model, self._examples, tasks, steps, self._recipe, self._generator)
        return {"flops": flops, "steps": steps}


@lru_cache(maxsize=1)
def examples_of(family: str) -> Examples:
    """The family's tasks, which are the same for all cells."""
    return Examples(family)


def scores_of(model: LDMModel, examples: Examples, tasks: Sequence[int], rows: Rows) -> list[float]:
    """The score of each task."""

    def logits(batch: Batch, tasks_B: torch.Tensor) -> torch.Tensor:
        rows.tasks_B = tasks_B
        found: torch.Tensor = model(**batch).logits
        return found

    return examples.scores(logits, tasks)


def wide_size(examples: Examples, tasks: int) -> int:
    """The width of feed-forward layers with which a dense model has as many parameters as with experts for these tasks."""
    dense = examples.config()
    with torch.device("meta"):
        few, many = (LDMModel(examples.config(num_experts=count)) for count in (0, num_experts(tasks)))
    column = 3 * dense.num_hidden_layers * dense.hidden_size
    return dense.intermediate_size + round((many.num_parameters() - few.num_parameters()) / column)


def _new_model(cell: Cell, experts: int = 0) -> LDMModel:
    examples = examples_of(cell.family)
    wide = {"intermediate_size": wide_size(examples, cell.tasks)} if cell.variant == "wide" else {}
    return LDMModel(examples.config(num_experts=experts, **wide)).eval()


def _without_routers(model: LDMModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not is_router(name)}


def _write(path: Path, record: Record) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
