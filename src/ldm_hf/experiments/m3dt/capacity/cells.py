"""What is measured: the entries of the study's tables, what they start from, and the steps that each is given."""

from dataclasses import dataclass, replace

GROUPINGS = ("random", "gradient", "direction")
ADDED_TASKS = 40
ADDITIONS = ("add-experts", "add-dense-new", "add-dense-all", "add-wide-new", "add-wide-all")
"""How the last tasks are added to a model of the others; a dense model is trained on the new ones only, or on all."""

_TASKS_PER_EXPERT = 3.3  # M3DT, section 5


@dataclass(frozen=True)
class Cell:
    """One entry: a training, or one stage after another's.

    Attributes:
        family: of tasks.
        tasks: how many, the first ones of the family.
        budget: ``fixed``, ``twice`` that, ``proportional`` to the tasks, ``half`` of that, or ``m3dt``: see ``Budget``.
        batch: ``mixed``, or ``one`` task per step.
        variant: ``dense``; ``wide``; a grouping: experts, each task scored with its own; a grouping and a router, as in
            ``random+one``; or one of ``ADDITIONS``.
        seed: of weights and batches.
    """

    family: str
    tasks: int
    budget: str
    batch: str
    variant: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.family}-{self.tasks}-{self.budget}-{self.batch}-{self.variant}-{self.seed}"

    @property
    def grouping(self) -> str | None:
        """Of its experts, if it has some."""
        grouping = self.variant.partition("+")[0]
        return grouping if grouping in GROUPINGS else None

    @property
    def router(self) -> str | None:
        """Its kind, if it has one."""
        return self.variant.partition("+")[2] or None

    @property
    def base(self) -> "Cell | None":
        """The cell whose weights this one starts from."""
        if self.variant in ADDITIONS:
            fewer = replace(self, tasks=self.tasks - ADDED_TASKS)
            if self.variant == "add-experts":
                return replace(fewer, variant="random")
            return replace(fewer, variant=self.variant.split("-")[1])
        if self.grouping and self.router:
            return replace(self, variant=self.grouping)
        if self.grouping:  # the first stage is a dense training of fewer steps
            return replace(self, variant="dense", budget="fixed" if self.budget == "m3dt" else "half")
        return None


def num_experts(tasks: int) -> int:
    """One for about 3.3 tasks."""
    return max(2, round(tasks / _TASKS_PER_EXPERT))


@dataclass(frozen=True)
class Budget:
    """Steps of the stages, and of a model that is trained all at once.

    M3DT trains the backbone for as many steps at any number of tasks, every expert for half as many, and then the routers.

    Attributes:
        backbone: of the first stage.
        expert: of each expert.
        routers: of the last stage.
        total: of a model without stages: as many as those of all stages and experts together.
    """

    backbone: int
    expert: int
    routers: int
    total: int

    @classmethod
    def of(cls, budget: str, tasks: int, per_task: int) -> "Budget":
        """Of this many steps per task; where they are fixed, as many as 10 tasks have."""
        fixed, experts = 10 * per_task, num_experts(tasks)
        if budget == "m3dt":
            return cls(fixed, fixed // 2, fixed, fixed + experts * (fixed // 2) + fixed)
        proportional = tasks * per_task
        total = {"fixed": fixed, "twice": 2 * fixed, "proportional": proportional, "half": proportional // 2}[budget]
        return cls(total // 2, max(1, total // 4 // experts), total // 4, total)
