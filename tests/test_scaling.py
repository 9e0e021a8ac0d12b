"""The study of sizes and numbers of environments: which cells, which environments, which scores."""

from ldm_hf.experiments.commands import score
from ldm_hf.experiments.scaling import Cell, cells, in_turns, row, write_page


def test_sets_grow_library_by_library():
    """Whatever the draw, each library comes once before any comes twice, and the order does not depend on the input's."""
    environments = ["a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "c/1"]
    order = in_turns(environments)
    assert sorted(order) == environments and order == in_turns(environments[::-1])
    assert [sorted(each[0] for each in part) for part in (order[:3], order[3:5], order[5:])] == [
        ["a", "b", "c"],
        ["a", "b"],
        ["a", "a"],
    ]


def test_budgets_grow_in_proportion_or_not_at_all():
    """Three sizes by three numbers, and the middle size with 45 environments' steps on 15 and 120; long ones first."""
    found = cells(2)
    assert len(found) == len({cell.name for cell in found}) == 22
    assert found[0] == Cell("large", 120) and found[10] == Cell("small", 15) and found[11].seed == 1
    assert [Cell("small", number).steps(10) for number in (15, 120)] == [150, 1200]
    assert [Cell("middle", number, "fixed").steps(10) for number in (15, 120)] == [450, 450]


def test_scores_begin_at_random_and_end_at_the_reference():
    def scored(mean):
        return score({"random": {"mean": -10.0}, "deterministic_return": 30.0, "mean_return": mean})

    assert [scored(mean) for mean in (-20, -10, 0, 30, 40)] == [0, 0, 0.25, 1, 1]


def test_the_page_tells_old_environments_from_new_ones(tmp_path):
    """A cell of 45 environments has scores on the first 15 and the first 45; one of 15 has none on the first 45."""
    order = [f"a/{number}" for number in range(45)]
    cell = {"size": "small", "number": 45, "budget": "proportional", "seed": 0, "steps": 450, "parameters": 1234567}
    cell["scores"] = {"a/0": 1.0, "a/14": 0.5, "a/15": 0.0}
    assert row(cell, order)[4:] == ["450", "1,234,567", "75.0", "50%", "50.0", "33%", "50.0", "33%"]
    assert row(cell | {"number": 15, "scores": {"a/0": 1.0}}, order)[6:] == ["100.0", "100%", "", "", "100.0", "100%"]
    write_page([cell], order, tmp_path, 10)
    text = (tmp_path / "README.md").read_text()
    assert "| small | 45 | proportional | 0 | 450 | 1,234,567 | 75.0 | 50% | 50.0 | 33% | 50.0 | 33% |" in text
    assert "The first 15: a/0, a/1, " in text and (tmp_path / "scaling.png").stat().st_size > 5000
