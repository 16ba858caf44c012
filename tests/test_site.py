"""Opening a model beside the one that was started: its page, its address, who may ask for it, what goes for it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio.routes import App
from huggingface_hub import constants
from starlette.testclient import TestClient

from sab import models
from sab.errors import SabError
from sab.packed import chosen_library
from tests.hub_server import Hub, ask_here, serving
from tests.tiny import tiny_folder
from viz.pages import chooser
from viz.pages import machine as machines
from viz.pages.chooser import check_origin
from viz.pages.machine import Machine
from viz.pages.offers import History, Offers, slug
from viz.pages.opening import DONE, MOST_AT_ONCE, RUNNING, Opening, Openings, view
from viz.pages.site import HISTORY, Site
from viz.pages.store import Store

NAME = "somebody/tiny-qwen"
LOCAL = {"host": "127.0.0.1:7860"}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A copy of the tiny model under a name of its own."""
    return str(shutil.copytree(tiny_folder(), tmp_path / "tiny-one"))


def ended(openings: Openings, ticket: str) -> Opening:
    """Wait for an opening."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        opening = openings.find(ticket)
        assert opening is not None
        if opening.ended:
            return opening
        time.sleep(0.01)
    raise AssertionError("the opening does not end")


class Desk:
    """Openings without pages: what they publish is kept."""

    def __init__(self, runs: Path, offers: Offers | None = None, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.stores: dict[str, Store] = {}
        self.history = History(runs / HISTORY)
        self.openings = Openings(
            offers or Offers(free=True), self.machine, [runs], self.history, self.publish, self.stores.__contains__
        )

    def publish(self, store: Store) -> None:
        self.stores[slug(store.model)] = store
        self.machine.used(store)

    def open(self, model: str) -> Opening:
        return ended(self.openings, self.openings.ask(model)[1])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "runs")


def test_a_folder_is_opened_remembered_and_opened_once(desk: Desk, tiny: str) -> None:
    opening = desk.open(tiny)
    assert (opening.state, opening.message) == ("done", "")
    store = desk.stores[slug(tiny)]
    assert store.loaded
    assert store.fingerprint == models.load(tiny, device="cpu").fingerprint
    assert store.lvlm.source == tiny
    assert store.machine is desk.machine
    assert desk.history.models() == [tiny]
    assert desk.openings.ask(tiny) == (tiny, "")  # it is there: nothing to follow


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "is a bert model, not one that"),
        (lambda folder: (folder / "config.json").unlink(), "could not be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 64), "could not be loaded"),
    ],
)
def test_what_is_no_model_is_one_sentence_with_its_name(desk: Desk, tiny: str, break_it: Any, sentence: str) -> None:
    break_it(Path(tiny))
    opening = desk.open(tiny)
    assert opening.state == "failed"
    assert sentence in opening.message
    assert "tiny-one" in opening.message
    assert not desk.stores
    assert desk.history.models() == []


def test_a_run_and_a_packed_checkpoint_are_told_from_models(desk: Desk, tiny: str, tmp_path: Path) -> None:
    run = tmp_path / "a-run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    assert "a-run is a run and not a model" in desk.open(str(run)).message
    config = json.loads((Path(tiny) / "config.json").read_text())
    (Path(tiny) / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "sab"}}))
    assert "tiny-one is a packed checkpoint, without the full precision" in desk.open(tiny).message


def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    desk: Desk, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(tiny) / "model.safetensors").unlink()
    monkeypatch.setattr(machines, "free_bytes", lambda: 3_000_000)  # the weights take 2.3 MB
    opening = desk.open(tiny)
    assert opening.state == "failed"
    assert "tiny-one takes 2 MB in memory and as much again for a run beside it, and 3 MB are free" in opening.message
    assert "python -m sab quantize" in opening.message


def test_the_least_recently_used_model_goes_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "MOST_MODELS", 2)
    shared = Machine()
    folders = [str(shutil.copytree(tiny_folder(), tmp_path / f"tiny-{number}")) for number in range(3)]
    one, two, three = (Store(folder, [tmp_path], machine=shared) for folder in folders)
    kept = one.kept(4)
    first = one.lvlm
    kept.get("made of it", object)
    _ = two.lvlm
    _ = one.lvlm
    _ = three.lvlm
    assert [each.loaded for each in (one, two, three)] == [True, False, True]
    again = two.lvlm  # its page asks for it
    assert again.fingerprint == first.fingerprint
    assert [each.loaded for each in (one, two, three)] == [False, True, True]
    assert one.fingerprint == first.fingerprint  # known without the weights
    built: list[int] = []
    kept.get("made of it", lambda: built.append(1))
    assert built  # what was made of the weights went with them


def test_models_are_loaded_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, load = Machine(), models.load
    at_once: list[int] = []
    inside: list[str] = []

    def slow(place: str) -> Any:
        inside.append(place)
        at_once.append(len(inside))
        time.sleep(0.2)
        found = load(place)
        inside.remove(place)
        return found

    monkeypatch.setattr(models, "load", slow)
    desk = Desk(tmp_path / "runs", machine=shared)
    folders = [str(shutil.copytree(tiny_folder(), tmp_path / f"tiny-{number}")) for number in range(3)]
    stores = [Store(folder, [tmp_path], machine=shared) for folder in folders[:2]]
    for store in stores:
        store.load_in_background()
    assert desk.open(folders[2]).state == "done"
    assert len({store.lvlm.fingerprint for store in stores}) == 1
    assert at_once == [1, 1, 1]


def test_other_models_make_room_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Machine()
    folders = [str(shutil.copytree(tiny_folder(), tmp_path / f"tiny-{number}")) for number in range(2)]
    one, two = (Store(folder, [tmp_path], machine=shared) for folder in folders)
    _ = one.lvlm
    monkeypatch.setattr(machines, "free_bytes", lambda: 1_000_000 if one.loaded else 9_000_000)
    _ = two.lvlm
    assert (one.loaded, two.loaded) == (False, True)
    monkeypatch.setattr(machines, "free_bytes", lambda: 1_000_000)
    with pytest.raises(SabError, match="tiny-0 takes 2 MB"):
        _ = one.lvlm
    assert not two.loaded


def test_only_so_many_are_opened_at_once(desk: Desk, tmp_path: Path) -> None:
    desk.machine.loading.acquire()  # nothing gets beyond waiting
    folders = [str(shutil.copytree(tiny_folder(), tmp_path / f"tiny-{number}")) for number in range(MOST_AT_ONCE + 1)]
    tickets = [desk.openings.ask(folder)[1] for folder in folders[:-1]]
    with pytest.raises(SabError, match="models are being opened already"):
        desk.openings.ask(folders[-1])
    again = desk.openings.ask(folders[0])[1]
    assert desk.openings.find(again) is desk.openings.find(tickets[0])  # one opening for both who asked
    desk.openings.leave(tickets[0])
    assert not desk.openings.find(again).stop.is_set()  # type: ignore[union-attr]
    desk.openings.leave(again)
    assert desk.openings.find(again).stop.is_set()  # type: ignore[union-attr]
    for ticket in tickets[1:]:
        desk.openings.leave(ticket)
    desk.machine.loading.release()
    assert {ended(desk.openings, ticket).state for ticket in tickets} == {"stopped"}
    assert not desk.stores


def test_the_dialog_is_told_bytes_percent_and_the_time_left() -> None:
    opening = Opening(NAME)
    assert (view(opening)["stage"], view(opening)["share"]) == ("Looking it up", None)
    opening.state = "running"
    opening.begin("Downloading", "bytes")
    opening.advance(1_000_000_000, 7_000_000_000)
    assert view(opening)["left"] == ""  # too early to say
    opening.since = (time.monotonic() - 10, 1_000_000_000)
    opening.advance(2_000_000_000, 7_000_000_000)
    shown = view(opening)
    assert shown["stage"] == "Downloading: 2.0 GB of 7.0 GB"
    assert shown["share"] == pytest.approx(2 / 7)
    assert shown["left"] == "about 50 seconds left"
    opening.begin("Loading")
    opening.advance(10, 40)
    assert (view(opening)["stage"], view(opening)["share"]) == ("Loading", 0.25)


def test_a_space_names_the_models_that_it_offers_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import app

    monkeypatch.setenv("SAB_ALLOW_MODELS", "some/one, some/two,")
    assert app.offers(app.parse(["--allow-model", "a/third", "--host", "0.0.0.0"])) == Offers(
        None, ("some/one", "some/two", "a/third")
    )
    assert app.offers(app.parse([])).free
    monkeypatch.setenv("SPACE_ID", "somebody/sab-lens")
    assert not app.offers(app.parse([])).free
    assert app.offers(app.parse(["--any-model"])).free


# --- from a hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as running:
        running.repositories[NAME] = Path(shutil.copytree(tiny_folder(), tmp_path / "served"))
        ask_here(monkeypatch, running, tmp_path / "cache")
        yield running


def test_a_model_of_the_hub_is_downloaded_and_keeps_its_name(desk: Desk, server: Hub, tmp_path: Path) -> None:
    server.flowing.clear()
    ticket = desk.openings.ask(f"https://huggingface.co/{NAME}")[1]
    opening = desk.openings.find(ticket)
    assert opening is not None
    end = time.monotonic() + 30
    while opening.stage != "Downloading" or not opening.done:
        assert time.monotonic() < end
        time.sleep(0.01)
    shown = view(opening)
    assert shown["state"] == "running"
    assert 0 < shown["share"] < 1
    assert " MB of 2 MB" in shown["stage"]
    server.flowing.set()
    assert ended(desk.openings, ticket).state == "done"
    store = desk.stores["somebody--tiny-qwen"]
    assert (store.model, store.model_name, store.lvlm.source) == (NAME, NAME, NAME)
    assert str(store.place).startswith(str(tmp_path / "cache"))  # a worker process loads the same files


def test_without_the_hub_what_was_downloaded_before_is_opened(desk: Desk, server: Hub, tmp_path: Path) -> None:
    assert desk.open(NAME).state == "done"
    constants.ENDPOINT = "http://127.0.0.1:9"  # the fixture puts it back
    later = Desk(tmp_path / "later")
    assert later.open(NAME).state == "done"
    failed = later.open("somebody/never-seen")
    assert failed.state == "failed"
    assert "The Hugging Face Hub cannot be reached" in failed.message


def test_what_cannot_fit_is_not_downloaded(desk: Desk, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "free_bytes", lambda: 3_000_000)
    assert f"{NAME} takes 2 MB in memory" in desk.open(NAME).message
    assert server.downloads() == ["config.json"]


def test_a_stopped_download_makes_no_page_and_may_be_asked_for_again(desk: Desk, server: Hub) -> None:
    server.flowing.clear()
    ticket = desk.openings.ask(NAME)[1]
    while "model.safetensors" not in server.downloads():
        time.sleep(0.01)
    desk.openings.leave(ticket)
    server.flowing.set()
    assert ended(desk.openings, ticket).state == "stopped"
    assert not desk.stores
    assert desk.open(NAME).state == "done"


# --- the pages


class Visit:
    """The whole application of a site, asked as a browser asks it."""

    def __init__(self, offers: Offers, runs: Path) -> None:
        self.site = Site(Store(None, [runs]), offers, [runs])
        self.blocks = self.site.blocks(self.site.first)
        app = App.create_app(self.blocks, app_kwargs=self.site.app_options())
        self.client = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)

    def call(self, function: str, sent: Any, page: str = "/", **headers: str) -> dict[str, Any]:
        """What a server function of the dialog on a page answers."""
        config = self.client.get(f"{page}config").json()
        dialog = next(
            each for each in config["components"] if "mountModels" in str(each["props"].get("js_on_load", ""))
        )
        body = {"session_hash": "s", "component_id": dialog["id"], "fn_name": function, "data": sent}
        answer = self.client.post(f"{page}gradio_api/component_server", json=body, headers=headers)
        assert answer.status_code == 200
        return dict(answer.json())

    def open(self, model: str, page: str = "/") -> dict[str, Any]:
        asked = self.call("open", {"model": model}, page)
        assert asked["ticket"]
        while not (answer := self.call("progress", {"ticket": asked["ticket"]}, page))["ended"]:
            time.sleep(0.02)
        return answer


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[Visit]:
    made = Visit(Offers(free=True, local=True), tmp_path / "runs")
    with made.client:
        yield made


def test_each_model_has_a_page_of_its_own_and_each_page_leads_to_the_others(visit: Visit, tiny: str) -> None:
    answer = visit.open(tiny)
    assert (answer["view"]["state"], answer["place"]) == ("done", f"m/{slug(tiny)}/")
    page = f"/{answer['place']}"
    shown = visit.client.get(page)
    assert shown.status_code == 200
    assert "tiny-one · SAB Lens" in shown.text
    store = next(each for each in visit.site.first.machine._residents if isinstance(each, Store) and each.model == tiny)
    if chosen_library() is not None:
        assert store._kernel_ready.wait(60)  # its runs are computed on as they are packed
    first, second = visit.client.get("/config").json(), visit.client.get(f"{page}config").json()
    assert second["root"] == f"http://127.0.0.1:7860/m/{slug(tiny)}"
    assert first["app_id"] != second["app_id"]
    assert not {each["id"] for each in first["components"]} & {each["id"] for each in second["components"]}
    rows = {row["model"]: row for row in visit.call("models", {}, page)["rows"]}
    assert (rows[tiny]["note"], rows["embedded"]["note"]) == ("this page", "open")
    assert visit.call("open", {"model": "embedded"}, page) == {"ticket": "", "place": ""}


def test_an_opening_that_ends_while_it_is_looked_at_is_asked_for_again(
    visit: Visit, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Opening(tiny, state=RUNNING)

    def ends_behind(shown: Opening) -> dict[str, Any]:
        seen = view(shown)
        shown.end(DONE)
        return seen

    monkeypatch.setattr(chooser, "view", ends_behind)
    monkeypatch.setattr(Openings, "find", lambda self, ticket: opening)
    answers = [visit.call("progress", {"ticket": "one"}) for _ in range(2)]
    assert [(answer["view"]["state"], answer["ended"]) for answer in answers] == [(RUNNING, False), (DONE, True)]


def test_a_link_to_a_model_that_is_not_open_leads_to_the_dialog(visit: Visit, tiny: str, tmp_path: Path) -> None:
    name = slug(tiny)
    for address in (f"/m/{name}/", f"/m/{name}"):
        answer = visit.client.get(address, params={"tab": "chat", "model": "forged"})
        assert answer.status_code == 307
        place = answer.headers["location"]
        assert str(visit.client.get(address).request.url.join(place)).startswith("http://127.0.0.1:7860/?")
        assert place.endswith(f"?model={name}&tab=chat")
    assert "opened on another machine" in visit.call("models", {"wanted": name})["error"]
    History(tmp_path / "runs" / HISTORY).add(tiny)
    assert visit.call("models", {"wanted": name})["wanted"] == {"model": tiny, "at_once": True}
    # A link alone downloads nothing: for what was not opened before a person has to press the button.
    assert visit.call("models", {"wanted": "some--thing"})["wanted"] == {"model": "some/thing", "at_once": False}
    assert visit.client.get(f"/m/{name}/gradio_api/queue/data").status_code == 404


def test_forged_requests_are_refused_by_the_server(tmp_path: Path, tiny: str, visit: Visit) -> None:
    closed = Visit(Offers(None, ("allowed/one",)), tmp_path / "closed")
    with closed.client:
        for forged in (tiny, "other/one", "", None, 7, ["embedded"], {"model": "embedded"}):
            assert "error" in closed.call("open", {"model": forged})
        assert "error" in closed.call("open", "embedded")
        assert "error" in closed.call("models", {"wanted": slug(tiny)})
        assert [row["model"] for row in closed.call("models", {})["rows"]] == ["embedded", "allowed/one"]
        assert closed.call("progress", {"ticket": "guessed"})["forgotten"]
        assert closed.call("stop", {"ticket": ["guessed"]}) == {}
    elsewhere = {"origin": "https://evil.example"}
    for function in ("open", "models", "stop"):
        assert "did not come from the page" in visit.call(function, {"model": tiny}, **elsewhere)["error"]
    assert "rows" in visit.call("models", {}, origin="http://127.0.0.1:7860")
    assert visit.client.get(f"/m/{slug(tiny)}/").status_code == 307  # nothing was opened


@pytest.mark.parametrize(
    ("headers", "local", "fine"),
    [
        (LOCAL, True, True),
        (LOCAL | {"origin": "http://127.0.0.1:7860"}, True, True),
        (LOCAL | {"origin": "http://127.0.0.1:9999"}, True, False),
        (LOCAL | {"origin": "null"}, True, False),
        ({"host": "evil.example", "origin": "http://evil.example"}, True, False),
        ({"host": "lens.example", "origin": "https://lens.example"}, False, True),
        ({"host": "10.0.0.1", "x-forwarded-host": "lens.example", "origin": "https://lens.example"}, False, True),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True, True),
        ({}, True, False),
    ],
)
def test_where_a_request_comes_from(headers: dict[str, str], local: bool, fine: bool) -> None:
    if fine:
        check_origin(headers, local)
    else:
        with pytest.raises(SabError):
            check_origin(headers, local)


def test_pages_of_one_machine_stand_in_one_line(visit: Visit, tiny: str) -> None:
    visit.open(tiny)
    stores = [each for each in visit.site.first.machine._residents if isinstance(each, Store)]
    other = next(each for each in stores if each.model == tiny)
    assert other.jobs is visit.site.first.jobs
    assert other.gate is visit.site.first.gate
    assert other.device_lock is visit.site.first.device_lock


def test_too_many_pages_let_the_oldest_go(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from viz.pages import site as sites

    monkeypatch.setattr(sites, "MOST_PAGES", 2)
    folders = [str(shutil.copytree(tiny_folder(), tmp_path / f"tiny-{number}")) for number in range(3)]
    for number in (0, 1):
        visit.open(folders[number])
    assert visit.client.get(f"/m/{slug(folders[0])}/").status_code == 200
    visit.open(folders[2])
    codes = [visit.client.get(f"/m/{slug(folder)}/").status_code for folder in folders]
    assert codes == [200, 307, 200]
