"""Which models a visitor may open, and what they are called in an address."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sab.errors import SabError
from viz.pages.offers import REMEMBERED, History, Offers, canonical, is_local, of_slug, slug, title

QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"
OTHER = "OpenGVLab/InternVL3_5-1B-HF"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "some model"
    made.mkdir()
    return made


def test_only_a_loopback_address_outside_a_space_is_local() -> None:
    assert all(is_local(host, None) for host in ("127.0.0.1", "localhost", "::1", "[::1]"))
    assert not any(is_local(host, None) for host in ("0.0.0.0", "::", "192.168.0.2", "lens.example", ""))
    assert not is_local("127.0.0.1", "somebody/sab-lens")


def test_a_list_is_all_that_a_public_page_offers(folder: Path) -> None:
    offers = Offers(None, (QWEN, str(folder)))
    assert offers.named("embedded") is None
    assert offers.named(QWEN) == QWEN
    assert offers.named(f" https://huggingface.co/{QWEN}/ ") == QWEN
    assert offers.named(str(folder)) == str(folder)
    wrong = (OTHER, QWEN.lower(), f"{QWEN}/resolve", "/", "/etc", str(folder.parent), "..", QWEN + "\n", "", None, 3)
    for each in wrong:
        with pytest.raises(SabError) as caught:
            offers.named(each)
        assert str(folder) not in str(caught.value)  # no more than its name
    assert offers.name(str(folder)) == slug(str(folder))
    assert offers.named(offers.name(str(folder))) == str(folder)
    assert [offers.name(model) for model in (None, QWEN)] == ["embedded", QWEN]
    assert QWEN in offers
    assert None in offers
    assert OTHER not in offers


def test_a_public_page_does_not_tell_which_folders_there_are(folder: Path) -> None:
    def refusal(text: str) -> str:
        with pytest.raises(SabError) as caught:
            Offers().named(text)
        return str(caught.value).replace(text, "")

    assert refusal(str(folder)) == refusal(str(folder / "gone"))


def test_a_page_of_ones_own_opens_any_folder_and_any_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = Offers(free=True)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for written in (str(folder), "some model", "./some model/", "~/some model"):
        assert offers.named(written) == str(folder.resolve())
    assert offers.named(OTHER) == OTHER
    for wrong in ("/nowhere", "no", "a/b/c", "../../x/y", "-a/b", "a/b?c", "~nobody/x/y", "x" * 501, "a\x00b"):
        with pytest.raises(SabError):
            offers.named(wrong)


def test_a_model_keeps_its_address_and_two_models_do_not_share_one(folder: Path) -> None:
    assert slug(None) == "embedded"
    assert slug(QWEN) == "Qwen--Qwen2.5-VL-3B-Instruct"
    twin = folder.parent / "deeper" / folder.name
    twin.mkdir(parents=True)
    assert slug(str(folder)).startswith("some-model-")
    assert slug(str(folder)) == slug(canonical(os.fspath(folder) + "/."))
    assert slug(str(folder)) != slug(str(twin))
    assert title(str(folder)) == "some model"
    assert title(QWEN) == QWEN


def test_a_link_finds_its_model_where_that_is_offered(folder: Path) -> None:
    free, closed = Offers(free=True), Offers(OTHER, (QWEN,))
    assert of_slug("embedded", closed, []) is None
    assert of_slug(slug(QWEN), closed, []) == QWEN
    assert of_slug(slug(OTHER), closed, []) == OTHER
    assert of_slug("some--thing", free, []) == "some/thing"
    assert of_slug(slug(str(folder)), free, [str(folder)]) == str(folder)
    with pytest.raises(SabError, match="does not offer some/thing"):
        of_slug("some--thing", closed, [])
    with pytest.raises(SabError, match="does not offer"):
        of_slug(slug(str(folder)), closed, [str(folder)])
    with pytest.raises(SabError, match="opened on another machine"):
        of_slug(slug(str(folder)), free, [])


def test_what_was_opened_is_remembered_once_and_the_last_comes_first(tmp_path: Path, folder: Path) -> None:
    history = History(tmp_path / "deep" / "opened.json")
    assert history.models() == []
    for number in range(REMEMBERED):
        history.add(f"some/model-{number}")
    history.add(str(folder))
    history.add("some/model-5")
    assert history.models()[:2] == ["some/model-5", str(folder)]
    assert len(history.models()) == REMEMBERED
    folder.rmdir()
    assert str(folder) not in history.models()
    for damaged in ("", "[]", json.dumps({"models": {"a": 1}}), json.dumps({"models": [1, "../x", "a/b"]})):
        (tmp_path / "deep" / "opened.json").write_text(damaged)
        assert history.models() in ([], ["a/b"])
