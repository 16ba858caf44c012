from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sab import calibrated, capture, models, sensitivities
from sab.errors import SabError
from tests.tiny import dialogues, tiny

IMAGE = 99


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 64, "patch_size": 14, **more}


def _qwen3_vl() -> tuple[Any, dict[str, Tensor]]:
    """Adds picture features between its blocks."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        text_config=_text(num_hidden_layers=4, rope_parameters=rope),
        vision_config=_vision(
            depth=3,
            num_heads=2,
            out_hidden_size=64,
            deepstack_visual_indexes=[0, 1, 2],
            num_position_embeddings=64,
        ),
        image_token_id=IMAGE,
        video_token_id=98,
        vision_start_token_id=97,
        vision_end_token_id=96,
    )
    pictures = {"pixel_values": torch.randn(16, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return transformers.Qwen3VLForConditionalGeneration(config), pictures | {"mm_token_type_ids": torch.ones(1)}


def _gemma3() -> tuple[Any, dict[str, Tensor]]:
    """Has masks and rotary positions by kind of layer, and pictures that see both ways."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3Config(
        text_config=_text(num_hidden_layers=3, sliding_window=4, layer_types=kinds),
        vision_config=_vision(num_hidden_layers=1, num_attention_heads=2, image_size=56),
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
        boi_token_index=97,
        eoi_token_index=96,
    )
    pictures = {"pixel_values": torch.randn(1, 3, 56, 56), "token_type_ids": torch.ones(1)}
    return transformers.Gemma3ForConditionalGeneration(config), pictures


def _llava() -> tuple[Any, dict[str, Tensor]]:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**_text(num_hidden_layers=3)),
        vision_config=transformers.CLIPVisionConfig(
            **_vision(num_hidden_layers=1, num_attention_heads=2, image_size=28, projection_dim=32)
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config), {"pixel_values": torch.randn(1, 3, 28, 28)}


@pytest.mark.parametrize("family", [_qwen3_vl, _gemma3, _llava])
def test_replay_is_exact_in_families_that_differ(family: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = family()
    tokenizer = SimpleNamespace(pad_token_id=0)
    lvlm = models.wrap(model.eval().requires_grad_(False), SimpleNamespace(tokenizer=tokenizer), "tiny")
    ids = torch.tensor([[0, 0, 5, 97, IMAGE, IMAGE, IMAGE, IMAGE, 96, 7, 8, 9]])
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in pictures:
            pictures[key] = (ids == IMAGE).long()
    row = {"input_ids": ids, "attention_mask": (ids != 0).long(), **pictures}
    extra = {"targets": torch.full_like(ids, -100), "with_picture": torch.ones_like(ids)}
    batch = capture._capture_batch(lvlm, [row | extra], "token")
    assert int(batch.vision.sum()) == 4
    assert int(batch.language.sum()) == 6
    outputs, logits = _whole(lvlm, row)
    for index, expected in enumerate(outputs):
        with torch.no_grad():
            hidden = capture.replay_block(lvlm, index, batch)
        assert torch.equal(hidden, expected)
        batch = replace(batch, hidden=hidden)
    with torch.no_grad():
        assert torch.equal(capture.replay_head(lvlm, batch), logits)


@pytest.mark.parametrize("family", [_qwen3_vl, _gemma3, _llava])
def test_tower_and_projector_are_heard_in_families_that_differ(family: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = family()
    lvlm = models.wrap(model.eval().requires_grad_(False), SimpleNamespace(), "tiny")
    ids = torch.tensor([[5, 97, IMAGE, IMAGE, IMAGE, IMAGE, 96, 7]])
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in pictures:
            pictures[key] = (ids == IMAGE).long()
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}
    names = [name for name in lvlm.linears if lvlm.info[name].part != "decoder"]
    assert {lvlm.info[name].part for name in names} >= {"vision"}
    seen: dict[str, Tensor] = {}
    hooks = [
        lvlm.linears[name].register_forward_pre_hook(
            lambda module, inputs, name=name: seen.update({name: inputs[0].flatten(0, -2)})
        )
        for name in names
    ]
    with torch.no_grad():
        lvlm.model(**lvlm.forward_arguments(row))
    for hook in hooks:
        hook.remove()
    moments = calibrated.through_tower(lvlm, [row], names)
    assert set(moments) == set(names) == set(seen)
    for name in names:
        language, vision = moments[name]
        assert (language.tokens, vision.tokens) == (0, len(seen[name]))
        wanted = 2 * seen[name].T @ seen[name] / len(seen[name])
        torch.testing.assert_close(vision.hessian, wanted, rtol=1e-4, atol=1e-5)


def _whole(lvlm: models.LVLM, inputs: models.Inputs) -> tuple[list[Tensor], Tensor]:
    """Output of every block, and the logits, in one ordinary forward pass."""
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, i, output: outputs.append(output)) for block in lvlm.blocks]
    with torch.no_grad():
        logits = lvlm.model(**lvlm.forward_arguments(inputs)).logits
    for hook in hooks:
        hook.remove()
    return outputs, logits


def test_replay_of_every_batch_is_the_forward_pass() -> None:
    lvlm = tiny()
    samples = dialogues(7)
    rows = [lvlm.prepare(sample.messages, sample.picture) for sample in samples]
    batches = capture.capture(lvlm, samples, batch_size=3)
    for batch, indices in zip(batches, models.length_buckets(rows, 3), strict=True):
        outputs, _ = _whole(lvlm, lvlm.collate([rows[index] for index in indices]))
        for index, expected in enumerate(outputs):
            with torch.no_grad():
                batch = replace(batch, hidden=capture.replay_block(lvlm, index, batch))
            assert torch.equal(batch.hidden, expected)


