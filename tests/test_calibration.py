"""Calibration samples come from the source that is named: seeded, counted, and what cannot be used is said."""

import base64
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sab import calibration, calibration_files, cli, sequential
from sab.calibration import SampleSet, choose, source_of
from sab.errors import SabError
from sab.recipes import Recipe
from sab.runs import Run
from tests.tiny import picture, tiny, tiny_folder

QUIET = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
# Two good samples beside the useless one are fewer than three.
FEWER = pytest.mark.filterwarnings("ignore:.*samples that can be used, not")
QUICK = ["--method", "xnor", "--samples", "6", "--iterations", "1"]


def png(seed: int = 0, size: int = 56) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 40,000 pixels wide and high."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def talk(number: int = 0, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"Number {number}."}]
    return {"messages": turns, **more}


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with texts and six texts without."""
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(12):
        (made / f"p{number}.png").write_bytes(png(number))
        (made / f"p{number}.txt").write_text(f"A disc, number {number}.\n")
    for number in range(6):
        (made / f"t{number}.txt").write_text(f"Q: What is {number}?\nA: A number.\nIt is small.\nQ: Sure?\nA: Yes.\n")
    return made


# --- sources


def test_the_embedded_world_stays_what_it_was() -> None:
    from sab.demo.suite import samples

    found = choose(None, 9, seed=3)
    assert [(sample.messages, sample.picture) for sample in found] == samples(9, seed=3)
    assert found.summary() | {"fingerprint": ""} == {
        "source": "embedded",
        "fingerprint": "",
        "samples": 9,
        "with_picture": 7,
        "text_only": 2,
        "skipped": 0,
    }


def test_a_folder_gives_captions_and_written_dialogues(folder: Path) -> None:
    found = choose(str(folder), 18)
    with_picture = {sample.messages[1]["content"]: sample for sample in found if sample.picture is not None}
    assert set(with_picture) == {f"A disc, number {number}." for number in range(12)}
    one = with_picture["A disc, number 7."]
    assert one.messages[0] == {"role": "user", "content": calibration_files.DESCRIBE}
    assert one.picture is not None
    assert one.picture.tobytes() == picture(7).tobytes()
    alone = next(sample for sample in found if sample.picture is None)
    assert [turn["role"] for turn in alone.messages] == ["user", "assistant"] * 2
    assert alone.messages[1]["content"] == "A number.\nIt is small."


def test_the_choice_is_seeded(folder: Path) -> None:
    one, same, other = (choose(str(folder), 6, seed) for seed in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert {sample.messages[1]["content"] for sample in one} != {sample.messages[1]["content"] for sample in other}


@pytest.mark.parametrize(("split", "without"), [("token", 1), ("corpus", 4)])
def test_texts_without_a_picture_keep_their_share(folder: Path, split: str, without: int) -> None:
    found = choose(str(folder), 8, 0, split)
    assert (len(found), sum(sample.picture is None for sample in found)) == (8, without)


def test_where_one_kind_runs_out_the_other_fills_up_and_too_few_are_said(folder: Path) -> None:
    assert sum(sample.picture is None for sample in choose(str(folder), 16)) == 4
    with pytest.warns(UserWarning, match="has 18 samples that can be used, not 20"):
        assert len(choose(str(folder), 20)) == 18


def test_a_folder_with_a_list_is_read_from_the_list(folder: Path) -> None:
    rows = [
        {"image": "p0.png", "caption": "A round thing."},
        {"file_name": "p1.png", "text": "Another."},
        {"image": "p2.png", "question": "How many?", "answer": "One."},
    ]
    lines(folder / "captions.jsonl", rows)
    found = {sample.messages[1]["content"]: sample for sample in choose(str(folder), 3)}
    assert set(found) == {"A round thing.", "Another.", "One."}
    assert found["One."].messages[0]["content"] == "How many?"
    assert all(sample.picture is not None for sample in found.values())


def test_chat_messages_are_read_as_openai_and_hugging_face_write_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    address = "data:image/png;base64," + base64.b64encode(png(2)).decode()
    answer = {"role": "assistant", "content": [{"type": "output_text", "text": "A disc."}]}
    openai = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": address}}],
        },
        answer,
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    placed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}, answer]
    inside = [
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Inside?"}]},
        answer,
    ]
    marked = [{"role": "user", "content": "<image>\nMarked?"}, answer]
    rows = [
        {"messages": openai},
        {"messages": placed, "image": "a.png"},
        {"messages": inside},
        {"messages": marked, "images": ["a.png"]},
        "",
        talk(),
    ]
    found = choose(lines(tmp_path / "chat.jsonl", rows), 5)
    asked = {next(turn["content"] for turn in sample.messages if turn["role"] == "user"): sample for sample in found}
    assert set(asked) == {"What?", "Which?", "Inside?", "Marked?", "What is 0?"}
    assert asked["What?"].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A disc."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    pixels = {name: sample.picture.tobytes() if sample.picture else None for name, sample in asked.items()}
    assert pixels == {
        "What?": picture(2).tobytes(),
        **dict.fromkeys(("Which?", "Inside?", "Marked?"), picture(1).tobytes()),
        "What is 0?": None,
    }


USELESS: dict[str, tuple[Any, str]] = {
    "no json": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "no object": ("[1]", "no JSON object"),
    "nothing": ({"image": "a.png"}, "neither messages"),
    "no turns": ({"messages": "hello"}, "no list of turns"),
    "tool": ({"messages": [{"role": "tool", "content": "4"}]}, "a turn of 'tool'"),
    "sound": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "part of type 'audio'"),
    "number": ({"messages": [{"role": "user", "content": 4}]}, "neither a text nor"),
    "no answer": ({"messages": [{"role": "user", "content": "Why?"}]}, "in turn"),
    "answer first": ({"messages": [{"role": "assistant", "content": "So."}] * 2}, "in turn"),
    "strange role": ({"messages": [{"role": ["user"], "content": "Why?"}]}, "a turn of"),
    "empty": ({"question": "Why?", "messages": talk()["messages"] + [{"role": "user", "content": " "}]}, "is empty"),
    "long": ({"question": "Why?", "answer": "So. " * 10_000}, "longer than"),
    "two": (talk(images=["a.png", "a.png"]), "several pictures"),
    "missing": (talk(image="b.png"), "no picture 'b.png'"),
    "strange path": (talk(image="\0"), "no picture|no path"),
    "long path": (talk(image="x" * 5000), "no path"),
    "web": (talk(image="https://example.org/a.png"), "nothing is fetched"),
    "no base64": (talk(image="data:image/png;base64,%%%"), "no base64"),
    "broken": (talk(image="broken.png"), "cannot be read"),
    "bomb": (talk(image="bomb.png"), "cannot be read|pixels"),
    "narrow": (talk(image="narrow.png"), "too narrow"),
    "not a picture": (talk(image="chat.jsonl"), "cannot be read"),
    "late": (
        {
            "messages": [
                *talk()["messages"],
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "This?"}]},
                {"role": "assistant", "content": "Yes."},
            ]
        },
        "first question",
    ),
}


@FEWER
@pytest.mark.parametrize("name", USELESS)
def test_what_cannot_be_used_is_skipped_and_counted(tmp_path: Path, name: str) -> None:
    useless, reason = USELESS[name]
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "broken.png").write_bytes(png(1)[:200])
    (tmp_path / "bomb.png").write_bytes(bomb())
    Image.new("RGB", (2000, 20)).save(tmp_path / "narrow.png")
    source = lines(tmp_path / "chat.jsonl", [useless, talk(1, image="a.png"), talk(2)])
    with pytest.warns(UserWarning, match=f"1 calibration samples are skipped, first line 1: .*({reason})"):
        found = choose(source, 3)
    assert (len(found), found.skipped, found.summary()["skipped"]) == (2, 1, 1)
    only = lines(tmp_path / "only.jsonl", [useless])
    with pytest.raises(SabError, match=rf"No calibration sample of .* can be used \(line 1: .*({reason})") as refusal:
        choose(only, 3)
    assert "\n" not in str(refusal.value)


@FEWER
def test_a_line_that_never_ends_is_one_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_files, "LONGEST_LINE", 400)
    source = lines(tmp_path / "chat.jsonl", [json.dumps(talk(1, filler="x" * 5000)), talk(2), talk(3)])
    with pytest.warns(UserWarning, match="1 calibration samples are skipped"):
        found = choose(source, 3)
    assert {sample.messages[1]["content"] for sample in found} == {"Number 2.", "Number 3."}


@FEWER
def test_pictures_without_text_texts_without_sense_and_folders_without_texts(folder: Path, tmp_path: Path) -> None:
    (folder / "alone.png").write_bytes(png())
    (folder / "t0.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.warns(UserWarning, match="2 calibration samples are skipped"):
        assert len(choose(str(folder), 19)) == 17
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(png())
    with pytest.raises(SabError, match=r"holds no texts.*name\.txt"):
        choose(str(tmp_path / "none"), 1)
    with pytest.raises(SabError, match="at least one sample"):
        choose(str(folder), 0)
    with pytest.raises(SabError, match="cannot be read"):
        choose(str(tmp_path / "gone"), 1)


def test_large_pictures_are_shrunk_in_shape(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("Red.")
    shrunk = choose(str(tmp_path), 1)[0].picture
    assert shrunk is not None
    assert shrunk.width * shrunk.height <= 2**20 < (shrunk.width + 2) * (shrunk.height + 2)
    assert shrunk.width / shrunk.height == pytest.approx(2, rel=0.01)


# --- datasets of the hub, by a library that is not here


class Stream:
    """What the datasets library returns for a streamed dataset, as far as it is used."""

    def __init__(self, rows: list[Mapping[str, Any]]) -> None:
        self.rows, self.decoded, self.seed = rows, True, -1

    def decode(self, enable: bool) -> "Stream":
        self.decoded = enable
        return self

    def shuffle(self, seed: int, buffer_size: int) -> "Stream":
        self.seed = seed
        return self

    def __iter__(self) -> Any:
        assert not self.decoded, "pictures are opened by our own loader"
        return iter(self.rows[self.seed :] + self.rows[: self.seed])


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Put a library in place that loads the given rows, or raises; returns what it was asked for."""

    def install(rows: Any) -> list[Any]:
        asked: list[Any] = []

        def load(*arguments: Any, **options: Any) -> Stream:
            asked.append((*arguments, options))
            if isinstance(rows, Exception):
                raise rows
            return Stream(rows)

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
        return asked

    return install


