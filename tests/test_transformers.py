"""transformers' own tests, run on this model."""

import copy
import unittest

import numpy as np
import torch
from gymnasium import spaces

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


class LDMModelTest(ModelTesterMixin, unittest.TestCase):
    """The tests that every model of the library passes; what is skipped is skipped by the tests themselves."""

    all_model_classes = (LDMModel,)
    test_resize_embeddings = False  # the table has a symbol per bin and no vocabulary that could grow
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