def test_replay_leaves_the_model_as_it_was() -> None:
    lvlm = tiny()
    batch = capture.capture(lvlm, dialogues(1))[0]
    capture.replay_block(lvlm, 0, batch)
    assert not any("forward" in block.__dict__ for block in lvlm.blocks)
    assert not lvlm.decoder._forward_pre_hooks


def test_tokens_are_split_by_position_or_by_sample() -> None:
    lvlm = tiny()
    samples = dialogues(3)  # two with a picture of 4 visual tokens, one without
    lengths = [lvlm.prepare(s.messages, s.picture)["input_ids"].shape[1] for s in samples]
    by_token = capture.capture(lvlm, samples, "token")
    assert sum(int(batch.vision.sum()) for batch in by_token) == 2 * 4
    assert sum(int(batch.language.sum()) for batch in by_token) == sum(lengths) - 2 * 4
    by_corpus = capture.capture(lvlm, samples, "corpus")
    assert sum(int(batch.vision.sum()) for batch in by_corpus) == lengths[0] + lengths[1]
    assert sum(int(batch.language.sum()) for batch in by_corpus) == lengths[2]


def test_linears_that_share_an_input_are_seen_together() -> None:
    lvlm = tiny()
    seen: list[list[str]] = []
    batch = capture.capture(lvlm, dialogues(1))[0]
    block = {n: m for n, m in lvlm.decoder_linears.items() if lvlm.info[n].block == 0}
    with torch.no_grad(), capture.watching(block, lambda names, inputs: seen.append(names)):
        capture.replay_block(lvlm, 0, batch)
    assert [[name.rsplit(".", 1)[-1] for name in names] for names in seen] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_a_pass_that_nobody_follows_ends_with_the_last_linear_that_is_watched() -> None:
    lvlm = tiny()
    batches = capture.capture(lvlm, dialogues(3))
    names = [name for name in lvlm.decoder_linears if lvlm.info[name].block == 0]
    whole, behind = calibrated.through_block(lvlm, 0, batches, names)
    short, none = calibrated.through_block(lvlm, 0, batches, names, to_the_end=False)
    assert len(behind) == len(batches)
    assert none == []
    for name in names:
        for one, other in zip(whole[name], short[name], strict=True):
            assert one.tokens == other.tokens
            assert torch.equal(one.hessian, other.hessian)
    multiplied: list[str] = []
    for name in names:
        lvlm.linears[name].register_forward_hook(lambda *_, name=name: multiplied.append(name))
    calibrated.through_block(lvlm, 0, batches, names, to_the_end=False)
    assert {name for name in names if name not in multiplied} == {names[-1]}


def test_the_fisher_diagonal_is_the_one_of_whole_backward_passes() -> None:
    """(1/N_q) Σ_t (g∘g)(x∘x)ᵀ, with x and g from ordinary autograd, one sample at a time."""
    lvlm = tiny()
    samples = dialogues(3)
    maps = sensitivities.maps(lvlm, samples, "fisher")
    name = "model.language_model.layers.0.mlp.up_proj"
    sums = {"language": torch.zeros(256, 128), "vision": torch.zeros(256, 128)}
    tokens = dict.fromkeys(sums, 0)
    for sample in samples:
        inputs = lvlm.prepare(sample.messages, sample.picture)
        answers = lvlm.template.answer_mask(sample.messages, sample.picture, inputs)[None]
        caught: list[Tensor] = []

        def catch(module: nn.Module, arrived: Any, output: Tensor, caught: list[Tensor] = caught) -> None:
            output.retain_grad()
            caught.extend((arrived[0], output))

        lvlm.linears[name].requires_grad_(True)
        hook = lvlm.linears[name].register_forward_hook(catch)
        logits = lvlm.model(**lvlm.forward_arguments(inputs)).logits
        hook.remove()
        targets = capture.next_tokens(inputs["input_ids"], answers)
        nn.functional.cross_entropy(logits[0], targets[0], reduction="sum").backward()
        gradient = caught[1].grad
        assert gradient is not None
        vision = inputs["input_ids"] == lvlm.image_token_id
        for modality, mask in (("vision", vision), ("language", ~vision)):
            tokens[modality] += int(mask.sum())
            sums[modality] += gradient[mask].square().T @ caught[0][mask].square()
    for found, modality in zip(maps[name], ("language", "vision"), strict=True):
        torch.testing.assert_close(found, sums[modality].detach() / tokens[modality], rtol=1e-3, atol=1e-9)


def test_samples_that_the_model_refuses_are_left_out_and_counted() -> None:
    lvlm = tiny()
    good = dialogues(4)
    bad = replace(good[0], messages=[{"role": "user", "content": " "}])
    with pytest.warns(UserWarning, match="1 of 5 calibration samples are left out"):
        found = capture.capture(lvlm, [*good[:2], bad, *good[2:]])
    alone = capture.capture(lvlm, good)
    assert sum(int(batch.language.sum()) for batch in found) == sum(int(batch.language.sum()) for batch in alone)
    with pytest.raises(SabError):
        capture.capture(lvlm, [bad, bad])


def test_captures_without_samples_or_with_unknown_splits_are_refused() -> None:
    lvlm = tiny()
    with pytest.raises(SabError, match="no calibration samples"):
        capture.capture(lvlm, [])
    with pytest.raises(SabError, match="choose token or corpus"):
        capture.capture(lvlm, dialogues(1), "halves")
    with pytest.raises(SabError, match="mixture of experts"):
        capture.rows_of(torch.zeros(3, 8), torch.ones(1, 4, dtype=torch.bool), "experts")
