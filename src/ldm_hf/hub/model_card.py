"""Model cards: what the README.md of a model folder says, and the name by which its lines of code load the model."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ldm_hf.errors import CheckpointError

CARD = "README.md"
NOTES_MARK = "<!-- What is written below this line is kept when the model is published again. -->\n"
"""Last line of a card. What the Hub's card has below it is its owner's."""

EVALUATION_FILES = (CARD, "report.json", "report.html", "tables.md", "threshold_curve.png", "scores.png")
"""What `ldm evaluate` writes of one model, and what is published of it."""

TAGS = ["reinforcement-learning", "gymnasium", "decision-transformer", "ldm"]
_HUB_DATASETS = "hf://datasets/"
_KEPT = ("base_model", "datasets", "license", "license_name", "license_link")
_LOADED = re.compile(r'((?:ldm_hf\.load|from_pretrained)\()"[^"\n]*"')
_USAGE, _USAGE_END = "<!-- usage -->", "<!-- end of usage -->"
_IN_A_NAME = re.compile(r"[^\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Training:
    """What a model was trained on, as its card says it.

    Attributes:
        base_model: name of the model that it was trained from, or names of those that its weights are the average of; None
            if it started from random weights.
        datasets: repositories of the Hub that its data were read from.
        environments: ids of the environments of its data.
        transitions: number of transitions in its data.
        settings: of the training run.
    """

    base_model: str | Sequence[str] | None = None
    datasets: Sequence[str] = ()
    environments: Sequence[str] = ()
    transitions: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def model_name(folder: Path) -> str:
    """A model's name: its folder's, or that of the training run in whose folder ``model`` it is."""
    folder = folder.resolve()
    name = folder.parent.name if folder.name == "model" else folder.name
    return _IN_A_NAME.sub("-", name).strip("-.") or "model"


def base_model_name(model: str) -> str:
    """What a card calls the model that another was trained from: its name on the Hub, or that of its folder."""
    return model_name(Path(model)) if Path(model).is_dir() else model


def hub_datasets(data: str | Sequence[str]) -> list[str]:
    """The dataset repositories of the Hub among the places that a model's data were read from."""
    places = [data] if isinstance(data, str) else data
    return [
        place.removeprefix(_HUB_DATASETS).rstrip("/").partition("@")[0]
        for place in places
        if place.startswith(_HUB_DATASETS)
    ]


def kept_metadata(folder: Path) -> dict[str, Any]:
    """What later cards of a model take over from the card in its folder: base model, datasets and licence."""
    import yaml

    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---\n", 2)[1])
        return {name: found[name] for name in _KEPT if found.get(name)}
    except (OSError, ValueError, IndexError, AttributeError, TypeError, yaml.YAMLError):
        return {}  # There is no card, or none with metadata.


def weights_hash(folder: Path) -> str:
    """SHA-256 of a model folder's weights, by which reports say what they are about."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def evaluated_weights(folder: Path) -> str | None:
    """The hash of the weights that the report in a folder is about; None if there is no report."""
    try:
        return str(json.loads((folder / "report.json").read_text(encoding="utf-8"))["model"]["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def usage(load_as: str, environment: str | None) -> str:
    """The section of a card that says how to load the model by its name, and act with it."""
    act = f'print(agent.play("{environment}", episodes=10).mean_return)\n' if environment else ""
    return f"""{_USAGE}
```python
import ldm_hf

agent = ldm_hf.load("{load_as}")
{act}```

or, with transformers alone, for whose code the folder is complete:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{load_as}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{load_as}", trust_remote_code=True)
policy = model.policy(processor, [env])  # of a Gymnasium environment
(action,) = policy.act([observation])  # then policy.act([observation], [reward], [terminated], [truncated])
```
{_USAGE_END}"""


def loaded_as(card: str, name: str) -> str:
    """A card whose section of usage loads the model by another name: that of the repository that it is published to."""
    before, mark, rest = card.partition(_USAGE)
    section, end, after = rest.partition(_USAGE_END)
    section = _LOADED.sub(lambda match: f'{match[1]}"{name}"', section)
    return (before + mark + section + end + after).replace("<this folder>", name)  # which cards said before 0.1


def training_card(load_as: str, config: Mapping[str, Any], training: Training, parameters: int | None = None) -> str:
    """The card of a model that was trained and not evaluated yet.

    Args:
        load_as: folder of the model, or its name on the Hub.
        config: the fields of its configuration.
        training: what it was trained on, as far as it is known.
        parameters: how many it has.

    Raises:
        CheckpointError: the metadata are not valid.
    """
    environments = list(config.get("environments") or training.environments)
    first = (list(training.environments) or environments or [None])[0]
    metadata = card_metadata(
        model_name(Path(load_as)), {"base_model": training.base_model, "datasets": list(training.datasets)}
    )
    return render(
        resources.files("ldm_hf.hub").joinpath("model_card.md").read_text(encoding="utf-8"),
        name=model_name(Path(load_as)),
        metadata=metadata,
        usage=usage(load_as, first),
        environments=environments,
        libraries=len({each.partition("/")[0] for each in environments}),
        own_libraries=len({each.partition("/")[0] for each in training.environments}),
        training=training,
        parameters=parameters,
        context_length=config.get("max_position_embeddings"),
        notes_mark=NOTES_MARK,
    )


def card_metadata(name: str, known: Mapping[str, Any], results: Sequence[Any] = ()) -> str:
    """The YAML of a card; ``known`` holds base model, datasets and licence, which are left out where they are not known."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        library_name="transformers",
        pipeline_tag="reinforcement-learning",
        tags=TAGS,
        model_name=name,
        eval_results=list(results) or None,
        **{key: value for key, value in known.items() if value},
    ).to_yaml()


def render(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fill the template of a card, in Jinja; ``CheckpointError`` if its metadata are then not valid."""
    import jinja2
    from huggingface_hub import ModelCard

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    card = environment.from_string(template).render(**values)
    try:
        ModelCard(card)  # reads the metadata again
    except ValueError as error:
        raise CheckpointError(f"the model card has invalid metadata: {' '.join(str(error).split())[:200]}") from error
    return card
