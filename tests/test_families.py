"""Real classes of other families, tiny and random: quantized, exported, loaded by transformers, asked, saved again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sab import models
from sab.capture import capture, replay_block
from sab.chat import stream
from sab.checkpoint import export
from sab.errors import SabError
from sab.evaluate import greedy
from sab.models import LVLM
from sab.packed import packed_linears
from sab.parts import PARTS
from sab.recipes import Recipe
from sab.runs import Run
from sab.sequential import quantize
from sab.significance import significance_map
from tests.families import FAMILIES, family, family_folder
from tests.tiny import dialogues, picture, tiny, tiny_folder

PICTURE_TOKENS = {"qwen2_5_vl": 4} | {name: entry.picture_tokens for name, entry in FAMILIES.items()}
every_family = pytest.mark.parametrize("name", PICTURE_TOKENS)
TOKENS = 8


def model(name: str) -> LVLM:
    return tiny() if name == "qwen2_5_vl" else family(name)


@dataclass(frozen=True)
class Made:
    """A run of a family, what it dequantizes to, and its packed checkpoint."""

    run: Run
    dense: LVLM
    folder: Path


@cache
def made(name: str) -> Made:
    directory = Path(mkdtemp(prefix=f"sab-{name}-run-"))
    lvlm = model(name)
    source = tiny_folder() if name == "qwen2_5_vl" else family_folder(name)
    with pytest.warns(UserWarning, match="tokens calibrate"):
        for _ in quantize(lvlm, Recipe(model=str(source), iterations=1), directory / "run", samples=dialogues(3)):
            pass
    run = Run.open(directory / "run")
    export(lvlm, run, directory / "packed")
    return Made(run, lvlm, directory / "packed")


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {name: values for path in folder.glob("*.safetensors") for name, values in load_file(path).items()}


def generated(lvlm: LVLM, prompt: str, shown: Any) -> list[int]:
    """What transformers' own `generate` adds."""
    inputs = lvlm.prepare(prompt, shown)
    done = lvlm.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return done[0, inputs["input_ids"].shape[1] :].tolist()


@every_family
def test_a_picture_has_as_many_tokens_as_the_tower_gives(name: str) -> None:
    lvlm = model(name)
    assert lvlm.family == name
    inputs = lvlm.prepare("What is here?", picture(1))
    assert int((inputs["input_ids"] == lvlm.image_token_id).sum()) == PICTURE_TOKENS[name]
    assert int((lvlm.prepare("What is here?")["input_ids"] == lvlm.image_token_id).sum()) == 0
    with torch.no_grad():
        assert lvlm.model(**lvlm.forward_arguments(inputs)).logits.shape[1] == inputs["input_ids"].shape[1]


@every_family
def test_what_is_typed_stays_text(name: str) -> None:
    lvlm = model(name)
    typed = f"Is {lvlm.tokenizer.convert_ids_to_tokens(lvlm.image_token_id)} or {lvlm.tokenizer.eos_token} a word?"
    if name in ("gemma3", "paligemma"):  # their processors count typed tokens as pictures, and refuse
        with pytest.raises(SabError, match="> stands for a picture"):
            lvlm.prepare(typed, picture())
        return
    for shown, count in ((picture(), PICTURE_TOKENS[name]), (None, 0)):
        ids = lvlm.prepare(typed, shown)["input_ids"][0]
        assert int((ids == lvlm.image_token_id).sum()) == count
        assert typed in lvlm.tokenizer.decode(ids)


@every_family
@pytest.mark.parametrize("with_picture", [True, False])
def test_the_answer_mask_holds_the_answers(name: str, with_picture: bool) -> None:
    lvlm = model(name)
    messages = dialogues(1)[0].messages
    shown = picture() if with_picture else None
    inputs = lvlm.prepare(messages, shown)
    end = lvlm.tokenizer.eos_token
    answers = lvlm.tokenizer.decode(inputs["input_ids"][0][lvlm.template.answer_mask(messages, shown, inputs)])
    assert answers == f"A disc, number 0.{end}\nYes.{end}\n"


@every_family
def test_tokens_of_both_modalities_are_counted(name: str) -> None:
    lvlm = model(name)
    samples = dialogues(4)
    batches = capture(lvlm, samples)
    vision = sum(int(batch.vision.sum()) for batch in batches)
    language = sum(int(batch.language.sum()) for batch in batches)
    assert vision == PICTURE_TOKENS[name] * sum(sample.picture is not None for sample in samples)
    rows = [lvlm.prepare(sample.messages, sample.picture) for sample in samples]
    assert vision + language == sum(row["input_ids"].shape[1] for row in rows)
    for report in made(name).run.reports.values():
        assert report.tokens_vision == 2 * PICTURE_TOKENS[name]
        assert report.tokens_language > 0


