"""The demo: what it shows is what an evaluation would find, and a person can use its page."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gradio_client import Client
from playwright.sync_api import sync_playwright

from browser.accessibility import serious_defects
from conftest import CARTPOLE, PENDULUM, run_ldm_here
from ldm_hf.demo.app import LAUNCH, app
from ldm_hf.demo.stage import MODEL, RANDOM, REFERENCE, Stage
from ldm_hf.env_registry import registry
from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.rollout import evaluate_environment
from ldm_hf.hub.pretrained import load_pretrained

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    """A small model, and a bank of one reference."""
    made = tmp_path_factory.mktemp("demo")
    model.save_pretrained(made / "toy")
    processor.save_pretrained(made / "toy")
    (made / "bank/gymnasium").mkdir(parents=True)
    (made / "bank" / CARTPOLE).symlink_to(ROOT / "bank" / CARTPOLE)
    return made


@pytest.fixture(scope="module")
def stage(folder):
    return Stage(str(folder / "toy"), [folder / "bank"], [CARTPOLE, PENDULUM])


def last(stage, who, **options):
    *_, moment = stage.play(CARTPOLE, who, **{"episodes": 2, "rendered": False, **options})
    return moment


def test_the_model_plays_as_in_an_evaluation(stage, folder):
    seen = list(stage.play(CARTPOLE, MODEL, episodes=3, seed=2, rendered=False))
    played = evaluate_environment(*load_pretrained(folder / "toy"), CARTPOLE, episodes=3, rollouts=1, seed=2)
    assert seen[-1].returns == played.returns[0]
    ends = [before for before, after in itertools.pairwise(seen) if after.episode > before.episode]
    assert [moment.step for moment in (*ends, seen[-1])] == played.lengths[0]
    assert [moment.total for moment in (*ends, seen[-1])] == played.returns[0]


def test_every_player_plays_as_it_should(stage):
    assert stage.players(CARTPOLE) == [MODEL, REFERENCE, RANDOM] and stage.players(PENDULUM) == [MODEL, RANDOM]
    assert last(stage, REFERENCE).returns == [500, 500]
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    env.reset(seed=0)
    drawn = [last(stage, RANDOM, seed=seed).returns for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and max(drawn[0]) < 100


def test_a_cleared_context_begins_each_episode_as_the_first_one_begins(stage, monkeypatch):
    """The policy of the second episode is a new one, which is told of nothing before."""
    calls = []
    start = type(stage._player(CARTPOLE, MODEL, 0, 0.0)).start

    def counted(self, envs):
        calls.append(len(envs))
        return start(self, envs)

    monkeypatch.setattr("ldm_hf.evaluation.players.ModelPlayer.start", counted)
    for kept, expected in ((True, 1), (False, 3)):
        calls.clear()
        last(stage, MODEL, episodes=3, kept=kept)
        assert len(calls) == expected


def test_frames_are_what_the_environment_draws(stage):
    moment = next(stage.play(PENDULUM, RANDOM, episodes=1))
    env = registry.make(PENDULUM, render_mode="rgb_array")
    env.reset(seed=1_000_000)
    assert moment.frame.dtype == np.uint8 and moment.frame.ndim == 3 and moment.frame.std() > 0
    assert moment.frame.shape == env.render().shape


def test_what_cannot_be_watched_is_refused(folder):
    with pytest.raises(ConfigError, match="cannot be watched"):
        Stage(str(folder / "toy"), environments=["popgym/popgym-HigherLowerEasy-v0"])
    (folder / "other").mkdir()
    (folder / "other/mine.txt").write_text("mine")
    done = run_ldm_here("demo", folder / "toy", "--environment", CARTPOLE, "--space", folder / "other")
    assert done.returncode == 1 and "holds something else than a Space" in done.stderr
    assert (folder / "other/mine.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def address(stage):
    """The page, served."""
    page = app(stage, "toy")
    yield page.queue().launch(**LAUNCH, server_name="127.0.0.1")[1]
    page.close()


def test_a_program_can_play_and_compare(address, stage):
    client = Client(
        address, verbose=False, download_files=False
    )  # each leaves an empty folder in the temporary directory
    *_, video = client.predict(CARTPOLE, REFERENCE, 1, 0, "kept between episodes", 0, api_name="/play")
    assert Path(video["value"]["path"]).stat().st_size > 10_000
    table, _ = client.predict(CARTPOLE, 2, 0, "kept between episodes", 0, api_name="/compare")
    rows = {row[0]: row[1:] for row in table["data"]}
    assert [float(value) for value in rows["reference"][:3]] == [500, 500, 500]
    assert float(rows["model"][0]) == pytest.approx(np.mean(last(stage, MODEL).returns), rel=1e-3)
    assert set(rows) == {"model", "reference", "random policy"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_person_can_play(address, width, scheme):
    with (
        sync_playwright() as browsers,
        browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as one,
    ):
        page = one.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Play", exact=True).wait_for()
        page.wait_for_function("document.title")
        assert not serious_defects(page)
        page.get_by_role("radio", name="random policy").check()
        page.get_by_role("button", name="Play", exact=True).focus()
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('video')?.src")
        assert "random policy, episode 3" in page.locator("#status").inner_text()
        page.get_by_role("button", name="Compare all players").click()
        page.get_by_role("gridcell", name="reference").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not errors
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def test_the_space_is_the_page(folder, tmp_path):
    done = run_ldm_here(
        *("demo", folder / "toy", "--references", folder / "bank", "--environment", CARTPOLE),
        *("--space", tmp_path / "space"),
    )
    assert done.returncode == 0, done.stderr
    space = tmp_path / "space"
    assert json.loads((space / "page.json").read_text()) == {"sdk": "gradio"}
    assert (
        "sdk: gradio\n" in (space / "README.md").read_text()
        and "ldm_hf[demo" in (space / "requirements.txt").read_text()
    )
    shown = 'def show(page, host, port): print("served", page.title, host, port)'
    code = f"import ldm_hf.demo.app as one\n{shown}\none.show = show\nexec(open('app.py').read())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=space, capture_output=True, text=True, check=False)
    assert "served toy: demo 0.0.0.0 7860" in ran.stdout, ran.stderr
    again = run_ldm_here("demo", folder / "toy", "--environment", CARTPOLE, "--space", space)
    assert again.returncode == 0 and not (space / "references").exists()
