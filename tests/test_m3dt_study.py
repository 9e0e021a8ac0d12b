"""The study of experts: tasks whose values are known by hand, stages that equal what they stand for, cells that resume."""

import itertools

import pytest
import torch

from ldm_hf.errors import ConfigError
from ldm_hf.experiments.m3dt.capacity import study as study_module
from ldm_hf.experiments.m3dt.capacity.additions import join_experts
from ldm_hf.experiments.m3dt.capacity.cells import ADDITIONS, Budget, Cell
from ldm_hf.experiments.m3dt.capacity.examples import Examples
from ldm_hf.experiments.m3dt.capacity.gradients import gradients_of, groups_of, mean_cosine
from ldm_hf.experiments.m3dt.capacity.page import markdown, text
from ldm_hf.experiments.m3dt.capacity.plan import full_plan, short_plan
from ldm_hf.experiments.m3dt.capacity.routers import (
    ROUTERS,
    RouterSettings,
    Rows,
    StudyRouter,
    clip_each_expert,
    experts_of,
    give_routing,
    only_top,
    routing_loss,
)
from ldm_hf.experiments.m3dt.capacity.study import Study, examples_of, scores_of, wide_size
from ldm_hf.experiments.m3dt.capacity.tables import additions, by_router, by_tasks
from ldm_hf.experiments.m3dt.capacity.tasks import Tasks, gridworlds
from ldm_hf.experiments.m3dt.capacity.training import (
    Recipe,
    _steps,
    _train_only,
    acting_parameters,
    groups_by_task,
    train_dense,
    train_experts,
    train_routers,
)
from ldm_hf.experiments.m3dt.capacity.workers import measure_chain
from ldm_hf.experiments.m3dt.stages import attach_experts, is_expert, put_expert
from ldm_hf.modeling import LDMModel


@pytest.fixture(scope="module")
def processes() -> Examples:
    return examples_of("processes")


@pytest.fixture
def backbone(processes) -> LDMModel:
    torch.manual_seed(0)
    return LDMModel(processes.config()).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def two_states() -> Tasks:
    """Action 0 stays and action 1 changes the state; to stay in state 1 is worth 1."""
    successors = torch.tensor([[[[0], [1]], [[1], [0]]]])
    rewards = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    chances = torch.ones(1, 2, 2, 1, dtype=torch.float64)
    return Tasks(torch.tensor([[0], [1]]), (2,), successors, chances, rewards, discount=0.5)


