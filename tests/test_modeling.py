"""The network: nothing but speed may depend on padding or the rest of the batch."""

import os
import subprocess
import sys

import pytest
import torch
from gymnasium import spaces

from ldm_hf.modeling import LDMConfig, LDMModel
from ldm_hf.modeling.loss_ldm import _histogram
from ldm_hf.modeling.modeling_ldm import LDMImageEncoder
from ldm_hf.modeling.quantization_ldm import ActionCode
from sequences import CAMERA, CONTROL, GRID, Spaces, tokens, without_labels


def label_bins(batch):
    """The bins of a batch's labels, and which labels there are."""
    spaces_of_rows = batch["action_kinds"].unsqueeze(1), batch["action_bounds"].unsqueeze(1)
    bins = ActionCode.of(LDMConfig()).encode(batch["labels"].nan_to_num(), *spaces_of_rows)
    return bins, ~batch["labels"].isnan()


def allowed(logits, row, batch):
    """The logits of one row that are not masked, slot by slot."""
    code = ActionCode.of(LDMConfig())
    ranges = code.allowed(batch["action_kinds"], batch["action_bounds"])[row].tolist()
    kinds = batch["action_kinds"][row].tolist()
    return [logits[row, :, slot, low : high + 1] for slot, (low, high) in enumerate(ranges) if kinds[slot]]


@torch.no_grad()
def test_batch_composition_and_padding_change_nothing(model, processor):
    parts = [tokens(processor, CONTROL, 9, 1), tokens(processor, GRID, 5, 2), tokens(processor, CAMERA, 7, 3)]
    together = processor.collate(parts)
    logits = model(**without_labels(together)).logits
    for row, part in enumerate(parts):
        alone = processor.collate([part])
        expected = model(**without_labels(alone)).logits
        for found, wanted in zip(allowed(logits, row, together), allowed(expected, 0, alone), strict=True):
            torch.testing.assert_close(
                found[: len(part)], wanted[0] if wanted.ndim == 3 else wanted, atol=1e-5, rtol=1e-5
            )


@torch.no_grad()
def test_loss_is_the_mean_over_transitions_of_the_mean_over_slots(model, processor):
    parts = [tokens(processor, CONTROL, 9, 1), tokens(processor, GRID, 5, 2)]
    batch = processor.collate(parts)
    logits = model(**without_labels(batch)).logits
    bins, _ = label_bins(batch)
    total = 0.0
    for row, part in enumerate(parts):
        for step in range(len(part)):
            slots = part.action_layout.num_slots
            chosen = [logits[row, step, slot].log_softmax(-1)[bins[row, step, slot]] for slot in range(slots)]
            total -= float(sum(chosen)) / slots
    assert model(**batch).loss.item() == pytest.approx(total / 14, rel=1e-5)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_a_loss_in_pieces_has_the_gradients_of_a_whole_one(model, processor, monkeypatch):
    batch = processor.collate([tokens(processor, place, 6, seed) for seed, place in enumerate((CONTROL, GRID, CAMERA))])
    bins, there = label_bins(batch)
    logits = model(**without_labels(batch)).logits.float().log_softmax(-1)
    picked = logits.gather(-1, bins.unsqueeze(-1)).squeeze(-1).masked_fill(~there, 0)
    whole = -(picked.sum(-1) / there.sum(-1).clamp(min=1)).sum() / there.any(-1).sum()
    expected = gradients_of(model, whole)
    for positions in (8192, 6, 1):  # all rows at a time, and one
        monkeypatch.setattr("ldm_hf.modeling.loss_ldm._POSITIONS", positions)
        loss = model(**batch).loss
        torch.testing.assert_close(loss, whole, atol=1e-6, rtol=1e-6)
        found = gradients_of(model, loss)
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_pieces_of_a_batch_have_the_gradients_of_the_whole_one(model, processor):
    """Also where the pieces have unequal numbers of transitions."""
    parts = [tokens(processor, CONTROL, 9, 1), tokens(processor, GRID, 5, 2), tokens(processor, CAMERA, 7, 3)]
    whole = model(**processor.collate(parts)).loss
    expected = gradients_of(model, whole)
    losses = [model(**processor.collate(piece), num_items_in_batch=21).loss for piece in (parts[:1], parts[1:])]
    torch.testing.assert_close(sum(losses), whole, atol=1e-6, rtol=1e-6)
    found = gradients_of(model, sum(losses))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_smooth_target_is_the_mass_of_a_normal_distribution_in_each_bin():
    config = LDMConfig(action_smoothing=1.0)

    def histogram(position, lowest, highest):
        bins, shares = _histogram(torch.tensor([[position]]), torch.tensor([[[lowest, highest]]]), config)
        assert bins.shape == shares.shape == (1, 1, 14)  # six standard deviations on each side, and what they cut
        return torch.zeros(1024).scatter_add(0, bins[0, 0], shares[0, 0])

    target = histogram(512.5, 0, 1023)
    # Phi(1/2) - Phi(-1/2) = 0.38292, Phi(3/2) - Phi(1/2) = 0.24173.
    assert target[510:516].tolist() == pytest.approx([0.06060, 0.24173, 0.38292, 0.24173, 0.06060, 0.00598], abs=1e-5)
    assert target.sum().item() == pytest.approx(1)
    # What lies beyond the lowest allowed bin is not a target: 0.38292 / (1 - Phi(-1/2)) = 0.38292 / 0.69146.
    cut = histogram(512.5, 512, 1023)
    assert cut[:512].sum() == 0 and cut[512].item() == pytest.approx(0.55378, abs=1e-5)
    # An action beyond its bounds is at the bound.
    assert histogram(100.0, 512, 1023)[512].item() == pytest.approx(0.68269, abs=1e-5)
    # At the ends of the axis the bins that it covers end there: half of the mass is in the first or last.
    assert histogram(0.0, 0, 1023)[0].item() == pytest.approx(0.68269, abs=1e-5)
    assert histogram(1024.0, 0, 1023)[1023].item() == pytest.approx(0.68269, abs=1e-5)


