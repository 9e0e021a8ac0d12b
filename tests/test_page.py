"""The page as its visitors have it: what the model does there is what it does in Python."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import threading
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from playwright.sync_api import sync_playwright

from browser.accessibility import serious_defects
from browser.javascript import json_value, run_node
from conftest import CARTPOLE, CLIFF, PENDULUM, run_ldm_here
from ldm_hf.export import vendor
from ldm_hf.export.int8 import with_int8_weights
from ldm_hf.export.page import environments, export
from ldm_hf.export.runtime import check_export
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMPolicy
from ldm_hf.modeling.spaces_ldm import space_to_json

ROOT = Path(__file__).parents[1]
GHOST = "gymnasium--CartPole-v1.onnx"
HOME = vendor.home()  # of the user: what was fetched once is not fetched again
CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")


@pytest.fixture(scope="session")
def page(model, processor, tmp_path_factory):
    """A page of the small model, with int8 weights; onnxruntime-web is the one thing here that may have to be fetched."""
    folder = tmp_path_factory.mktemp("export")
    trained = type(model)(
        type(model.config).from_dict({**model.config.to_dict(), "environments": sorted(environments())})
    )
    trained.load_state_dict(model.state_dict())
    trained.save_pretrained(folder / "toy")
    processor.save_pretrained(folder / "toy")
    (folder / "bank" / "gymnasium").mkdir(parents=True)
    (folder / "bank" / CARTPOLE).symlink_to(ROOT / "bank" / CARTPOLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_HOME", str(HOME))
        done = run_ldm_here(
            *("export", folder / "toy", "--page", "--references", folder / "bank", "--output", folder / "page")
        )
    if "npm cannot fetch" in done.stderr or "npm, which fetches" in done.stderr:
        pytest.skip(done.stderr)
    assert not done.returncode, done.stderr
    return folder / "page"


@pytest.fixture(scope="session")
def exported(page):
    """The graphs of the small model."""
    return page / "model"


def test_the_graphs_say_what_the_model_says(model, processor, exported):
    """In a context of 5, rebuilt 60 times; the command has let both act for 300 steps in the model's own."""
    assert check_export(with_int8_weights(model), processor, exported, steps=150, context_length=5) < 1e-4


def folders(page):
    return {"site": str(page), "runtime": str(page / "ort"), "model": str(page / "model")}


def recorded_run(model, processor, env, steps):
    """What a policy in torch read and said: inputs for JavaScript, actions, and logits of the allowed bins."""
    policy, seen = LDMPolicy(model, processor, [env]), []
    hook = policy.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits[0, -1]))
    (observation, _), outcome, inputs, actions, logits = env.reset(seed=1), None, [], [], []
    for _ in range(steps):
        (action,) = policy.act([observation], *([[value] for value in outcome] if outcome else []))
        row = {"observation": json_value(observation), "action": json_value(action)}
        if outcome:
            row["outcome"] = dict(zip(("reward", "terminated", "truncated"), outcome, strict=True))
        inputs.append(row)
        actions.append(json_value(action))
        logits.append([each[each > torch.finfo(torch.float32).min] for each in seen[-1]])
        observation, reward, terminated, truncated, _ = env.step(action)
        outcome = float(reward), bool(terminated), bool(truncated)
        if terminated or truncated:
            observation, _ = env.reset()
    hook.remove()
    made = {"observation": space_to_json(env.observation_space), "action": space_to_json(env.action_space)}
    return {"spaces": made, "steps": inputs}, actions, logits


def test_the_runner_in_javascript_says_what_the_model_says(model, processor, page):
    """Over 300 steps with rebuilds, in environments of real numbers, of symbols and of images, int8 weights."""
    acting = with_int8_weights(model)
    env = gymnasium.make("CartPole-v1")
    # Of some contrast: the model divides by the standard deviation, and what is almost even has none that is exact.
    noise, space = np.random.default_rng(0).integers(0, 256, (9, 9, 3)), spaces.Box(0, 255, (9, 9, 3), np.uint8)
    camera = gymnasium.wrappers.TransformObservation(
        env, lambda state: ((np.resize(state * 1000, (9, 9, 3)) + noise) % 256).astype(np.uint8), space
    )
    worlds = [*map(gymnasium.make, ("CartPole-v1", "Pendulum-v1", "FrozenLake-v1")), camera]
    recorded = [recorded_run(acting, processor, world, 300 if index == 0 else 60) for index, world in enumerate(worlds)]
    done = run_node("policy.mjs", runs=[run for run, _, _ in recorded], **folders(page))
    for (_, actions, logits), got in zip(recorded, done, strict=True):
        assert got["rebuilds"] > 3
        for theirs, ours in zip(logits, got["logits"], strict=True):
            for slot, own in zip(theirs, ours, strict=True):
                assert torch.allclose(torch.tensor(own), slot, atol=1e-4, rtol=0)
        assert np.allclose(got["actions"], actions, atol=1e-6)


