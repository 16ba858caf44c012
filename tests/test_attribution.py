"""Swapping linears: what it repairs, what it damages, and that nothing is left changed."""

import threading

import pytest
import torch

from sab import attribution, chat
from sab.attribution import DAMAGE, REPAIR, Probe, attribute, feed, swap_groups, swapped, token_kl
from sab.errors import SabError
from sab.models import LVLM
from tests.tiny import picture, tiny

PROMPT = "What is here?"
ANSWER = [70, 71, 72, 73, 74]


def damaged(lvlm: LVLM, names: list[str], strength: float = 0.5, seed: int = 0) -> LVLM:
    """A copy with noise in the weights of some linears."""
    other = lvlm.copy()
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        weight = other.linears[name].weight.data
        weight += strength * weight.std() * torch.randn(weight.shape, generator=generator)
    return other


def asked(lvlm: LVLM, shown=None):
    return lvlm.prepare(PROMPT, picture() if shown is None else shown)


def test_what_a_swap_computes_is_what_a_whole_pass_computes() -> None:
    full = tiny()
    run = damaged(full, list(full.linears), 0.1)
    inputs = asked(full)
    probe = Probe(run, inputs, ANSWER)
    for name in (list(full.decoder_linears)[3], list(full.decoder_linears)[-1], next(iter(full.linears))):
        mixed = run.copy()
        mixed.linears[name].weight.data.copy_(full.linears[name].weight)
        whole = mixed.model(**mixed.forward_arguments(mixed.extend(inputs, ANSWER))).logits[0, -len(ANSWER) - 1 : -1]
        found = probe.logprobs({name: full.linears[name].weight})
        assert torch.allclose(found, torch.log_softmax(whole, -1), atol=1e-4)


def test_everything_swapped_back_repairs_everything() -> None:
    full = tiny()
    run = damaged(full, list(full.linears), 0.1)
    everything = tuple(full.linears)
    (nothing, repaired, ruined) = attribute(full, run, asked(full), ANSWER, [everything])
    assert nothing.names == ()
    assert float(nothing.kl.min()) > 1e-4
    assert float(repaired.kl.max()) < 1e-6
    assert torch.allclose(ruined.kl, nothing.kl, rtol=1e-3, atol=1e-6)


def test_damage_done_by_hand_to_one_linear_is_ranked_first() -> None:
    full = tiny()
    names = list(full.decoder_linears)
    for culprit in (names[1], names[-2]):
        run = damaged(damaged(full, names, 0.003), [culprit], 0.7, seed=1)
        found = list(attribute(full, run, asked(full), ANSWER))
        whole = float(found[0].kl.mean())
        alone = [swap for swap in found if len(swap.names) == 1]
        singles = {
            direction: {swap.names[0]: float(swap.kl.mean()) for swap in alone if swap.direction == direction}
            for direction in (REPAIR, DAMAGE)
        }
        assert set(singles[REPAIR]) == set(names) == set(singles[DAMAGE])
        assert min(singles[REPAIR], key=singles[REPAIR].get) == culprit
        assert max(singles[DAMAGE], key=singles[DAMAGE].get) == culprit
        assert singles[REPAIR][culprit] < 0.2 * whole


def test_both_models_are_what_they_were() -> None:
    full = tiny()
    run = damaged(full, list(full.decoder_linears), 0.1)
    before = [{name: value.clone() for name, value in each.model.state_dict().items()} for each in (full, run)]
    list(attribute(full, run, asked(full), ANSWER))
    for each, kept in zip((full, run), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in each.model.state_dict().items())


def test_a_swap_puts_every_bit_back_even_after_an_error() -> None:
    lvlm = tiny()
    name = next(iter(lvlm.decoder_linears))
    before = lvlm.linears[name].weight.clone()

    def fail() -> None:
        with swapped(lvlm.linears, {name: torch.zeros_like(before)}):
            assert not bool(lvlm.linears[name].weight.any())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(lvlm.linears[name].weight, before)


def test_the_probabilities_are_those_of_the_stream() -> None:
    lvlm = tiny()
    events = list(chat.stream(lvlm, PROMPT, picture(), max_new_tokens=5))
    tokens = [event.token_id for event in events]
    rows = Probe(lvlm, asked(lvlm), tokens).logprobs()
    assert [float(row[token]) for row, token in zip(rows, tokens, strict=True)] == pytest.approx(
        [event.logprob for event in events], abs=1e-3
    )


def test_only_linears_that_differ_are_swapped_alone_and_by_block() -> None:
    full = tiny()
    first, second, *_, last = full.decoder_linears
    assert swap_groups(full, full.copy()) == []
    groups = swap_groups(full, damaged(full, [first, second, last]))
    assert groups == [(first,), (second,), (last,), (first, second)]


def test_a_stop_ends_it_before_the_next_swap() -> None:
    full = tiny()
    run = damaged(full, list(full.decoder_linears), 0.1)
    stop = threading.Event()
    seen = []
    for each in attribute(full, run, asked(full), ANSWER, stop=stop):
        seen.append(each)
        if len(seen) == 3:
            stop.set()
    assert len(seen) == 3


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(SabError, match="no answer yet"):
        list(attribute(tiny(), tiny(), asked(tiny()), []))


def test_the_feed_is_the_error_of_the_output_at_each_visual_token() -> None:
    full = tiny()
    name = list(full.decoder_linears)[-1]
    run = damaged(full, [name])
    inputs = asked(full)
    probe = Probe(run, inputs, ANSWER)
    outputs = []
    hook = run.linears[name].register_forward_hook(lambda module, given, output: outputs.append((given[0], output)))
    run.model(**run.forward_arguments(run.extend(inputs, ANSWER[:-1])))
    hook.remove()
    given, output = outputs[0]
    visual = run.extend(inputs, ANSWER[:-1])["input_ids"][0] == run.image_token_id
    wanted = (full.linears[name](given) - output).norm(dim=-1)[0]
    found = feed(probe, full.linears[name].weight, run.linears[name].weight, name)
    assert found is not None
    assert torch.allclose(found.error, wanted[visual], rtol=1e-3, atol=1e-5)
    assert found.error_share == pytest.approx(float(wanted[visual].square().sum() / wanted.square().sum()), rel=1e-3)
    assert full.picture_grid(inputs) == (2, 2)
    assert len(found.signal) == 4


def test_without_a_picture_nothing_visual_feeds_a_linear() -> None:
    full = tiny()
    name = next(iter(full.decoder_linears))
    inputs = full.prepare(PROMPT)
    assert full.picture_grid(inputs) is None
    assert feed(Probe(full, inputs, ANSWER), full.linears[name].weight, full.linears[name].weight, name) is None


def test_kl_is_that_of_the_formula_and_never_negative() -> None:
    one = torch.log_softmax(torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), -1)
    other = torch.log_softmax(torch.randn(4, 9, generator=torch.Generator().manual_seed(1)), -1)
    expected = torch.nn.functional.kl_div(other, one, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(token_kl(one, other), expected, atol=1e-6)
    assert float(token_kl(one, one).max()) == 0.0


def test_no_linear_of_the_tower_is_asked_for_its_tokens() -> None:
    full = tiny()
    with pytest.raises(SabError, match="in front of the decoder"):
        attribution.Probe(full, asked(full), ANSWER).inputs_of(next(iter(full.linears)))
