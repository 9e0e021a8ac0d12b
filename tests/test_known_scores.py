import csv
import math
from importlib import resources

import pytest

from ldm_hf.env_registry.known_scores import KINDS, RETURN, known_environments, known_score
from ldm_hf.env_registry.library.manifest import load_manifests
from ldm_hf.env_registry.library.report import load_report


def _rows():
    with (resources.files("ldm_hf.env_registry") / "known_scores.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_row_has_a_source_and_an_environment_of_the_catalogue():
    for row in _rows():
        library, _, name = row["id"].partition("/")
        assert name in load_report(library).environments, row
        assert row["source"] and row["kind"] in KINDS and row["comparable"] in ("yes", "no"), row
        if row["comparable"] == "yes":
            assert row["metric"] == RETURN, row
            assert not row["random"] or float(row["good"]) > float(row["random"]), row


def test_the_same_version_comes_before_another_and_the_highest_policy_first():
    assert known_score("gymnasium/Hopper-v5").good == 3754.2  # RL Zoo's, above tianshou's 3542.2 and D4RL's 3234.3
    assert known_score("gymnasium/Hopper-v5").measured_on == "v3"
    assert known_score("gymnasium/Hopper-v5").threshold == 3800
    assert known_score("gymnasium/Hopper-v4").good == 1858.73  # JAT's own, measured on v4


def test_a_rate_of_success_is_not_comparable_with_a_return():
    score = known_score("metaworld/MT1/push-v3")
    assert score is not None and not score.comparable


@pytest.mark.parametrize("unknown", ["gymnasium/NoSuch-v0", "", "no-such-library/CartPole-v1"])
def test_an_environment_without_a_score_has_none(unknown):
    assert known_score(unknown) is None


def test_all_environments_are_listed_once():
    names = known_environments()
    assert names == sorted({row["id"] for row in _rows()})


def test_a_held_out_period_shares_no_price_with_the_other():
    """An environment of gym-anytrading also sees the window before its first price."""
    points = {one.name: one for one in load_manifests()["gym-anytrading"].entry_points}
    for name, window in (("stocks", 30), ("forex", 24)):
        train, held_out = (points[f"{name}-{period}-v0"].kwargs["frame_bound"] for period in ("train", "held-out"))
        assert train[0] == window and held_out[0] - window >= train[1] and held_out[1] > held_out[0]
    trading = load_manifests()["gym-trading-env"]
    (known,), (held_out,) = trading.arguments, trading.entry_points
    for hours, kwargs in (range(240), known.kwargs), (range(240, 480), held_out.kwargs):
        prices = kwargs["df"]["kwargs"]["data"]["open"]
        assert prices == pytest.approx(
            [100 + 10 * math.sin(hour / 7) + 5 * math.sin(hour / 3) for hour in hours], abs=1e-3
        )
