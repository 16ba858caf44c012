"""What a person does while gradio is at work: nothing chosen may be dropped, and nothing may go on forever."""

from __future__ import annotations

from collections import Counter

import pytest

from viz.pages.selection import Selection
from viz.pages.shell import page
from viz.pages.store import Store

# Steps that are taken once: while one is under way, asking for it again is a slip of the finger.
STEPS = {"load_file", "_save_name", "begin", "begin_again", "begin_example", "turn_off", "fit_anew", "find", "halt"}
STEPS |= {"layer", "restore", "watch"}  # of the page's own: after a reload


@pytest.fixture(scope="module")
def events() -> list[tuple[str, str, list[tuple[int | None, str]]]]:
    """Of all events of the page that reach the server: the function's name, the trigger mode, what triggers it."""
    functions = page(Store()).fns.values()
    return [(str(each.name), str(each.trigger_mode), each.targets) for each in functions if each.fn is not None]


def test_what_is_set_while_the_server_is_at_work_is_told_afterwards(
    events: list[tuple[str, str, list[tuple[int | None, str]]]],
) -> None:
    dropped = {
        name
        for name, mode, targets in events
        if mode == "once" and not {event for _, event in targets} & {"click", "load"}
    }
    assert dropped == STEPS


def test_what_is_told_again_has_one_listener(events: list[tuple[str, str, list[tuple[int | None, str]]]]) -> None:
    listeners = Counter(target for _, _, targets in events for target in targets if target[0])
    again = {target for _, mode, targets in events if mode == "always_last" for target in targets if target[0]}
    assert again
    assert all(listeners[target] == 1 for target in again)


def test_what_the_browser_sends_is_checked() -> None:
    from viz.pages.signal import selected

    store = Store()
    wrong = {"run": ["x"], "salient_top_p": "nan", "tab": "nowhere"}
    for nonsense in (None, "", [1], wrong, {"salient_top_p": 10**400}):
        assert selected(store, nonsense) == store.resolve(Selection())[0]
    assert selected(store, {"tab": "learn", "salient_top_p": 0.2}).salient_top_p == 0.2