def python_run(model, processor, environment, seed, count, are_swapped=False):
    """What the policy in torch does in an environment, as the page plays it: each episode from a seed of its own."""
    env = gymnasium.make(environment.removeprefix("gymnasium/"))
    policy = LDMPolicy(model, processor, [env])
    observation, outcome, actions, returns, total = env.reset(seed=seed)[0], None, [], [], 0.0
    for _ in range(count):
        (action,) = policy.act([observation], *([[value] for value in outcome] if outcome else []))
        actions.append(json_value(action))
        done = 1 - action if are_swapped else action
        observation, reward, terminated, truncated, _ = env.step(done)
        outcome, total = (float(reward), bool(terminated), bool(truncated)), total + reward
        if terminated or truncated:
            seed += 1
            observation, total = env.reset(seed=seed)[0], returns.append(total) or 0.0
    return actions, returns


def test_the_runner_draws_actions_by_their_probabilities(model, processor, page):
    """Of temperature 2: the first action up to which the probabilities sum to more than what chance says."""
    run, likely, logits = recorded_run(with_int8_weights(model), processor, gymnasium.make("FrozenLake-v1"), 80)
    draws = np.random.default_rng(0).random(80)
    sums = torch.stack([(slot / 2).softmax(-1).cumsum(-1) for (slot,) in logits])
    expected = (sums > torch.from_numpy(draws)[:, None]).int().argmax(1).tolist()
    assert expected != likely
    (got,) = run_node("policy.mjs", runs=[run | {"temperature": 2, "draws": draws.tolist()}], **folders(page))
    assert got["actions"] == expected


def test_what_the_page_plays_is_what_python_plays(model, processor, page):
    """The same actions and returns from the same seeds; also with actions that are swapped."""
    acting = with_int8_weights(model)
    runs = [(CARTPOLE, False), (CARTPOLE, True), (CLIFF, False), (PENDULUM, False)]
    wanted = [{"id": name, "seed": 4, "count": 120, "areSwapped": swapped} for name, swapped in runs]
    for (name, swapped), got in zip(runs, run_node("policy.mjs", runs=wanted, **folders(page)), strict=True):
        actions, returns = python_run(acting, processor, name, 4, 120, swapped)
        assert np.allclose(got["actions"], actions, atol=1e-6), name
        assert np.allclose(got["returns"], returns, atol=1e-6), name
        assert got["rebuilds"] > 5


@pytest.mark.slow
def test_ldm_mini_plays_alike_in_both(tmp_path):
    """300 steps in each environment of the page that Gymnasium has, through rebuilds of a context of 128."""
    loaded, processor = load_pretrained(ROOT / "pretrained" / "ldm-mini")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_HOME", str(HOME))
        export(ROOT / "pretrained" / "ldm-mini", tmp_path / "page", page=True)
    names = [name for name in environments() if name.startswith("gymnasium/")]
    runs = [{"id": name, "seed": 0, "count": 300} for name in names]
    for name, got in zip(names, run_node("policy.mjs", runs=runs, **folders(tmp_path / "page")), strict=True):
        actions, returns = python_run(with_int8_weights(loaded), processor, name, 0, 300)
        assert np.allclose(got["actions"], actions, atol=1e-6), name
        assert np.allclose(got["returns"], returns, atol=1e-6), name
        assert got["rebuilds"] == 3


