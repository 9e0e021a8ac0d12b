"""The model that training starts from: a new one of a preset, or a trained one."""

from pathlib import Path

from ldm_hf.errors import ConfigError
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.config import TrainingConfig


def load_model(config: TrainingConfig) -> tuple[LDMModel, LDMProcessor]:
    """The model of the settings and its processor: a new one of a preset, or that of a folder or Hub name.

    Raises:
        ConfigError: a field of ``model_overrides`` does not exist or has a value that cannot be used, or a new model is to
            be reinitialised.
        CheckpointError: the folder holds no Large Decision Model.
    """
    if config.model in LDMConfig.presets():
        if config.reinitialize:
            raise ConfigError(
                f"reinitialize is for trained models, and model is the preset {config.model}; leave it out"
            )
        return _new_model(config)
    if config.model_overrides:
        raise ConfigError(
            f"model_overrides is for presets ({', '.join(LDMConfig.presets())}), and model is {config.model}, whose own "
            "configuration is used; leave it out"
        )
    return trained_model(config)


def trained_model(config: TrainingConfig) -> tuple[LDMModel, LDMProcessor]:
    """The trained model of the settings; raises as ``load_model``."""
    if not Path(config.model).is_dir() and "/" not in config.model:
        raise ConfigError(
            f"model {config.model!r} is neither a preset ({', '.join(LDMConfig.presets())}) nor a model folder"
        )
    model, processor = load_pretrained(config.model)
    if config.reinitialize:
        untrained = LDMModel(model.config)
        for part in config.reinitialize:
            getattr(model, part).load_state_dict(getattr(untrained, part).state_dict())
    return model, processor


def _new_model(config: TrainingConfig) -> tuple[LDMModel, LDMProcessor]:
    try:
        model_config = LDMConfig.preset(config.model, **config.model_overrides)
    except Exception as error:  # strict configurations raise their own kinds of validation errors
        raise ConfigError(f"model_overrides cannot be used: {' '.join(str(error).split())}") from error
    unknown = set(config.model_overrides) - set(LDMConfig().to_dict())
    if unknown:
        raise ConfigError(f"model_overrides sets {', '.join(sorted(unknown))}, which LDMConfig does not have")
    return LDMModel(model_config), LDMProcessor.for_config(model_config)