def with_settings(model, **changes):
    """The same weights under other settings."""
    made = LDMModel(LDMConfig(**{**model.config.to_dict(), **changes}))
    made.load_state_dict(model.state_dict())
    return made.eval()


@torch.no_grad()
def test_smoothing_concerns_continuous_actions_and_vanishes_with_its_width(model, processor):
    control, grid = (processor.collate([tokens(processor, place, 6, 1)]) for place in (CONTROL, GRID))
    smooth, barely = with_settings(model, action_smoothing=2.0), with_settings(model, action_smoothing=1e-4)
    assert smooth(**grid).loss == model(**grid).loss
    assert abs(smooth(**control).loss - model(**control).loss) > 1e-3
    torch.testing.assert_close(barely(**control).loss, model(**control).loss, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_a_mask_the_loss_is_over_all_bins(model, processor):
    batch = processor.collate([tokens(processor, GRID, 6, 1)])
    free = with_settings(model, mask_training_logits=False)
    hidden = model(**batch).last_hidden_state[0]
    logits = hidden @ model.action_head.weight[:1024].T
    expected = -logits.log_softmax(-1).gather(-1, batch["labels"][0].long()).mean()
    torch.testing.assert_close(free(**batch).loss, expected)
    assert free(**batch).loss > model(**batch).loss  # the others' share is gone
    # Rollout is masked all the same.
    torch.testing.assert_close(free(**without_labels(batch)).logits, model(**without_labels(batch)).logits)


def test_even_bins_change_the_labels_alone(model, processor):
    even = with_settings(model, action_quantization="uniform")
    batch = processor.collate([tokens(processor, CONTROL, 6, 1)])
    with torch.no_grad():
        hidden = [each(**batch) for each in (model, even)]
    torch.testing.assert_close(hidden[0].last_hidden_state, hidden[1].last_hidden_state)
    assert abs(hidden[0].loss - hidden[1].loss) > 1e-3


@torch.no_grad()
def test_previous_actions_are_hidden_from_training_alone(model, processor):
    """Of all transitions at a probability of 1, of some between, of none in rollout; rewards stay."""
    batch = processor.collate([tokens(processor, CONTROL, 64, 1)])
    others = {**batch, "previous_actions": -batch["previous_actions"]}
    embedding = with_settings(model, previous_action_dropout=1.0).train().embedding
    names = (*("observations", "observation_kinds", "previous_actions", "action_kinds"), "previous_rewards")

    def embed(module, inputs):
        return module(*(inputs[name] for name in names), inputs["previous_dones"], None, None, None)

    torch.testing.assert_close(embed(embedding, batch), embed(embedding, others), atol=0, rtol=0)
    rewarded = {**batch, "previous_rewards": batch["previous_rewards"] + 5}
    assert not torch.equal(embed(embedding, batch), embed(embedding, rewarded))
    torch.testing.assert_close(embed(embedding.eval(), batch), embed(model.embedding, batch), atol=0, rtol=0)
    some = with_settings(model, previous_action_dropout=0.25).train().embedding
    full, hidden = embed(model.embedding, batch), embed(embedding.train(), batch)
    found = embed(some, batch)
    shown = (found == full).all(-1)[0, 1:]  # before the first there is none
    assert torch.equal(found, torch.where((found == full).all(-1, keepdim=True), full, hidden))
    assert 0.5 < shown.float().mean() < 0.95


@pytest.mark.parametrize(
    "changes", [{"action_quantization": "log"}, {"action_smoothing": -1.0}, {"previous_action_dropout": 1.5}], ids=str
)
def test_settings_that_mean_nothing_are_refused(changes):
    with pytest.raises(Exception, match=f"{next(iter(changes))} must be"):
        LDMConfig(**changes)


def test_embeddings_of_neighbouring_bins_start_alike_if_wanted():
    for waves, alike in ((True, True), (False, False)):
        torch.manual_seed(0)
        table = LDMModel(LDMConfig.preset("nano", wave_embedding=waves)).embedding.slot_embedding.weight[:1024]
        near = torch.nn.functional.cosine_similarity(table[:-1], table[1:]).mean().item()
        assert (near > 0.5) is alike
        assert table.std().item() == pytest.approx(1, abs=0.05)


@torch.no_grad()
def test_rows_are_embedded_as_wide_as_they_are(model, processor):
    """A narrow row beside a wide one costs what it has itself."""
    wide = Spaces(spaces.Box(-1, 1, (50,)), spaces.Box(-1, 1, (4,)))
    looked_up = []
    table = model.embedding.slot_embedding
    handle = table.register_forward_hook(lambda _, inputs, output: looked_up.append(inputs[0].numel()))
    model(**without_labels(processor.collate([tokens(processor, place, 5, 1) for place in (GRID, wide, GRID)])))
    handle.remove()
    # 5 transitions of (1 + 50 + 1) observation slots, (1 + 4 + 1) action slots and a reward in each of 3 rows
    assert sum(looked_up) == 5 * (52 + 6 + 3)


def test_logits_are_not_kept_for_the_backward_pass(model, processor):
    # More transitions than the head has inputs, so that nothing of the head is as large as the logits of a slot.
    batch = processor.collate([tokens(processor, CONTROL, 16, seed) for seed in range(12)])
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        model(**batch).loss.backward()
    positions = batch["labels"].shape[0] * batch["labels"].shape[1]
    outside = [tensor for tensor in kept if tensor.numel() >= positions * model.config.num_bins]
    assert kept and not outside


@torch.no_grad()
def test_the_first_token_ignores_what_came_before(model, processor):
    first = tokens(processor, CONTROL, 4, 1)
    batch = without_labels(processor.collate([first]))
    changed = {
        **batch,
        "previous_actions": batch["previous_actions"].clone(),
        "previous_rewards": batch["previous_rewards"] + 0,
    }
    changed["previous_actions"][:, 0] = 1.7
    changed["previous_rewards"][:, 0] = 99
    torch.testing.assert_close(model(**batch).logits, model(**changed).logits, atol=0, rtol=0)
    changed["previous_rewards"][:, 1] = 99
    assert not torch.equal(model(**batch).logits, model(**changed).logits)


@torch.no_grad()
def test_the_future_does_not_reach_the_past(model, processor):
    batch = without_labels(processor.collate([tokens(processor, CONTROL, 8, 1)]))
    changed = {**batch, "observations": batch["observations"].clone()}
    changed["observations"][:, 5:] = 0.5
    before, after = model(**batch).logits, model(**changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_only_allowed_bins_can_be_chosen(model, processor):
    batch = processor.collate([tokens(processor, CAMERA, 6, 1)])
    with torch.no_grad():
        choice = model(**without_labels(batch)).logits.argmax(-1)
    assert (choice[..., 0] <= 2).all() and (choice[..., 1] <= 1).all()


@pytest.mark.parametrize(("name", "millions"), [("32m", 32), ("70m", 70), ("308m", 308), ("736m", 736)])
def test_presets_have_the_paper_s_sizes(name, millions):
    with torch.device("meta"):
        parameters = LDMModel(LDMConfig.preset(name)).num_parameters()
    assert parameters / 1e6 == pytest.approx(millions, rel=0.03)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="32m, 70m, 308m"):
        LDMConfig.preset("7b")


LOAD = """
import sys
{prelude}
import torch
from types import SimpleNamespace
from transformers import AutoModel, AutoProcessor
for folder in {folders!r}:
    model = AutoModel.from_pretrained(folder, trust_remote_code={remote})
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code={remote})
    torch.save(model(**torch.load({inputs!r})).logits, f"{{folder}}/logits.pt")
    space = {{"type": "Discrete", "n": 48, "start": 0}}
    policy = model.policy(processor, [SimpleNamespace(observation_space=space, action_space=space)])
    print(type(model).__module__, *[int(policy.act([7])[0])])
"""


@pytest.mark.parametrize(
    ("prelude", "remote", "module"),
    [
        ("import ldm_hf", False, "ldm_hf.modeling.modeling_ldm"),
        ("sys.modules['ldm_hf'] = None  # as if it were not installed", True, "transformers_modules"),
    ],
    ids=["with the package", "with remote code only"],
)
def test_a_new_process_loads_the_same_models(model, mixture_model, processor, tmp_path, prelude, remote, module):
    """With experts and without."""
    models = {str(tmp_path / "plain"): model, str(tmp_path / "experts"): mixture_model}
    for folder, saved in models.items():
        saved.save_pretrained(folder)
        processor.save_pretrained(folder)
    batch = without_labels(processor.collate([tokens(processor, CAMERA, 6, 1), tokens(processor, CONTROL, 6, 2)]))
    inputs = str(tmp_path / "inputs.pt")
    torch.save(dict(batch), inputs)
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(prelude=prelude, remote=remote, folders=list(models), inputs=inputs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    assert [line.startswith(module) for line in done.stdout.splitlines()] == [True, True]
    for folder, saved in models.items():
        with torch.no_grad():
            expected = saved(**batch).logits
        torch.testing.assert_close(torch.load(f"{folder}/logits.pt"), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("auto", "found"), [("AutoProcessor", "LDMProcessor"), ("AutoConfig", "LDMConfig")])
def test_other_auto_classes_may_come_before_the_model_s(model, processor, tmp_path, auto, found):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    program = (
        f"import ldm_hf, transformers; print(transformers.{auto}.from_pretrained({str(tmp_path)!r}).__class__.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == found, done.stderr


def test_images_are_standardized_around_their_brightness():
    """An image of symbols 1 and 9 has mean 5 and deviation 4; one of a single colour keeps only its brightness."""
    encoder, seen = LDMImageEncoder(LDMConfig.preset("nano")), []
    encoder.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    symbols = torch.tensor([1, 9], dtype=torch.uint8).repeat(3 * 64 * 32).reshape(1, 3, 64, 64)
    encoder(torch.cat([symbols, torch.full_like(symbols, 51)]))
    (shown,) = seen
    expected = torch.tensor([-1.0, 1.0]).repeat(3 * 64 * 32).reshape(3, 64, 64) + 5 / 255 - 0.5
    assert torch.allclose(shown[0], expected, atol=1e-5)
    assert torch.allclose(shown[1], torch.full((3, 64, 64), 51 / 255 - 0.5), atol=1e-5)
    plain = LDMImageEncoder(LDMConfig.preset("nano", standardize_images=False))
    plain.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain(symbols)
    assert torch.allclose(seen[-1], symbols / 255 - 0.5)