def test_value_iteration_and_returns_of_two_states(two_states):
    # V(1) = 1 / (1 - 0.5) = 2, and V(0) = 0.5 V(1) = 1.
    expected = torch.tensor([[[0.5, 1.0], [2.0, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(two_states.action_values, expected, atol=1e-8, rtol=0)
    assert two_states.labels.tolist() == [[1, 0]]
    # At random v0 = (v0 + v1) / 4 and v1 = 1 / 2 + (v0 + v1) / 4, so 0.25 and 0.75.
    random, best = two_states.bounds
    assert random.item() == pytest.approx(0.5) and best.item() == pytest.approx(1.5)
    # Who always stays has 0 and 2; who always changes has v0 = v1 / 2 = v0 / 4, so nothing.
    scores = [two_states.scores(torch.tensor([actions])).item() for actions in ([1, 0], [0, 0], [1, 1])]
    assert scores == pytest.approx([100, 50, -50])


def test_gridworlds_want_to_reach_the_goal_and_to_stay(processes):
    tasks = gridworlds()
    goals = tasks.arrivals.argmax(1)
    assert (tasks.arrivals.amax(1) == 0).all() and len(goals.unique()) == len(goals)
    assert (tasks.labels[torch.arange(len(goals)), goals] == 0).all()
    torch.testing.assert_close(tasks.probabilities.sum(-1), torch.ones(tasks.rewards.shape, dtype=torch.float64))
    # Each best move is along a shortest way, with one exception: where two ways are as long, slips decide.
    chosen = tasks.successors.gather(2, tasks.labels[..., None, None].expand(-1, -1, 1, 5))[:, :, 0]
    place = tasks.labels[..., None]
    nearer = tasks.arrivals.gather(1, chosen.gather(2, place)[..., 0]) > tasks.arrivals
    assert nearer[tasks.arrivals < 0].float().mean() > 0.98
    random, best = tasks.bounds
    assert (best > random).all()


def test_the_best_actions_score_100_and_others_less(processes):
    logits = lambda change: lambda batch, rows: one_hot_logits(processes, rows, change)  # noqa: E731
    assert processes.scores(logits(0), range(20)) == [100.0] * 20
    worse = processes.scores(logits(1), [3, 7])
    labels = processes.tasks.labels.clone()
    labels[[3, 7]] = (labels[[3, 7]] + 1) % 8
    assert worse == pytest.approx(processes.tasks.scores(labels)[[3, 7]].tolist(), abs=1e-3) and max(worse) < 50


def one_hot_logits(examples: Examples, rows: torch.Tensor, change: int) -> torch.Tensor:
    labels = examples.tasks.labels[rows.unique()].flatten()
    return torch.nn.functional.one_hot((labels + change) % 8, 160).float()[:, None, None]


def test_batches_are_what_the_model_reads(processes):
    tasks = torch.tensor([5, 5, 9])
    batch = processes.draw(tasks, generator())
    task, state = batch["observations"][:, 0].long().unbind(1)
    assert torch.equal(task, tasks)
    assert torch.equal(batch["labels"][:, 0, 0].long(), processes.tasks.labels[task, state])
    assert batch["action_bounds"].tolist() == [[[0.0, 7.0]]] * 3


def test_walks_follow_from_their_actions_and_rewards_come_with_the_next_state():
    hidden = examples_of("hidden")
    tasks = torch.tensor([0, 1, 2, 3])
    batch = hidden.draw(tasks, generator())
    states = hidden._numbers[tuple(batch["observations"].long().permute(2, 0, 1))]
    actions = batch["previous_actions"][:, 1:, 0].long()
    reached = hidden.tasks.successors[tasks[:, None], states[:, :-1], actions]
    assert (reached == states[:, 1:, None]).any(-1).all()
    expected = hidden.tasks.arrivals[tasks[:, None], states[:, 1:]].float()
    torch.testing.assert_close(batch["previous_rewards"][:, 1:], expected)
    assert batch["previous_dones"][:, 0].eq(3).all() and batch["previous_dones"][:, 1:].eq(0).all()
    first, second = (hidden.everything(torch.tensor([4, 5]))[0]["observations"] for _ in range(2))
    assert torch.equal(first, second)


def test_layers_hold_most_of_what_acts(processes, backbone):
    acting = acting_parameters(backbone, processes, range(160), Rows())
    layers = sum(weight.numel() for name, weight in backbone.named_parameters() if ".layers." in name)
    unused = 2 * 2 * 32 * 32  # queries and keys of single transitions
    assert layers - unused - acting < 0 and acting - (layers - unused) < 0.1 * acting
    with torch.device("meta"):
        wide = LDMModel(processes.config(intermediate_size=wide_size(processes, 40))).num_parameters()
        experts = LDMModel(processes.config(num_experts=12)).num_parameters()
    assert wide == pytest.approx(experts, abs=200)


class Replayed:
    """Batches of another training's rows, in order."""

    def __init__(self, batches, part: slice):
        self._batches = iter(batches)
        self._part = part

    def __next__(self):
        batch = dict(next(self._batches))
        del batch["row_groups"]
        return {name: tensor[self._part] for name, tensor in batch.items()}


def test_experts_trained_at_once_are_experts_trained_alone(processes, backbone, monkeypatch):
    groups, steps, recipe = [[0, 4, 5], [1, 2], [3]], 4, Recipe(0.01, clip=0.02)
    merged, batches = attach_experts(backbone, 3).eval(), []
    alone = [attach_experts(backbone, 1).eval() for _ in groups]
    for index, expert in enumerate(alone):
        put_expert(merged, index, expert)
    draw = processes.draw
    monkeypatch.setattr(processes, "draw", lambda *given: batches.append(draw(*given)) or batches[-1], raising=False)
    train_experts(merged, processes, groups, steps, recipe, generator())
    expected = attach_experts(backbone, 3)
    for index, expert in enumerate(alone):
        rows = processes.rows_per_step
        replayed = Replayed(batches, slice(index * rows, (index + 1) * rows))
        assert set(next(Replayed(batches, replayed._part))["observations"][:, 0, 0].tolist()) == set(groups[index])
        _steps(_train_only(expert, is_expert), steps, recipe, lambda each=replayed, m=expert: m(**next(each)).loss)
        put_expert(expected, index, expert)
    for name, weight in merged.state_dict().items():
        if is_expert(name):
            torch.testing.assert_close(weight, expected.state_dict()[name], atol=2e-5, rtol=1e-3, msg=name)
    assert experts_of(merged)[0].down_proj.weight.abs().max() > 0.01


def test_each_expert_is_clipped_by_itself(backbone):
    mixture = attach_experts(backbone, 2)
    for experts in experts_of(mixture):
        for weight in (experts.gate_proj.weight, experts.up_proj.weight, experts.down_proj.weight):
            weight.grad = torch.zeros_like(weight)
        experts.gate_proj.weight.grad[0, 0] = 3.0  # of expert 0
        experts.down_proj.weight.grad[0, -1] = 0.25  # of expert 1
    clip_each_expert(mixture, 1.0)
    for experts in experts_of(mixture):  # two layers: norms of 3 and 0.25 times the root of 2
        assert experts.gate_proj.weight.grad[0, 0].item() == pytest.approx(0.5**0.5, rel=1e-5)
        assert experts.down_proj.weight.grad[0, -1].item() == 0.25


def test_given_routing_uses_the_own_expert_and_joined_experts_stay_the_same(processes, backbone):
    torch.manual_seed(1)
    parts = [attach_experts(backbone, count).eval() for count in (1, 2)]
    for experts in itertools.chain(*map(experts_of, parts)):
        torch.nn.init.normal_(experts.down_proj.weight, std=0.1)
    joined, rows = join_experts(backbone, parts), Rows()
    give_routing(joined, torch.tensor([0, 2]), rows)
    give_routing(parts[1], torch.tensor([0, 1]), rows)
    rows.tasks_B = torch.tensor([0, 1, 0])
    batch = processes.draw(rows.tasks_B, generator())
    del batch["labels"], batch["row_groups"]
    found = joined(**batch).logits
    torch.testing.assert_close(found[1], parts[1](**batch).logits[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[[0, 2]], parts[0](**batch).logits[[0, 2]], atol=1e-5, rtol=1e-4)


def test_top_experts_share_the_weight_and_losses_are_as_by_hand(processes):
    logits = torch.tensor([0.0, 1.0, 3.0]).log()
    assert only_top(logits, 0).softmax(-1).tolist() == pytest.approx([0, 0.25, 0.75])
    assert only_top(logits, 1).softmax(-1).tolist() == [0, 0, 1]
    config = processes.config(num_experts=2)
    router = StudyRouter(config, 2, RouterSettings(by_task=True), Rows())
    router.logits = torch.tensor([[[0.0, 0.0]], [[0.0, 3.0]]]).exp().log()
    router.logits[1, 0, 1] = torch.log(torch.tensor(3.0))  # weights of a half each, and of 1/4 and 3/4
    supervised = routing_loss([router], RouterSettings(supervised=2.0), torch.tensor([0, 1]))
    assert supervised.item() == pytest.approx(2 * -(torch.tensor([0.5, 0.75]).log().mean()).item())
    # The first of equal weights counts as the highest: each expert has one row, mean weights are 3/8 and 5/8.
    assert routing_loss([router], RouterSettings(balance=1.0), torch.tensor([0, 1])).item() == pytest.approx(1.0)


def test_supervised_routers_choose_the_expert_of_the_task(processes, backbone):
    groups = [[0, 3, 5], [1, 4], [2, 6]]
    rows, recipe = Rows(), Recipe(3e-3)
    shares = {}
    for name, settings in {"one": RouterSettings(), "supervised": ROUTERS["supervised"]}.items():
        torch.manual_seed(0)
        mixture = attach_experts(backbone, 3).eval()
        train_routers(mixture, processes, groups, 100, recipe, settings, rows, generator())
        batch, rows.tasks_B = processes.everything(torch.arange(7))
        mixture(**{name: part for name, part in batch.items() if name != "labels"})
        own = groups_by_task(groups)[rows.tasks_B]
        chosen = experts_of(mixture)[-1].router.logits[:, 0].argmax(-1)
        shares[name] = (chosen == own).float().mean().item()
    assert shares["supervised"] > 0.95 and shares["one"] < 0.8


def test_cosines_and_groups_come_from_gradients(processes, backbone):
    gradients = [{"a.layers.b": torch.tensor(each), "head": torch.ones(9)} for each in ([1.0, 0], [0, 2.0], [1.0, 0])]
    assert mean_cosine(gradients) == pytest.approx(1 / 3)
    found = gradients_of(backbone, processes, [0, 1])
    assert not any("image" in name for name in found[0])
    groups = groups_of(backbone, processes, range(6), "random", 2, 0)
    assert sorted(itertools.chain(*groups)) == list(range(6)) and sorted(map(len, groups)) == [3, 3]


def test_training_learns_and_counts_what_it_costs(processes, backbone):
    rows, seen = Rows(), []
    before = scores_of(backbone, processes, [0, 1], rows)
    flops = train_dense(backbone, processes, [0, 1], 60, Recipe(1e-2), generator(), {60: lambda: seen.append(1)})
    after = scores_of(backbone, processes, [0, 1], rows)
    assert min(after) > max(before) and min(after) > 50 and seen == [1]
    # Forward 2 and backward 4 for each weight and transition. The head has 160 rows, all embeddings are products too.
    weights = sum(weight.numel() for name, weight in backbone.named_parameters() if "proj.weight" in name)
    assert 6 * weights * 256 * 60 < flops < 1.6 * 6 * weights * 256 * 60


def test_budgets_are_m3dts():
    assert Budget.of("m3dt", 40, 100) == Budget(1000, 500, 1000, 1000 + 12 * 500 + 1000)
    assert Budget.of("proportional", 40, 100) == Budget(2000, 1000 // 12, 1000, 4000)
    assert Budget.of("fixed", 160, 100).total == Budget.of("proportional", 10, 100).total == 1000
    assert Budget.of("half", 40, 100).total == Budget.of("proportional", 40, 100).backbone


def test_plans_have_every_cell_once_and_name_it_for_its_file():
    for plan in (full_plan(), short_plan()):
        cells = list(itertools.chain(*plan))
        assert len({cell.name for cell in cells}) == len(cells)
        assert all(cell.router is None or cell.router in ROUTERS for cell in cells)
    routed = Cell("processes", 40, "m3dt", "mixed", "random+one")
    assert [routed.base.variant, routed.base.base.variant, routed.base.base.budget] == ["random", "dense", "fixed"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study of steps too few to learn anything."""
    study = Study(tmp_path_factory.mktemp("study"), 2)
    study.begin()
    variants = ("random", "random+one", "random+supervised", "random+joint", "wide")
    chain = [
        *(Cell("processes", 10, "m3dt", "mixed", variant) for variant in variants),
        *(Cell("processes", 50, "m3dt", "mixed", variant) for variant in ADDITIONS),
        Cell("processes", 10, "fixed", "one", "dense"),
        Cell("hidden", 10, "m3dt", "mixed", "gradient+five"),
    ]
    measure_chain(study, chain)
    return study, chain


def test_only_missing_cells_are_measured_again(measured, monkeypatch):
    study, chain = measured
    made = []
    run = study_module._Trial.run
    monkeypatch.setattr(study_module._Trial, "run", lambda trial: made.append(trial._cell) or run(trial))
    measure_chain(study, chain)
    assert not made
    before = study.record(chain[1])
    study._record(chain[1]).unlink()
    measure_chain(study, chain)
    after = study.record(chain[1])
    assert made == [chain[1]] and {**after, "seconds": 0} == {**before, "seconds": 0}
    study.begin()
    with pytest.raises(ConfigError, match="other steps"):
        Study(study.folder, 3).begin()


def test_records_add_up(measured):
    study, chain = measured
    own, routed = study.record(chain[0]), study.record(chain[1])
    assert study.record(chain[0].base)["flops"] < own["flops"] < routed["flops"]
    assert len(own["scores"]) == 10 and own["steps"] == 3 * 10 and routed["steps"] == 20
    assert own["parameters"] > study.record(chain[0].base)["parameters"]
    assert len(study.record(chain[0].base)["cosines"]) == 3
    added = study.record(chain[5])
    assert added["cell"]["variant"] == "add-experts" and len(added["own"]) == 50


def test_added_experts_leave_old_ones_as_they_were(measured):
    study, chain = measured
    added, _ = study.model(chain[5])
    old, _ = study.model(chain[5].base)
    for one, other in zip(experts_of(added), experts_of(old), strict=True):
        size = other.gate_proj.out_features
        assert torch.equal(one.gate_proj.weight[:size], other.gate_proj.weight)
        assert torch.equal(one.down_proj.weight[:, :size], other.down_proj.weight)


def test_the_page_says_what_cells_hold(measured):
    study, chain = measured
    records = {cell: study.record(cell) for cell in chain} | {chain[0].base: study.record(chain[0].base)}
    records |= {chain[5].base: study.record(chain[5].base)}
    head, *rows = by_tasks(records, "processes")
    assert head == ["budget", "variant", "10"]
    own = next(row for row in rows if row[1] == "experts, random groups, each task's own")
    assert own == ["M3DT's", own[1], f"{study.record(chain[0])['score']:.1f}"]
    assert [row[0] for row in by_router(records, "processes", 10)[1:]] == ["one", "supervised", "joint"]
    assert additions(records)[1][0] == "add-experts"
    page = text(records, {"steps_per_task": 2})
    assert markdown(by_tasks(records, "processes")) in page and "## hidden" in page
