"""The plug-in of the lmms-eval harness. The harness itself is no requirement: the parts that the plug-in touches stand
in for it, unless it is installed."""

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sab import chat, checkpoint, sequential
from sab.errors import SabError
from sab.recipes import Recipe
from sab.runs import Run
from tests.tiny import dialogues, picture, tiny, tiny_folder

ROOT = Path(__file__).parents[1]
QUESTION = [{"role": "user", "content": [{"type": "image", "url": picture(1)}, {"type": "text", "text": "What?"}]}]


@dataclass(frozen=True)
class Manifest:
    """The fields of lmms_eval 0.7's ModelManifest."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Base:
    """What lmms_eval.api.model.lmms gives to its subclasses."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.kept: list[Any] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *stored: self.kept.append(stored))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """sab.lmms_eval, beside the harness or what stands in for it."""
    if find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        registry = SimpleNamespace(ModelManifest=Manifest)
        monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "lmms_eval.api.model", SimpleNamespace(lmms=Base))  # type: ignore[arg-type]
    yield import_module("sab.lmms_eval")
    sys.modules.pop("sab.lmms_eval.model", None)


def asked(*questions: Any, **settings: Any) -> tuple[dict[str, Any], list[SimpleNamespace]]:
    """A task's documents by task and split, and the requests of the harness."""
    documents = {"task": {"test": list(questions)}}
    requests = [
        SimpleNamespace(args=(f"context {number}", lambda document: document, settings, number, "task", "test"))
        for number in range(len(questions))
    ]
    return documents, requests


@pytest.fixture
def answers(plugin: ModuleType) -> Callable[..., list[str]]:
    """Ask a model of the harness."""

    def ask(named: object, *questions: Any, **settings: Any) -> list[str]:
        model = import_module("sab.lmms_eval.model").SabModel(str(named), device="cpu", batch_size=1)
        model.task_dict, requests = asked(*questions, **settings)
        return model.generate_until(requests)

    return ask


def said(lvlm: Any, prompt: str, seen: Image.Image | None, tokens: int = 8) -> str:
    return "".join(event.text for event in chat.stream(lvlm, prompt, seen, max_new_tokens=tokens))


def test_the_entry_point_leads_to_a_class_of_the_harness(plugin: ModuleType) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    for target in points.values():
        module, _, name = target.partition(":")
        for manifest in getattr(import_module(module), name)():
            where, _, class_name = manifest.chat_class_path.rpartition(".")
            found = getattr(import_module(where), class_name)
            assert issubclass(found, import_module("lmms_eval.api.model").lmms)
            assert not found.is_simple
            assert not getattr(found, "__abstractmethods__", ())


def test_collecting_models_does_not_wait_for_torch() -> None:
    """The harness imports plug-ins whatever model is asked for."""
    code = "import sys, sab.lmms_eval; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_answers_are_those_of_chat(answers: Callable[..., list[str]]) -> None:
    text = [{"role": "user", "content": "Why?"}]
    expected = [said(tiny(), "What?", picture(1)), said(tiny(), "Why?", None)]
    assert answers(tiny_folder(), QUESTION, text, max_new_tokens=8, temperature=0, num_beams=1) == expected
    assert len(set(expected)) == 2


@pytest.mark.filterwarnings("ignore:.*tokens calibrate")
def test_a_run_and_its_checkpoint_answer_with_its_weights(answers: Callable[..., list[str]], tmp_path: Path) -> None:
    lvlm = tiny()
    recipe = Recipe(model=str(tiny_folder()), method="xnor")
    running = sequential.quantize(lvlm, recipe, tmp_path / "run", samples=dialogues(2))
    next(running)
    with pytest.raises(SabError, match="unfinished"):
        answers(tmp_path / "run", QUESTION)
    list(running)
    run = Run.open(tmp_path / "run")
    checkpoint.export(tiny(), run, tmp_path / "packed")
    expected = said(lvlm, "What?", picture(1))
    assert expected != said(tiny(), "What?", picture(1))
    for named in ("run", "packed"):
        assert answers(tmp_path / named, QUESTION, max_new_tokens=8) == [expected]


def test_an_answer_ends_in_front_of_what_the_task_names(answers: Callable[..., list[str]]) -> None:
    whole = said(tiny(), "What?", picture(1))
    stop = whole[3:5]
    cut = whole[: whole.index(stop)]
    assert answers(tiny_folder(), QUESTION, max_new_tokens=8, until=["\0", stop]) == [cut]
    assert answers(tiny_folder(), QUESTION, max_new_tokens=8, until=stop) == [cut]


def test_sampling_is_asked_for_by_temperature(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("sab.lmms_eval.model")
    heard: list[float] = []
    monkeypatch.setattr(module.chat, "stream", lambda *_, temperature, **__: heard.append(temperature) or iter(()))
    for settings in ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": False}, {"temperature": None}, {}):
        module.answer(tiny(), [], None, settings)
    assert heard == [0.7, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        ([{"type": "image", "url": picture()}] * 2, {}, "has several"),
        ([{"type": "video", "url": "x.mp4"}], {}, "has video"),
        ([{"type": "text", "text": "Why?"}], {"num_beams": 4}, "num_beams=4"),
    ],
)
def test_what_is_not_offered_is_one_sentence(
    answers: Callable[..., list[str]], content: Any, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SabError, match=sentence):
        answers(tiny_folder(), [{"role": "user", "content": content}], **settings)


def test_several_processes_and_batches_are_refused(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = import_module("sab.lmms_eval.model").SabModel
    with pytest.raises(SabError, match="one question at a time"):
        model(str(tiny_folder()), batch_size="4")
    with pytest.raises(NotImplementedError):
        model(str(tiny_folder()), device="cpu").loglikelihood([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SabError, match="one process"):
        model(str(tiny_folder()))


def test_the_dtype_is_as_asked_for(plugin: ModuleType) -> None:
    lvlm = import_module("sab.lmms_eval.model").SabModel(str(tiny_folder()), device="cpu", dtype="bfloat16").lvlm
    assert lvlm.dtype == torch.bfloat16
