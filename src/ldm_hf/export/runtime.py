"""An exported model that acts in Python through onnxruntime: what ``policy.js`` does in a browser, line for line.

It is what an export is checked with: the same transitions go through it and through the policy in torch.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm_hf.errors import CheckpointError
from ldm_hf.export.onnx import IMAGE, POLICY, STEP
from ldm_hf.modeling import LDMPolicy, LDMProcessor
from ldm_hf.modeling.processing_ldm import NOT_DONE, START, TERMINATED, TRUNCATED
from ldm_hf.modeling.quantization_ldm import ActionCode, mu_law_encode
from ldm_hf.modeling.spaces_ldm import CONTINUOUS, SlotLayout

if TYPE_CHECKING:
    from ldm_hf.modeling import LDMModel

_TOLERANCE = 1e-4


class OnnxPolicy:
    """Acts in one environment by the most likely bins, as ``LDMPolicy`` does; the context is kept across episodes.

    Args:
        folder: what ``export_onnx`` wrote.
        processor: of the model.
        environment: anything with ``observation_space`` and ``action_space``, Gymnasium spaces or their JSON.
        context_length: most transitions to remember; by default what the model was trained for.
    """

    def __init__(
        self, folder: Path, processor: LDMProcessor, environment: Any, context_length: int | None = None
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._step, self._image = (
            onnxruntime.InferenceSession(str(folder / name), options, ["CPUExecutionProvider"])
            for name in (STEP, IMAGE)
        )
        self._settings = json.loads((folder / POLICY).read_text())
        self.context_length = context_length or self._settings["context_length"]
        self._processor = processor
        self._observed = processor.observation_layout(environment.observation_space)
        self._acted = processor.action_layout(environment.action_space)
        described = processor.describe_rows([self._observed], [self._acted])
        self._kinds, self._bounds = described["action_kinds"][0], described["action_bounds"][0]
        self._context: list[dict[str, np.ndarray]] = []
        self._memory = np.zeros((0, *self._settings["memory_shape"]), np.float32)
        self._last = np.zeros(self._acted.num_slots, np.float32)
        self.logits = np.zeros((0, 0), np.float32)

    def act(self, observation: Any, outcome: tuple[float, bool, bool] | None = None) -> Any:
        """The action after an observation and what the last action brought: reward, terminated, truncated.

        The logits of all bins are then in ``logits``, of shape (A, K).
        """
        if len(self._context) == self.context_length:
            self._rebuild()
        self._context.append(self._transition(observation, outcome))
        self.logits = self._read(self._context[-1:])
        lowest, highest = ActionCode.of(self._processor).allowed(self._kinds, self._bounds).unbind(-1)
        bins = np.arange(self.logits.shape[1])
        allowed = (bins >= lowest[:, None].numpy()) & (bins <= highest[:, None].numpy())
        chosen = np.where(allowed, self.logits, -np.inf).argmax(1)
        action, self._last = self._processor.decode_action(self._acted, chosen)
        return action

    def _transition(self, observation: Any, outcome: tuple[float, bool, bool] | None) -> dict[str, np.ndarray]:
        slots, image = self._observed.flatten(observation)
        reward, terminated, truncated = outcome or (0.0, False, False)
        done = START if outcome is None else TERMINATED if terminated else TRUNCATED if truncated else NOT_DONE
        pixels = np.zeros((0, 3, 1, 1), np.uint8) if image is None else image.transpose(2, 0, 1)[None]
        return {
            "observations": self._rows(self._observed, slots),
            "previous_actions": self._rows(self._acted, self._last),
            "previous_rewards": self._bins(np.float32(reward)).astype(np.int32),
            "previous_dones": np.array(done, np.int32),
            "images": np.zeros(self._settings["hidden_size"], np.float32)
            if image is None
            else self._image.run(None, {"pixels": pixels})[0][0],
        }

    def _rows(self, layout: SlotLayout, slots: np.ndarray) -> np.ndarray:
        """Rows of the slot table, int32: bins of continuous slots, then symbols of discrete ones."""
        symbols = slots.astype(np.int32) + self._settings["num_bins"]
        return np.where(layout.kinds == CONTINUOUS, self._bins(slots), symbols).astype(np.int32)

    def _bins(self, values: np.ndarray | np.float32) -> np.ndarray:
        of = self._processor
        return np.asarray(mu_law_encode(torch.as_tensor(values), of.mu, of.max_value, of.num_bins).numpy())

    def _read(self, transitions: list[dict[str, np.ndarray]]) -> np.ndarray:
        inputs = {name: np.stack([each[name] for each in transitions]) for name in transitions[0]}
        logits, _, added = self._step.run(None, {**inputs, "memory": self._memory})
        self._memory = np.concatenate([self._memory, added])
        return logits

    def _rebuild(self) -> None:
        """Forget the older half of the context and read the newer half again; nothing is before its first transition."""
        self._context = self._context[-(self.context_length // 2) :]
        self._context[0] = {**self._context[0], "previous_dones": np.array(START, np.int32)}
        self._memory = self._memory[:0]
        self._read(self._context)


class _Mixed:
    """Spaces of every kind of slot, and an image."""

    observation_space = {
        "type": "Dict",
        "spaces": {
            "choice": {"type": "Discrete", "n": 5, "start": 0},
            "image": {"type": "Box", "shape": [16, 16, 3], "dtype": "uint8", "low": 0, "high": 255},
            "numbers": {"type": "Box", "shape": [3], "dtype": "float32", "low": "-inf", "high": "inf"},
        },
    }
    action_space = {
        "type": "Tuple",
        "spaces": [
            {"type": "Discrete", "n": 3, "start": 0},
            {"type": "Box", "shape": [2], "dtype": "float32", "low": -1.0, "high": 1.0},
        ],
    }


def check_export(
    model: "LDMModel", processor: LDMProcessor, folder: Path, steps: int = 300, context_length: int | None = None
) -> float:
    """Let an export and the model act on the same random transitions, and compare their logits.

    Args:
        model: what was exported; with int8 weights, ``with_int8_weights`` of it.
        processor: of the model.
        folder: of the export.
        steps: how many transitions; a context that they fill is rebuilt.
        context_length: by default the model's, or half of the steps where that is less, so that it is rebuilt.

    Returns:
        The largest difference of a logit.

    Raises:
        CheckpointError: it is more than 1e-4.
    """
    context_length = context_length or min(model.config.max_position_embeddings, steps // 2)
    random = np.random.default_rng(0)
    theirs = LDMPolicy(model, processor, [_Mixed()], context_length)
    ours = OnnxPolicy(folder, processor, _Mixed(), context_length)
    seen: list[np.ndarray] = []
    hook = theirs.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits[0, -1].numpy()))
    outcome: tuple[float, bool, bool] | None = None
    largest = 0.0
    for _ in range(steps):
        observation = {
            "choice": random.integers(5),
            "image": random.integers(0, 256, (16, 16, 3), np.uint8),
            "numbers": random.normal(0, 3, 3).astype(np.float32),
        }
        theirs.act([observation], *([[value] for value in outcome] if outcome else []))  # type: ignore[arg-type]
        ours.act(observation, outcome)
        ours._last = theirs._last_actions[0]  # a tie may be broken either way
        allowed = seen[-1] > np.finfo(np.float32).min
        largest = max(largest, float(np.abs(seen[-1] - ours.logits)[allowed].max()))
        outcome = float(random.normal()), bool(random.random() < 0.02), bool(random.random() < 0.02)
    hook.remove()  # the policy may act with the model itself
    if not largest <= _TOLERANCE:  # also true of NaN
        raise CheckpointError(f"{folder} differs from the model by {largest:.2g} in a logit: it must not be used")
    return largest
