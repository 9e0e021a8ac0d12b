"""The classes of the model, made known to ``AutoConfig``, ``AutoModel`` and ``AutoProcessor`` by importing this file."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_ldm import LDMConfig
from .modeling_ldm import LDMModel
from .policy_ldm import LDMPolicy
from .processing_ldm import LDMProcessor

__all__ = ["LDMConfig", "LDMModel", "LDMPolicy", "LDMProcessor"]

AutoConfig.register("ldm", LDMConfig, exist_ok=True)
AutoModel.register(LDMConfig, LDMModel, exist_ok=True)
AutoProcessor.register(LDMConfig, LDMProcessor, exist_ok=True)

# Saved checkpoints carry the code, for ``trust_remote_code=True`` where this package is not installed.
LDMConfig.register_for_auto_class()
LDMModel.register_for_auto_class("AutoModel")
LDMProcessor.register_for_auto_class("AutoProcessor")
