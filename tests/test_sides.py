"""Which model answers on a side of the chat, and what the page says of it."""

from __future__ import annotations

import shutil

import pytest

from sab import chat, packed
from viz.pages import sides
from viz.pages.store import Store

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]


@pytest.fixture(scope="module")
def store() -> Store:
    """The embedded model and its shipped runs, loaded; whether the kernel is ready is up to the test."""
    made = Store()
    _ = made.lvlm
    return made


@pytest.fixture
def kernel(store: Store) -> None:
    """The C kernel is ready."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert packed.chosen_library() is not None
    store._kernel_ready.set()


def text(store: Store, side: str, simulated: bool) -> str:
    lvlm = sides.model_of(store, side) if simulated else sides.answering_model(store, side)
    return "".join(event.text for event in chat.stream(lvlm, QUESTION, None, max_new_tokens=12))


def test_until_the_kernel_is_ready_a_run_is_simulated(store: Store) -> None:
    store._kernel_ready.clear()
    found = sides.runtime(store, "sab")
    assert found.simulated
    assert "dequantized" in found.kernel
    assert sides.answering_model(store, "sab") is sides.model_of(store, "sab")
    assert sides.side_head(store, "sab")["tags"][-1] == "simulated"


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("run", ["sab", "sab-h", "gptq2", "pb-llm"])
def test_a_packed_run_gives_the_same_answer_in_less_memory(store: Store, run: str) -> None:
    found = sides.runtime(store, run)
    assert not found.simulated
    assert found.kernel.startswith("c ")
    linears = sum(report.weights for report in store.run(run).reports.values())
    full = sides.runtime(store, "").resident_bytes
    assert found.resident_bytes < full - 3.5 * linears  # of the 4 bytes a weight
    assert text(store, run, simulated=False) == text(store, run, simulated=True)
    assert sides.side_head(store, run)["tags"][-1] == "packed kernel"


@pytest.mark.usefixtures("kernel")
def test_what_the_kernel_cannot_hold_stays_simulated(store: Store) -> None:
    assert sides.runtime(store, "sab~gptq2").simulated  # a run's layers laid over another
    assert not sides.runtime(store, "").simulated
    assert sides.side_head(store, "")["tags"] == []
