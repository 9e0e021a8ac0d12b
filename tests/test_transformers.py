"""transformers' own tests, run on this model."""

import copy
import unittest
import unittest.mock

import numpy as np
import torch
from gymnasium import spaces
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import transformers_tests
from conftest import TOY_MODEL
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from sequences import CAMERA, Spaces, tokens

ModelTesterMixin, ConfigTester = transformers_tests.load()
_IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
_PLACES = [  # with images all of them: the tests cut every input at the same row
    CAMERA,
    Spaces(_IMAGE, spaces.Box(-2, 2, (2,))),
    Spaces(spaces.Dict({"camera": _IMAGE, "speed": spaces.Box(-1, 1, (3,))}), spaces.Discrete(4)),
]


class _Tester:
    """A small configuration and a batch of seven rows, as many as the tests of attention take."""

    batch_size, seq_length = 7, 6
    is_training = True
    hidden_size = TOY_MODEL["hidden_size"]
    num_hidden_layers = TOY_MODEL["num_hidden_layers"]
    num_attention_heads = TOY_MODEL["num_attention_heads"]

    def get_config(self) -> LDMConfig:
        return LDMConfig(**TOY_MODEL, initializer_range=0.3)

    def batch(self) -> dict[str, torch.Tensor]:
        processor = LDMProcessor.for_config(self.get_config())
        rows = [tokens(processor, _PLACES[row % 3], self.seq_length, row) for row in range(self.batch_size)]
        return dict(processor.collate(rows))

    def prepare_config_and_inputs_for_common(self):
        batch = self.batch()
        del batch["labels"]
        batch["attention_mask"] = torch.ones(self.batch_size, self.seq_length, dtype=torch.int64)
        return self.get_config(), batch


_NOT_FOR_DECISION_MODELS = {
    "it reads transitions, which are embedded slot by slot, and no tokens": [
        "test_inputs_embeds",
        "test_model_rope_scaling_from_config",
        "test_model_rope_with_partial_rotation",
    ],
    "its table has a symbol for each bin and no vocabulary that could grow": [
        "test_resize_embeddings_untied",
        "test_resize_tokens_embeddings",
    ],
    "it predicts actions from transitions, and generates no text": [
        "test_causal_lm_loss_honors_shift_labels",
        "test_encoder_decoder_loss_no_double_shift",
    ],
    "it is one transformer, not several models in one": [
        "test_attn_implementation_composite_models",
        "test_can_set_attention_dynamically_composite_model",
        "test_internal_model_config_and_subconfig_are_same",
        "test_sdpa_can_dispatch_composite_models",
    ],
    "all of its experts work on every token: nothing is routed to a few": [
        "test_eager_matches_batched_and_grouped_inference",
        "test_moe_models_record_router_logits",
        "test_output_router_logits_from_config",
    ],
    "no checkpoint of it needs another name or another precision": [
        "test_can_load_from_already_mapped_keys",
        "test_keep_in_fp32_modules",
        "test_reverse_loading_mapping",
    ],
    "it attends to the whole context, at rotary positions": [
        "test_resize_position_vector_embeddings",
        "test_sliding_window_mask",
        "test_vision_axial_rope",
    ],
}


class LDMModelTest(ModelTesterMixin, unittest.TestCase):
    """The tests that every model of the library passes; those of accelerators and their kernels skip themselves."""

    all_model_classes = (LDMModel,)
    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = [name for name in _Tester().batch() if name not in ("observations", "labels")]

    def setUp(self):
        self.model_tester = _Tester()
        self.config_tester = ConfigTester(self, config_class=LDMConfig, **TOY_MODEL)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        return inputs | {"labels": self.model_tester.batch()["labels"]} if return_labels else inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_rope_scaling_frequencies(self):
        with unittest.mock.patch.dict(MODEL_MAPPING_NAMES, {"ldm": "LDMModel"}):
            super().test_model_rope_scaling_frequencies()


for reason, beginnings in _NOT_FOR_DECISION_MODELS.items():
    for name in [name for name in dir(LDMModelTest) if name.startswith(tuple(beginnings))]:
        setattr(LDMModelTest, name, unittest.skip(reason)(getattr(LDMModelTest, name)))