@every_family
def test_replayed_blocks_return_what_the_whole_pass_does(name: str) -> None:
    lvlm = model(name)
    lvlm.model.to(torch.float64)
    seen: dict[int, Any] = {}
    for sample in (dialogues(3)[0], dialogues(3)[2]):  # with a picture, and without
        hooks = [
            block.register_forward_hook(lambda module, _, output, index=index: seen.update({index: output}))
            for index, block in enumerate(lvlm.blocks)
        ]
        with torch.no_grad():
            lvlm.model(**lvlm.forward_arguments(lvlm.prepare(sample.messages, sample.picture)))
        for hook in hooks:
            hook.remove()
        (batch,) = capture(lvlm, [sample])
        for index in range(len(lvlm.blocks)):
            with torch.no_grad():
                output = replay_block(lvlm, index, batch)
            first, second = (value[0] if isinstance(value, tuple) else value for value in (output, seen[index]))
            assert torch.equal(first, second)
            batch = replace(batch, hidden=output)


@every_family
def test_the_map_differs_from_weight_to_weight(name: str) -> None:
    run = made(name).run
    dense = model(name)
    for linear, sensitivities in run.sensitivities().items():
        found = significance_map(dense.linears[linear].weight.detach(), *sensitivities, run.recipe.thresholds)
        assert found.switched_off is None
        assert float(found.sparsity.std()) > 1e-3
        assert 0 < found.unimodal_ratio < 1


@every_family
def test_from_pretrained_generates_what_the_dequantized_weights_do(name: str) -> None:
    entry = made(name)
    packed = models.wrap(
        AutoModelForImageTextToText.from_pretrained(entry.folder, dtype="auto"), model(name).processor, ""
    )
    assert set(packed_linears(packed.model)) == set(entry.run.names)
    full = model(name)
    differs = False
    for prompt, shown in (("What is here?", picture(1)), ("Is it red?", picture(2)), ("Say something.", None)):
        tokens = generated(packed, prompt, shown)
        assert tokens == generated(entry.dense, prompt, shown)
        assert len(set(tokens)) > 1  # an answer, not one token again and again
        differs |= tokens != generated(full, prompt, shown)
    assert differs  # from the full-precision model


@every_family
def test_the_checkpoint_is_read_back_with_its_processor(name: str) -> None:
    entry = made(name)
    lvlm = models.load(entry.folder, device="cpu")
    assert lvlm.family == name
    for prompt, shown in (("What is here?", picture(1)), ("Say something.", None)):
        inputs, original = lvlm.prepare(prompt, shown), entry.dense.prepare(prompt, shown)
        assert set(inputs) == set(original)
        assert all(torch.equal(values, original[key]) for key, values in inputs.items())
        expected = greedy(entry.dense, original, TOKENS)[0]
        assert greedy(lvlm, inputs, TOKENS)[0] == expected
        assert [event.token_id for event in stream(lvlm, prompt, shown, max_new_tokens=TOKENS)] == expected


@every_family
def test_saving_again_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    entry = made(name)
    AutoModelForImageTextToText.from_pretrained(entry.folder, dtype="auto").save_pretrained(tmp_path)
    before, after = weights_in(entry.folder), weights_in(tmp_path)
    assert set(before) == set(after)
    for key, values in before.items():
        assert values.dtype == after[key].dtype
        assert torch.equal(values, after[key])


@every_family
def test_a_dense_export_needs_nothing_of_ours(name: str, tmp_path: Path) -> None:
    entry = made(name)
    export(entry.dense, entry.run, tmp_path / "dense", "dense")
    lvlm = models.load(tmp_path / "dense", device="cpu")
    state, expected = lvlm.model.state_dict(), entry.dense.model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(values, expected[key]) for key, values in state.items())


@every_family
def test_tower_and_projector_are_packed_as_well(name: str, tmp_path: Path) -> None:
    lvlm = model(name)
    parts = tuple(part for part in PARTS if any(entry.part == part for entry in lvlm.info.values()))
    assert parts == (PARTS if name != "gemma3" else ("vision", "decoder"))  # its projector is no linear
    with pytest.warns(UserWarning, match="tokens calibrate"):
        for _ in quantize(lvlm, Recipe(method="xnor", parts=parts), tmp_path / "run", samples=dialogues(3)):
            pass
    run = Run.open(tmp_path / "run")
    export(lvlm, run, tmp_path / "packed")
    packed = models.load(tmp_path / "packed", device="cpu")
    assert set(packed_linears(packed.model)) == set(run.names) == set(lvlm.linears)
    assert generated(packed, "What is here?", picture(1)) == generated(lvlm, "What is here?", picture(1))


def _mixture() -> Any:
    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_experts": 4, "head_dim": 16}
    return transformers.Qwen3VLMoeConfig(text_config=text)


def _crossing() -> Any:
    return transformers.MllamaConfig(
        text_config={"vocab_size": 64, "num_hidden_layers": 2, "cross_attention_layers": [1]}
    )


@pytest.mark.parametrize(
    ("config", "match"), [(_mixture, "mixture of experts"), (_crossing, "does not pass its pictures through")]
)
def test_families_that_are_refused_are_refused_before_weights_are_read(
    config: Callable[[], Any], match: str, tmp_path: Path
) -> None:
    config().save_pretrained(tmp_path)  # there are no weights in this folder, nor a processor
    with pytest.raises(SabError, match=match):
        models.load(tmp_path, device="cpu")


def test_a_checkpoint_quantized_by_others_is_refused(tmp_path: Path) -> None:
    config = model("llava").model.config
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(SabError, match="quantized already"):
        models.load(tmp_path, device="cpu")