def test_a_dataset_is_streamed(library: Callable[[Any], list[Any]]) -> None:
    stored = {"bytes": png(4), "path": "somewhere.png"}
    rows: list[Mapping[str, Any]] = [
        *({"image": stored, "question": f"What is {number}?", "answers": ["This.", "That."]} for number in range(20)),
        talk(99, image=None),
        {"image": {"bytes": None, "path": "/etc/passwd"}, "caption": "No."},
    ]
    asked = library(rows)
    with pytest.warns(UserWarning, match="nothing is fetched"):
        found = choose("hf:some/where/plain:test", 8, seed=21)
    assert asked == [("some/where", "plain", {"split": "test", "streaming": True})]
    assert sum(sample.picture is None for sample in found) == 1
    assert len(found) == 8
    assert found[1].messages[1]["content"] == "This."
    assert found[1].picture is not None
    assert found[1].picture.tobytes() == picture(4).tobytes()
    asked.clear()
    choose("hf:some/where", 2)
    assert asked == [("some/where", None, {"split": "train", "streaming": True})]


def test_a_dataset_of_nothing_useful_does_not_go_on_for_ever(library: Callable[[Any], list[Any]]) -> None:
    class Endless(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return self

        def __add__(self, other: Any) -> Any:
            return iter(lambda: {"x": 1}, None)

    library(Endless())
    with pytest.raises(SabError, match="neither messages"):
        choose("hf:some/where", 3)


def test_a_dataset_that_cannot_be_had_is_one_sentence(
    library: Callable[[Any], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    library(ConnectionError("no network\nat all"))
    with pytest.raises(SabError, match=r"some/where could not be read \(no network\)") as refusal:
        choose("hf:some/where", 1)
    assert "\n" not in str(refusal.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SabError, match="pip install datasets"):
        choose("hf:some/where", 1)


# --- what recipes and runs know of it


def test_a_source_is_named_by_its_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert source_of("pictures") == str(folder)
    assert source_of("hf:a/b:train") == "hf:a/b:train"
    assert source_of("embedded") is None
    for wrong in ("nowhere", "hf:alone", "hf:a/b/c/d", "hf:../../x"):
        with pytest.raises(SabError):
            source_of(wrong)
    with pytest.raises(SabError, match="calibration is 3"):
        Recipe(calibration=3).validate()  # type: ignore[arg-type]


def test_a_fingerprint_moves_with_every_word_and_pixel(folder: Path) -> None:
    before = choose(str(folder), 18).fingerprint
    changed = picture(3)
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(folder / "p3.png")
    with_pixel = choose(str(folder), 18).fingerprint
    (folder / "t1.txt").write_text((folder / "t1.txt").read_text().replace("small", "Small"))
    assert len({before, with_pixel, choose(str(folder), 18).fingerprint}) == 3


@QUIET
def test_a_run_notes_its_samples_and_goes_on_with_no_others(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(model="tiny", method="xnor", samples=6, calibration=str(folder))
    running = sequential.quantize(tiny(), recipe, tmp_path / "run")
    names = [next(running).name for _ in range(2)]
    del running
    noted = Run.open(tmp_path / "run").header["calibration"]
    drawn = choose(str(folder), 6)
    assert noted == {**drawn.summary(), "tokens_vision": 4 * 5, "tokens_language": noted["tokens_language"]}
    assert noted["tokens_language"] > 100
    with pytest.raises(SabError, match="calibrated on"):
        next(sequential.quantize(tiny(), Recipe(model="tiny", method="xnor", samples=6), tmp_path / "run"))
    text = (folder / "p0.txt").read_text()
    for file in folder.glob("p*.txt"):
        file.write_text("Another text.")
    with pytest.raises(SabError, match="not those that the run"):
        list(sequential.quantize(tiny(), recipe, tmp_path / "run"))
    assert list(Run.open(tmp_path / "run").reports) == names
    for number in range(12):
        (folder / f"p{number}.txt").write_text(text.replace("0", str(number)))
    assert len(list(sequential.quantize(tiny(), recipe, tmp_path / "run"))) == 14


def test_runs_and_recipes_from_before_still_open() -> None:
    values = Recipe().to_json()
    del values["calibration"]
    assert Recipe.from_json(values) == Recipe()
    assert calibration.as_set([]) == SampleSet((), "given")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip() else {}, err


def test_the_command_line_calibrates_on_a_folder_and_a_recipe_repeats_it(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "p5.png").write_bytes(b"no picture")
    (folder / "more.txt").write_text("A text.")
    code, result, err = run(
        capsys, "quantize", tiny_folder(), "--out", tmp_path / "one", "--calibration", folder, *QUICK, "--samples", 19
    )
    assert code == 0
    noted = result["calibration"]
    assert (noted["samples"], noted["with_picture"], noted["text_only"], noted["skipped"]) == (18, 11, 7, 1)
    assert f"calibrated on {folder}: 18 samples, 11 with a picture, 1 skipped" in err
    assert "p5.png: The picture" in err
    again = ["--recipe", tmp_path / "one" / "recipe.json"]
    code, result, err = run(capsys, "quantize", "--out", tmp_path / "two", *again)
    assert code == 0
    assert result["calibration"] == noted
    assert "codes will differ" not in err
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n / "codes").iterdir()} for n in ("one", "two"))
    assert one == two
    (folder / "p5.png").write_bytes(png(5))
    code, _, err = run(capsys, "quantize", "--out", tmp_path / "three", *again)
    assert code == 0
    assert "codes will differ" in err
    code, _, err = run(capsys, "quantize", "--out", tmp_path / "four", "--calibration", "nowhere")
    assert code == 2
    assert "no calibration samples at nowhere" in err


def test_every_command_that_draws_samples_takes_a_source(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    common = [tiny_folder(), "--calibration", folder, "--samples", 8]
    code, controls, _ = run(capsys, "controls", *common, "--seeds", 2)
    assert (code, controls["calibration"]) == (0, str(folder))
    code, causal, _ = run(capsys, "causal", *common, "--limit", 4, "--random-draws", 1, "--share", 1)
    assert (code, causal["calibration"]) == (0, str(folder))
    code, table, _ = run(
        capsys, "compare", *common, "--methods", "xnor,rtn2", "--limit", 4, "--out", tmp_path / "table"
    )
    assert (code, table["calibration"]) == (0, str(folder))
    prints = {Run.open(tmp_path / "table" / name).header["calibration"]["fingerprint"] for name in ("xnor", "rtn2")}
    assert prints == {choose(str(folder), 8).fingerprint}
