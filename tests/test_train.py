"""Claims about training the embedded model: it resumes to the same weights, and the codebook can be moved."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sab.demo import train, train_command
from sab.demo.codebook import CODEBOOK_FILE, codebook, load_codes, save_codes, slot_offsets, value_names
from sab.demo.lessons import picture_scene
from sab.demo.model import WIDTH, build_config, build_model, build_tokenizer
from sab.demo.scenes import SLOTS, token_labels
from sab.demo.suite import SUITES
from sab.demo.train import STAGES, Trainer
from sab.errors import SabError
from sab.models import DEMO_MODEL as SHIPPED

DEMO_MODEL = Path(SHIPPED)


@pytest.fixture
def small(monkeypatch):
    """Batches of three, so that a step takes a moment."""
    plans = {stage: replace(plan, batch=3, turns=2) for stage, plan in train.PLANS.items()}
    monkeypatch.setattr(train, "PLANS", plans)


def filled() -> torch.Tensor:
    """Which codes stand for a value (the first of each slot means "nothing")."""
    chosen = torch.ones(sum(len(values) for values in SLOTS.values()), dtype=torch.bool)
    chosen[torch.from_numpy(slot_offsets())] = False
    return chosen


def run(stage, state, steps, **options):
    trainer = Trainer(stage, state, 0, "cpu", **options)
    list(trainer.run(1, steps, 0.0))
    return trainer


@pytest.mark.parametrize("stage", ["vision", "language"])
def test_a_stopped_training_goes_on_to_the_same_weights(stage, small, tmp_path):
    whole = run(stage, tmp_path / "whole", 2)
    run(stage, tmp_path / "parts", 1)
    parts = run(stage, tmp_path / "parts", 1)
    assert parts.step == whole.step == 2
    for (name, one), two in zip(whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_each_stage_changes_only_its_own_part(small, tmp_path):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    before = build_model(build_config(tokenizer)).state_dict()
    for stage, part in (("vision", ".visual."), ("language", "language_model")):
        after = run(stage, tmp_path / stage, 1).model.state_dict()
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved
        assert all(part in name or "lm_head" in name for name in moved), stage


def test_joint_takes_the_tower_and_the_decoder_of_the_earlier_stages(small, tmp_path):
    for stage in ("vision", "language"):
        run(stage, tmp_path, 1)
    joint = Trainer("joint", tmp_path, 0, "cpu", tmp_path)
    parts = {s: torch.load(tmp_path / f"{s}.pt", weights_only=True)["model"] for s in ("vision", "language")}
    for name, value in joint.model.state_dict().items():
        assert torch.equal(value, parts["vision" if ".visual." in name else "language"][name]), name


def test_stages_that_went_on_from_a_checkpoint_meet_again_without_a_detour_through_the_first_codes(small, tmp_path):
    for stage in ("vision", "language"):
        run(stage, tmp_path, 1, start=DEMO_MODEL)
    joint = Trainer("joint", tmp_path, 0, "cpu", tmp_path)
    last = "model.visual.merger.mlp.2.weight"
    tower = torch.load(tmp_path / "vision.pt", weights_only=True)["model"][last]
    torch.testing.assert_close(joint.model.state_dict()[last], tower, atol=1e-5, rtol=1e-4)
    assert torch.equal(joint.codes, load_codes(DEMO_MODEL))


def test_codes_stay_independent_when_those_of_characters_become_letters(tmp_path):
    trainer = Trainer("language", tmp_path, 0, "cpu")
    trainer.tie_spelt()
    assert torch.linalg.matrix_rank(trainer.codes[filled()]) == int(filled().sum())
    assert not trainer.codes[~filled()].any()


def test_the_tower_follows_the_codebook_by_a_linear_map(tmp_path):
    trainer = Trainer("language", tmp_path, 0, "cpu")
    old = codebook(WIDTH)
    trainer.tie_spelt()
    new = trainer.codes.clone()
    trainer.codes = old
    last = trainer.model.model.visual.merger.mlp[2]
    last.weight.data.zero_()
    scene = old[[3, 12, 25]].sum(0)
    last.bias.data.copy_(scene)
    trainer._move_codes(new)
    torch.testing.assert_close(last.bias.data, new[[3, 12, 25]].sum(0), atol=1e-3, rtol=0)


def test_training_continues_from_a_checkpoint_with_its_vocabulary_and_codes(small, tmp_path):
    first = Trainer("language", tmp_path / "first", 0, "cpu")
    first.tie_spelt()
    first.export(tmp_path / "checkpoint")
    second = Trainer("joint", tmp_path / "second", 0, "cpu", tmp_path / "checkpoint")
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert torch.equal(second.codes, first.codes)
    assert not torch.equal(second.codes, codebook(WIDTH))
    for (name, one), two in zip(second.model.state_dict().items(), first.model.state_dict().values(), strict=True):
        assert torch.equal(one, two.bfloat16().float()), name
    assert second.train_step()["loss"] > 0


def test_a_checkpoint_of_a_smaller_world_keeps_its_codes_when_the_world_has_grown(tmp_path):
    """Labels it knows keep their codes by name, so that old scenes look to the decoder exactly as before."""
    fresh = codebook(WIDTH)
    kept = fresh.flip(0)
    kept[torch.from_numpy(slot_offsets())] = 0.0
    save_codes(kept, tmp_path)
    assert torch.equal(load_codes(tmp_path), kept)
    shuffled = list(range(0, len(kept) - 4))[::-1]
    known = json.dumps([value_names()[row] for row in shuffled])
    save_file({"codes": kept[shuffled].contiguous()}, tmp_path / CODEBOOK_FILE, metadata={"values": known})
    grown = load_codes(tmp_path)
    assert torch.equal(grown[:-4], kept[:-4])
    assert torch.equal(grown[-4:], fresh[-4:])
    save_file({"codes": kept[:-5].contiguous()}, tmp_path / CODEBOOK_FILE)  # as written before rows had names
    assert torch.equal(load_codes(tmp_path)[:-5], kept[:-5])


def test_the_shipped_checkpoint_answers_old_questions_as_before_when_training_begins(tmp_path):
    trainer = Trainer("joint", tmp_path, 0, "cpu", DEMO_MODEL)
    old = load_file(DEMO_MODEL / CODEBOOK_FILE)["codes"]
    assert torch.equal(trainer.codes[: len(old)], old)
    right = trainer.check("trained", 48)
    assert right["overall"] > 0.7
    assert right["coarse perception"] == 1.0


def test_a_tower_that_goes_on_meets_heads_that_read_what_it_writes(tmp_path):
    trainer = Trainer("vision", tmp_path, 0, "cpu", DEMO_MODEL)
    draw = random.Random(5)
    labels = torch.from_numpy(np.stack([token_labels(picture_scene(draw)) for _ in range(8)]))
    written = trainer.codes[labels + trainer.offsets].sum(dim=2)
    loss, right = trainer.vision_loss(written, labels)
    assert right["shape"] == 1.0
    assert loss < 1.0


def test_a_state_of_another_world_is_refused_with_a_sentence(tmp_path):
    trainer = Trainer("language", tmp_path, 0, "cpu", DEMO_MODEL)
    trainer.codes = trainer.codes[:-1]
    trainer.save()
    with pytest.raises(SabError, match="another set of labels"):
        Trainer("language", tmp_path, 0, "cpu")


@pytest.mark.parametrize("start", ["nowhere", "state"])
def test_a_stage_that_has_nothing_to_start_from_leaves_no_trace(tmp_path, start):
    """A vocabulary made on the way would later be taken for that of weights in progress."""
    with pytest.raises(SabError, match="holds neither a checkpoint"):
        Trainer("joint", tmp_path / "state", 0, "cpu", tmp_path / start)
    assert not (tmp_path / "state").exists()


def test_a_state_is_gone_on_from_whatever_the_start_holds_by_now(small, tmp_path):
    run("language", tmp_path / "state", 1)
    assert Trainer("language", tmp_path / "state", 0, "cpu", tmp_path / "gone").step == 1


def test_the_command_trains_a_stage_and_writes_its_checkpoint(small, tmp_path):
    where = ["--state", str(tmp_path / "state"), "--out", str(tmp_path / "out")]
    assert train_command.train(["--stage", "language", "--steps", "25", "--device", "cpu", *where])["step"] == 25
    assert json.loads((tmp_path / "state" / "log.jsonl").read_text().splitlines()[-1])["share"] == 0.96
    assert Trainer("joint", tmp_path / "next", 0, "cpu", tmp_path / "out").tied


def test_no_seed_of_training_draws_what_a_suite_draws():
    """Not even the joint stage under the largest seed, after a billion steps."""
    end = (train_command.SEEDS - 1) * 7_919 + STAGES.index("joint") * 2**36 + 10**9
    assert end < 2**40 < min(base for base, _ in SUITES.values())
