"""Models on a Hub of the real protocol: what is published is loaded back, and nobody loses anything by it."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from conftest import CARTPOLE, TOY_MODEL, run_ldm, run_ldm_here
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.hub.model_card import NOTES_MARK, Training, loaded_as, model_name, training_card, weights_hash
from ldm_hf.hub.publishing import publish_model
from test_hub import TOKEN, commits, environment, hub, one_line_error, puts, run_program  # noqa: F401

NAME = "writer/ldm-toy"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A model that `ldm train` left in a folder."""
    root = tmp_path_factory.mktemp("training")
    settings = {"data": str(data), "output_dir": "toy", "model": "nano", "model_overrides": TOY_MODEL, "max_steps": 2}
    settings |= {"train_batch_size": 2, "report_to": "none", "environments": [CARTPOLE]}
    (root / "toy.yaml").write_text(json.dumps(settings))
    done = run_ldm_here("train", "--config", "toy.yaml", cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "toy/model"


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it that may be changed."""
    shutil.copytree(trained, tmp_path / "toy/model")
    return tmp_path / "toy/model"


def publish(hub, tmp_path, folder, *arguments, token=TOKEN):  # noqa: F811
    return run_ldm("publish", folder, "--namespace", "writer", *arguments, env=environment(hub, tmp_path, token))


def text_of(hub, path):  # noqa: F811
    return (hub.folder / hub.repos["models", NAME].find("main").files[path][0].sha256).read_text()


def test_training_leaves_a_card_that_loads_the_folder_by_its_name(trained, data):
    card = ModelCard.load(trained / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "reinforcement-learning"
    assert card.data.license is None and card.data.base_model is None and card.data.datasets is None
    assert 'agent = ldm_hf.load("toy/model")' in card.text and "<this folder>" not in card.text
    (manifest,) = data.glob("*/manifest.parquet")
    (rows,) = [row["rows"] for row in pq.read_table(manifest).to_pylist() if row["environment"] == CARTPOLE]
    assert f"Its data have {rows:,} transitions of 1 environment of 1 library." in card.text


def test_cards_name_the_base_model_and_the_datasets_of_the_hub():
    training = Training("ldm-mini", ["my-org/ldm-gymnasium"], [CARTPOLE], 1000, {"max_steps": 3})
    config = {"environments": [CARTPOLE, "minigrid/X-v0"], "max_position_embeddings": 16}
    card = ModelCard(training_card("runs/catch/model", config, training, 1234))
    assert card.data.base_model == "ldm-mini" and card.data.datasets == ["my-org/ldm-gymnasium"]
    assert "1,234 parameters" in card.text and "it knows 2 environments of 2 libraries" in card.text
    moved = loaded_as(str(card) + '\n`AutoModel.from_pretrained("other/model")`', "a/b")
    assert moved.count('("a/b"') == 3 and "runs/catch/model" not in moved and '("other/model")' in moved


def test_a_model_that_is_published_is_loaded_back(hub, tmp_path, folder):  # noqa: F811
    for name in (".env", "optimizer.safetensors", "notes.py", "pytorch_model.bin"):
        (folder / name).write_text("secret")
    done = publish(hub, tmp_path, folder, "--private")
    assert done.returncode == 0 and done.stdout.strip() == NAME, done.stderr
    repo = hub.repos["models", NAME]
    assert repo.private and [commit.title for commit in repo.commits] == ["initial commit", "Publish the model"]
    published = set(repo.find("main").files) - {".gitattributes"}
    code = {path.name for path in folder.glob("*_ldm.py")}
    assert published == {"README.md", "config.json", "model.safetensors", "processor_config.json", *code} and code
    card = text_of(hub, "README.md")
    assert card.count(f'("{NAME}"') == 3 and "toy/model" not in card and card.endswith(NOTES_MARK)
    repo.private = False
    program = f"""
import ldm_hf, torch
from transformers import AutoModel
agent = ldm_hf.load({NAME!r})
print(agent.play({CARTPOLE!r}, episodes=1).mean_return > 0)
local = AutoModel.from_pretrained({str(folder)!r})
print(all(torch.equal(a, b) for a, b in zip(agent.model.state_dict().values(), local.state_dict().values(), strict=True)))
"""
    found = run_program(hub, tmp_path, program, token="")
    assert found.stdout.split() == ["True", "True"], found.stderr
    without = f"""
import sys
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({NAME!r}, trust_remote_code=True)
AutoProcessor.from_pretrained({NAME!r}, trust_remote_code=True)
print(type(model).__name__, "ldm_hf" in sys.modules)
"""
    found = run_program(hub, tmp_path, without, token="")
    assert found.stdout.split() == ["LDMModel", "False"], found.stderr
    # Again: nothing is sent, and no commit is made.
    hub.requests.clear()
    assert publish(hub, tmp_path, folder).returncode == 0
    assert not puts(hub) and not commits(hub)


def test_what_would_be_replaced_is_listed_and_what_is_not_ours_stays(hub, tmp_path, folder):  # noqa: F811
    assert publish(hub, tmp_path, folder).returncode == 0
    repo = hub.repos["models", NAME]
    files = {path: blob for path, (blob, _) in repo.find("main").files.items()}
    card = text_of(hub, "README.md")
    files |= {"NOTES.md": hub.regular_blob(b"mine"), "README.md": hub.regular_blob(f"{card}\n## A paper\n".encode())}
    files |= {"model-00001-of-00002.safetensors": hub.regular_blob(b"of an older, larger model")}
    repo.add("main", files, "by hand", "", "writer")
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    before = repo.find("main").files
    done = publish(hub, tmp_path, folder)
    one_line_error(done, "it would replace 1 files", "delete 1", "--yes")
    assert f"replaces the file {NAME}/model.safetensors\n" in done.stderr and repo.find("main").files == before
    assert f"deletes the file {NAME}/model-00001-of-00002.safetensors\n" in done.stderr
    assert publish(hub, tmp_path, folder, "--yes").returncode == 0
    after = repo.find("main").files
    assert before.keys() - after.keys() == {"model-00001-of-00002.safetensors"}
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {"model.safetensors"}  # the card too is as it was, with its owner's notes
    assert text_of(hub, "README.md").endswith("\n## A paper\n")


def test_whatever_is_wrong_is_one_line(hub, tmp_path, folder):  # noqa: F811
    one_line_error(publish(hub, tmp_path, folder, token=""), "there is no token", "HF_TOKEN")
    one_line_error(publish(hub, tmp_path, folder, token="hf_reader"), "the token may only read")
    one_line_error(publish(hub, tmp_path, folder, token="hf_other"), "'writer'", "it may to other")
    one_line_error(publish(hub, tmp_path, folder, "--name", "no such"), "is not a name of a repository")
    assert not hub.repos
    assert publish(hub, tmp_path, folder).returncode == 0
    repo = hub.repos["models", NAME]
    files = {path: blob for path, (blob, _) in repo.find("main").files.items()}
    repo.add("main", files | {"config.json": hub.regular_blob(b'{"model_type": "bert"}')}, "theirs", "", "writer")
    one_line_error(publish(hub, tmp_path, folder, "--yes"), NAME, "type 'bert'", "--name")


def test_what_cannot_be_published_is_refused_before_anything_is_asked(trained, folder, tmp_path):
    for arguments in (("--library", "gymnasium"), ("--delete",)):
        one_line_error(run_ldm_here("publish", folder, "--namespace", "writer", *arguments), "is a model")
    one_line_error(run_ldm_here("publish", tmp_path, "--namespace", "writer", "--name", "x"), "is not a model folder")
    (tmp_path / "report.json").write_text(json.dumps({"model": {"weights_sha256": "00"}}))
    with pytest.raises(ConfigError, match="is about other weights"):
        publish_model(folder, "writer", report=tmp_path)
    with pytest.raises(ConfigError, match=r"has no report\.json"):
        publish_model(folder, "writer", report=folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"it has no model\.safetensors"):
        publish_model(folder, "writer")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="it has no model-00002-of-00002"):
        publish_model(folder, "writer")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert'"):
        publish_model(folder, "writer")


def test_an_evaluation_s_card_wins_and_keeps_where_the_model_comes_from(hub, tmp_path, folder, data):  # noqa: F811
    text = (folder / "README.md").read_text().replace("---\n", "---\nbase_model: my-org/base\nlicense: mit\n", 1)
    (folder / "README.md").write_text(text)
    report = tmp_path / "evaluation"
    arguments = ("--data", data, "--environment", CARTPOLE, "--episodes", 1, "--output", report)
    done = run_ldm_here("evaluate", folder, *arguments)
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(report / "README.md")
    assert card.data.base_model == "my-org/base" and card.data.license == "mit" and "| trained on | 1 | " in card.text
    assert f'ldm_hf.load("{folder}")' in card.text and "It was trained from `my-org/base`" in card.text
    assert publish(hub, tmp_path, folder, "--report", report).returncode == 0
    assert {"report.json", "threshold_curve.png"} <= set(hub.repos["models", NAME].find("main").files)
    published = text_of(hub, "README.md")
    assert "| trained on | 1 | " in published and f'ldm_hf.load("{NAME}")' in published and str(folder) not in published


def test_training_that_ends_again_keeps_the_evaluation_of_the_same_weights(trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "toy")
    shutil.copyfile(trained.parents[1] / "toy.yaml", tmp_path / "toy.yaml")
    folder = tmp_path / "toy/model"
    (folder / "README.md").write_text("evaluated")
    for weights, card in ((weights_hash(folder), "evaluated"), ("00", "# toy\n")):
        (folder / "report.json").write_text(json.dumps({"model": {"weights_sha256": weights}}))
        done = run_ldm_here("train", "--config", "toy.yaml", cwd=tmp_path)
        assert done.returncode == 0 and card in (folder / "README.md").read_text(), done.stderr
        assert (folder / "report.json").exists() == (card == "evaluated")


def test_a_page_is_published_as_a_static_space(hub, tmp_path):  # noqa: F811
    page = tmp_path / "mini"
    files = {"README.md": "---\nsdk: static\n---\n", "index.html": "<p>1", "page.json": "{}", "references/a.onnx": "a"}
    for path, text in files.items():
        (page / path).parent.mkdir(exist_ok=True, parents=True)
        (page / path).write_text(text)
    (page / ".env").write_text("secret")
    done = publish(hub, tmp_path, page)
    assert done.returncode == 0 and done.stdout.strip() == "hf://spaces/writer/ldm-mini", done.stderr
    repo = hub.repos["spaces", "writer/ldm-mini"]
    assert repo.find("main").files.keys() - {".gitattributes"} == files.keys()
    (page / "index.html").write_text("<p>2")
    (page / "references/a.onnx").unlink()
    done = publish(hub, tmp_path, page)
    one_line_error(done, "it would replace 1 files", "delete 1", "--yes")
    assert publish(hub, tmp_path, page, "--yes").returncode == 0
    assert "references/a.onnx" not in repo.find("main").files
    one_line_error(publish(hub, tmp_path, page, "--library", "x"), "is a page")


def test_names_of_models(tmp_path):
    assert model_name(tmp_path / "cartpole/model") == "cartpole"
    assert model_name(tmp_path / "my model (2)") == "my-model-2"
