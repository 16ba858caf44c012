import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sab import models, processors
from sab.errors import SabError
from tests.tiny import dialogues, picture, tiny, tiny_folder

PICTURE_TOKENS = 4  # 56×56 pixels, patches of 14, merged 2×2


def test_the_embedded_model_loads_like_any_checkpoint() -> None:
    lvlm = models.load()
    assert lvlm.family == "qwen2_5_vl"
    assert lvlm.dtype == torch.float32
    assert {info.kind for info in lvlm.info.values() if info.part == "decoder"} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    inputs = lvlm.prepare("What is this?", picture(size=112))
    assert int((inputs["input_ids"] == lvlm.image_token_id).sum()) == 16


def test_linears_come_in_forward_order_and_leave_the_head_out() -> None:
    lvlm = tiny()
    parts = [info.part for info in lvlm.info.values()]
    assert parts == sorted(parts, key=models.PARTS.index)
    assert [info.kind for info in lvlm.info.values() if info.block == 0 and info.part == "decoder"] == [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ]
    assert not any("lm_head" in name for name in lvlm.linears)
    assert next(iter(lvlm.decoder_linears)) == "model.language_model.layers.0.self_attn.q_proj"


def test_one_placeholder_per_visual_token_and_none_from_typed_text() -> None:
    lvlm = tiny()
    typed = "Is <|image_pad|> or <|im_end|> a word?"
    inputs = lvlm.prepare(typed, picture())
    ids = inputs["input_ids"][0]
    assert int((ids == lvlm.image_token_id).sum()) == PICTURE_TOKENS
    assert typed in lvlm.tokenizer.decode(ids)
    assert int((lvlm.prepare(typed)["input_ids"] == lvlm.image_token_id).sum()) == 0


def test_padding_on_the_left_does_not_change_the_logits() -> None:
    lvlm = tiny()
    rows = [lvlm.prepare("Hi.", picture(1)), lvlm.prepare("What is in this picture?", picture(2))]
    with torch.no_grad():
        together = lvlm.model(**lvlm.forward_arguments(lvlm.collate(rows))).logits
        for row, logits in zip(rows, together, strict=True):
            alone = lvlm.model(**lvlm.forward_arguments(row)).logits[0]
            torch.testing.assert_close(logits[-len(alone) :], alone, atol=1e-4, rtol=1e-4)


def test_a_text_after_a_picture_is_read_as_by_a_fresh_model() -> None:
    lvlm, fresh = tiny(), tiny()
    with torch.no_grad():
        lvlm.model(**lvlm.forward_arguments(lvlm.prepare("Look.", picture())))
        after = lvlm.model(**lvlm.forward_arguments(lvlm.prepare("And now?"))).logits
        first = fresh.model(**fresh.forward_arguments(fresh.prepare("And now?"))).logits
    assert torch.equal(after, first)


@pytest.mark.parametrize("with_picture", [True, False])
def test_the_answer_mask_holds_the_assistant_turns(with_picture: bool) -> None:
    lvlm = tiny()
    messages = dialogues(1)[0].messages
    shown = picture() if with_picture else None
    inputs = lvlm.prepare(messages, shown)
    mask = lvlm.template.answer_mask(messages, shown, inputs)
    assert lvlm.tokenizer.decode(inputs["input_ids"][0][mask]) == ("A disc, number 0.<|im_end|>\nYes.<|im_end|>\n")


def test_extending_appends_attended_text() -> None:
    lvlm = tiny()
    inputs = lvlm.prepare("Well?", picture())
    extended = lvlm.extend(inputs, [5, 6, 7])
    length = inputs["input_ids"].shape[1]
    assert extended["input_ids"][0, length:].tolist() == [5, 6, 7]
    assert extended["attention_mask"].sum() == inputs["attention_mask"].sum() + 3
    assert extended["mm_token_type_ids"].sum() == PICTURE_TOKENS
    assert extended["pixel_values"] is inputs["pixel_values"]


def test_buckets_keep_layouts_apart_and_bounded() -> None:
    lvlm = tiny()
    rows = [lvlm.prepare(sample.messages, sample.picture) for sample in dialogues(9)]
    buckets = models.length_buckets(rows, batch_size=2)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(9))
    assert max(map(len, buckets)) == 2
    for bucket in buckets:
        assert len({"pixel_values" in rows[index] for index in bucket}) == 1
    longest = max(row["input_ids"].shape[1] for row in rows)
    assert all(len(bucket) == 1 for bucket in models.length_buckets(rows, 8, max_tokens=longest))


