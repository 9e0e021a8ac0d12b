"""Scores while a model is trained: its environments, shared out among the processes, rolled out now and then."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.errors import LDMError
from ldm_hf.evaluation.rollout import evaluate_environment
from ldm_hf.evaluation.scores import normalized_score
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.training.lora import plain_weights


def score_model(
    accelerator: Accelerator,
    model: torch.nn.Module,
    processor: LDMProcessor,
    references: Sequence[EnvironmentDataset],
    episodes: int,
) -> tuple[dict[str, float], list[str]]:
    """Roll the model out once in every environment; every process calls this, and takes its share of them.

    What acts is a whole copy of the weights, so that training continues as if nothing had been: shards are gathered once,
    however different the rollouts of the processes are.

    Returns:
        ``score/<id>`` of every environment that has one (1 is the reference at its end, 0 at its beginning) and their
        ``score/mean``, and a line for each environment that broke.
    """
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        acting = _whole_copy(accelerator, model)
        mine = references[accelerator.process_index :: accelerator.num_processes]
        found = [_score(acting, processor, reference, episodes) for reference in mine]
    every = sorted(gather_object(found))
    scores = {f"score/{environment}": score for environment, score, _ in every if score is not None}
    if scores:
        scores["score/mean"] = sum(scores.values()) / len(scores)
    return scores, [f"warning: {warning}" for _, _, warning in every if warning]


def _score(
    model: LDMModel, processor: LDMProcessor, reference: EnvironmentDataset, episodes: int
) -> tuple[str, float | None, str]:
    info = reference.info
    try:
        result = evaluate_environment(model, processor, info.environment, episodes=episodes, rollouts=1)
    except LDMError as error:
        return info.environment, None, f"{info.environment} has no score: {error}"
    return info.environment, normalized_score(result.mean_return, info.first10, info.last10), ""


def _whole_copy(accelerator: Accelerator, model: torch.nn.Module) -> LDMModel:
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    unwrapped = accelerator.unwrap_model(model)
    with accelerator.device:
        copy = LDMModel(unwrapped.config)
    copy.load_state_dict(plain_weights(unwrapped, state))
    return copy.eval()