def test_the_page_is_a_space(page):
    """Its card has the metadata of a static Space, and all that the page asks for lies in its folder."""
    metadata = yaml.safe_load((page / "README.md").read_text().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"]) == ("static", "index.html")
    assert len(metadata["short_description"]) <= 60  # which is what the Hub allows
    text = (page / "index.html").read_text()
    assert "{{" not in text
    assert set(re.findall(r'option value="([^"]+/[^"]+)"', text)) == set(environments())
    scripts = [path.read_text() for path in page.glob("*.js")]
    asked = {name for script in scripts for name in re.findall(r'(?:from|import\() ?"\./([\w./]+)"', script)}
    assert asked >= {"policy.js", "player.js", "breakout.js", "ort/ort.js"}
    assert all((page / name).is_file() for name in asked)
    assert not any("http" in script for script in scripts)
    assert json.loads((page / "page.json").read_text())["references"] == {CARTPOLE: f"references/{GHOST}"}
    assert (page / "references" / GHOST).is_file()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(page):
    """The page on a server of files, as the Hub serves it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=page)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def visited(browser, address, environment=CARTPOLE, width=1280, scheme="light", motion="no-preference"):
    """A tab that shows the page; afterwards nothing may have been wrong, and no other host have been asked."""
    viewport = {"width": width, "height": 900}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion=motion)
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request",
        lambda request: None if request.url.startswith((address, "blob:", "data:")) else wrong.append(request.url),
    )
    tab.goto(f"{address}#{environment}")
    tab.wait_for_selector("#play:not([disabled])")
    yield tab
    context.close()
    assert wrong == []


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_visit(model, processor, browser, address, width, scheme):
    """Episodes have the returns that Python gives, the ghost plays beside them, and axe-core has no serious complaint."""
    _, returns = python_run(with_int8_weights(model), processor, CARTPOLE, 7, 120)
    with visited(browser, address, width=width, scheme=scheme) as tab:
        tab.fill("#seed", "7")
        tab.press("#seed", "Tab")
        tab.select_option("#speed", "Infinity")
        tab.wait_for_function("document.querySelector('#returns').rows.length >= 3")
        read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        rows = tab.eval_on_selector_all("#returns tr", read)
        by_seed = {int(row[1]): float(row[3]) for row in rows}
        assert [by_seed[7 + index] for index in range(3)] == returns[:3]
        assert all(float(row[4].split(",")[0]) > 0 for row in rows)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.select_option("#environment", PENDULUM)
        tab.wait_for_function("Number(document.querySelector('#steps').textContent) > 2")
        assert not serious_defects(tab)


@needs_chromium
def test_the_page_stands_before_the_model_is_there(browser, address):
    """Whoever waits for the model sees the environment, and how far it is; and reads it if the model does not come."""
    tab, held = browser.new_page(), []

    def hold(route):
        held.append(route)

    tab.route("**/step.onnx", hold)
    tab.goto(address)
    tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    assert tab.is_visible("#progress")
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert tab.eval_on_selector("#scene", drawn)
    assert tab.is_disabled("#play")
    while not held:
        tab.wait_for_timeout(50)
    held[0].fulfill(status=404)
    tab.wait_for_function(
        "document.querySelector('#status').textContent.includes('step.onnx cannot be read: HTTP 404')"
    )
    tab.close()


@needs_chromium
def test_everything_works_by_keyboard(browser, address):
    """Motion is reduced, so that nothing plays by itself."""
    with visited(browser, address, motion="reduce") as tab:

        def number(name):
            return float(tab.inner_text(f"#{name}").split(",")[0])

        def focus(name):
            for _ in range(60):
                tab.keyboard.press("Tab")
                if tab.evaluate("document.activeElement.id || document.activeElement.value") == name:
                    return
            raise AssertionError(f"the Tab key does not reach {name}")

        assert tab.inner_text("#play") == "Play"
        tab.keyboard.press(".")
        tab.wait_for_function("document.querySelector('#steps').textContent === '1'")
        tab.keyboard.press("ArrowRight")  # a short press is one action
        tab.keyboard.press(".")
        tab.wait_for_function("document.querySelector('#context-text').textContent.includes('you (1)')")

        def scene_after(*keys):
            tab.keyboard.press("n")
            tab.wait_for_function("document.querySelector('#steps').textContent === '0'")
            for key in (*keys, "."):
                tab.keyboard.press(key)
            tab.wait_for_function("document.querySelector('#steps').textContent === '1'")
            return tab.evaluate("document.querySelector('#scene').toDataURL()")

        assert scene_after() == scene_after() != scene_after("]", "]", "]")
        tab.keyboard.press(" ")
        assert tab.inner_text("#play") == "Pause"
        tab.wait_for_function("document.querySelector('#returns').rows.length > 0")
        focus("model")
        tab.keyboard.press("ArrowRight")
        assert tab.is_checked("[value=you]")
        focus("swap")
        tab.keyboard.press("Space")
        assert tab.is_checked("#swap")
        tab.evaluate("document.activeElement.blur()")
        focus("environment")
        tab.keyboard.press("ArrowDown")
        tab.wait_for_function("document.querySelector('#playing').textContent === 'Acrobot'")
        assert number("steps") >= 0