@pytest.mark.parametrize("copied", [lambda lvlm: lvlm.copy(), copy.deepcopy])
def test_a_copy_is_independent(copied) -> None:
    lvlm = tiny()
    twin = copied(lvlm)
    name = next(iter(twin.decoder_linears))
    twin.decoder_linears[name].weight.data.zero_()
    assert twin.model.get_submodule(name).weight.abs().sum() == 0
    assert lvlm.decoder_linears[name].weight.abs().sum() > 0
    assert twin.fingerprint == lvlm.fingerprint


def test_training_changes_the_fingerprint() -> None:
    lvlm = tiny()
    assert models.fingerprint(lvlm.model.config, lvlm.linears.items()) == lvlm.fingerprint
    next(iter(lvlm.linears.values())).weight.data.mul_(1.01)
    assert models.fingerprint(lvlm.model.config, lvlm.linears.items()) != lvlm.fingerprint


def test_the_stock_processor_gets_the_same_picture_part(monkeypatch) -> None:
    """Where torchvision exists the stock processor is loaded; its inputs must be the composed one's."""
    composed = tiny().processor

    class Stock:
        image_processor = "torchvision's"

    monkeypatch.setattr(processors, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", lambda *_, **__: Stock())
    stock = processors.load_processor(str(tiny_folder()), tiny().model.config, None)
    assert isinstance(stock.image_processor, Qwen2VLImageProcessorPil)
    assert stock.image_processor.to_dict() == composed.image_processor.to_dict()


@pytest.mark.parametrize("path", ["no/such/folder/anywhere", "not a name", "/nowhere"])
def test_an_unknown_path_is_one_sentence(path: str) -> None:
    with pytest.raises(SabError, match="There is no model at"):
        models.load(path)


def test_a_language_model_is_refused(tmp_path) -> None:
    Qwen2Config(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(SabError, match="choose a vision-language model"):
        models.load(tmp_path)


def test_pictures_by_cross_attention_are_refused() -> None:
    lvlm = tiny()
    lvlm.blocks[0].cross_attn = torch.nn.Linear(2, 2)
    with pytest.raises(SabError, match="does not pass its pictures through the decoder"):
        models.wrap(lvlm.model, lvlm.processor, "crossing")


def test_an_incomplete_checkpoint_is_refused(tmp_path) -> None:
    folder = shutil.copytree(tiny_folder(), tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "down_proj.weight" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SabError, match="incomplete: 1 weights are missing"):
        models.load(folder)


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoProcessor"])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "custom"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {kind: "evil.Evil"}} | ({"model_type": "custom"} if kind == "AutoConfig" else {})
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask on a terminal
    if kind == "AutoConfig":
        with pytest.raises(SabError, match="never run here"):
            models.load(folder, device="cpu")
    else:
        models.load(folder, device="cpu")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 10**9}, "where its files hold"),
        ({"hidden_size": 10**12}, "could not be loaded"),
        ({"hidden_size": -128}, "could not be loaded"),
        ({"num_hidden_layers": 9_999}, "asks for 9,999"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_sizes_that_the_files_do_not_hold_are_refused_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, int], sentence: str, streamed: bool
) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "huge"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SabError, match=sentence):
        models.load(folder, device="cpu", streamed=streamed)


@pytest.mark.parametrize("damaged", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, damaged: str) -> None:
    folder = shutil.copytree(tiny_folder(), tmp_path / "damaged")
    (folder / damaged).write_bytes(b"{not this")
    with pytest.raises(SabError, match="could not be loaded"):
        models.load(folder)


def test_a_checkpoint_without_image_tokens_is_refused(tmp_path) -> None:
    folder = shutil.copytree(tiny_folder(), tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    config["is_encoder_decoder"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SabError, match="encoder-decoder"):
        models.load(folder)


def test_devices_and_dtypes_are_checked() -> None:
    with pytest.raises(SabError, match="dtype"):
        models.load(tiny_folder(), dtype="int8")
    with pytest.raises(SabError, match="device"):
        models.load(tiny_folder(), device="abacus")
    assert models.load(tiny_folder(), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(SabError, match="empty"):
        tiny().prepare(prompt, picture())


def test_a_picture_out_of_proportion_is_refused() -> None:
    with pytest.raises(SabError, match="cannot take this picture"):
        tiny().prepare("What?", picture(size=400).resize((400, 1)))
