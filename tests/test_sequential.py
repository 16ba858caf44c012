import itertools
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sab import calibrated, runs, sensitivities, sequential
from sab.errors import SabError
from sab.models import LVLM, fingerprint
from sab.recipes import Recipe
from sab.runs import LinearReport, Run
from tests.tiny import dialogues, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
QUICK = Recipe(model="tiny", method="sab", iterations=2, max_salient=4)
SAMPLES = dialogues(5)


def _quantize(directory: Path | None, recipe: Recipe = QUICK, **options: object) -> Iterator[LinearReport]:
    return sequential.quantize(tiny(), recipe, directory, samples=SAMPLES, **options)  # type: ignore[arg-type]


def _files(directory: Path) -> dict[str, bytes]:
    """Codes and sensitivities; reports hold times and differ."""
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.rglob("*.safetensors"))
        if not path.name.startswith(".tmp-")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    list(_quantize(directory))
    return directory


def test_a_run_reports_every_linear_in_order_and_leaves_its_weights_in_the_model(tmp_path: Path) -> None:
    lvlm = tiny()
    original = tiny()
    reports = list(sequential.quantize(lvlm, QUICK, tmp_path / "run", samples=SAMPLES))
    assert [report.name for report in reports] == list(lvlm.decoder_linears)
    assert [report.done for report in reports] == list(range(1, 15))
    assert reports[-1].eta_seconds == 0
    run = Run.open(tmp_path / "run")
    assert run.finished
    for report in reports:
        weight = lvlm.linears[report.name].weight
        assert torch.equal(weight, run.codes(report.name).dense())
        assert not torch.equal(weight, original.linears[report.name].weight)
        assert 0 < report.relative_loss < 1
        assert report.bits_all_in > report.bits_nominal >= 1
        assert sum(report.counts.values()) == report.weights
        assert report.tokens_vision == 4 * sum(sample.picture is not None for sample in SAMPLES)
    for name, linear in lvlm.linears.items():
        if lvlm.info[name].part != "decoder":
            assert torch.equal(linear.weight, original.linears[name].weight)


@pytest.mark.parametrize("stopped_after", [1, 3, 7, 10])  # blocks have seven linears
def test_a_killed_run_ends_with_the_same_bytes(whole: Path, tmp_path: Path, stopped_after: int) -> None:
    first = _quantize(tmp_path / "run")
    for _ in range(stopped_after):
        next(first)
    del first  # the process dies here
    (tmp_path / "run" / "codes" / ".tmp-dead").write_bytes(b"half a file")
    assert not Run.open(tmp_path / "run").finished
    reports = list(_quantize(tmp_path / "run"))
    assert len(reports) == 14
    assert _files(tmp_path / "run") == _files(whole)
    assert Run.open(tmp_path / "run").finished
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_codes_without_their_report_are_fitted_again(whole: Path, tmp_path: Path) -> None:
    first = _quantize(tmp_path / "run")
    names = [next(first).name for _ in range(3)]
    del first
    (tmp_path / "run" / "reports" / f"{names[-1]}.json").unlink()
    list(_quantize(tmp_path / "run"))
    assert _files(tmp_path / "run") == _files(whole)


def test_a_stop_keeps_what_is_done_and_can_be_continued(whole: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    done = []
    for report in _quantize(tmp_path / "run", stop=stop):
        done.append(report.name)
        if len(done) == 9:
            stop.set()
    assert len(done) == 10  # k and v have one input and are fitted together
    run = Run.open(tmp_path / "run")
    assert list(run.reports) == done
    assert not run.finished
    list(_quantize(tmp_path / "run"))
    assert _files(tmp_path / "run") == _files(whole)


@pytest.mark.parametrize("stage", ["calibration samples", "input sensitivities"])
def test_a_stop_is_heard_before_the_first_linear(whole: Path, tmp_path: Path, stage: str) -> None:
    stop = threading.Event()
    heard: list[str] = []

    def hear(now: str, share: float) -> None:
        heard.append(now)
        if now == stage:
            stop.set()

    assert not list(_quantize(tmp_path / "run", stop=stop, progress=hear))
    assert heard[-1] == stage
    assert heard.count(stage) == 1
    log = (tmp_path / "run" / "events.jsonl").read_text()
    assert '"stopped"' in log
    list(_quantize(tmp_path / "run"))
    assert _files(tmp_path / "run") == _files(whole)


def test_a_finished_run_is_only_read_again(whole: Path) -> None:
    before = (whole / "manifest.json").read_bytes()
    lvlm = tiny()
    assert len(list(sequential.quantize(lvlm, QUICK, whole, samples=SAMPLES))) == 14
    assert (whole / "manifest.json").read_bytes() == before
    name = next(iter(lvlm.decoder_linears))
    assert torch.equal(lvlm.linears[name].weight, Run.open(whole).codes(name).dense())


def test_other_calibration_samples_give_other_codes(whole: Path, tmp_path: Path) -> None:
    list(sequential.quantize(tiny(), QUICK, tmp_path / "other", samples=dialogues(6)))
    same = _files(whole)
    other = _files(tmp_path / "other")
    assert same.keys() == other.keys()
    assert all(same[name] != other[name] for name in same)


def test_compensation_sees_the_binarized_predecessors_but_maps_do_not(tmp_path: Path) -> None:
    """Binarizing block 0 as well changes the codes of block 1, and not its sensitivities."""
    later = tuple(name for name in tiny().decoder_linears if ".layers.1." in name)
    alone = Recipe(model="tiny", method="gptq4", linears=later)
    both = Recipe(model="tiny", method="gptq4")
    for name, recipe in (("alone", alone), ("both", both)):
        list(_quantize(tmp_path / name, recipe))
    first, second = Run.open(tmp_path / "alone"), Run.open(tmp_path / "both")
    assert list(first.reports) == list(later)
    for name in later:
        assert not torch.equal(first.codes(name).dense(), second.codes(name).dense())
        maps = first.sensitivity(name), second.sensitivity(name)
        assert maps[0] is not None
        assert maps[1] is not None
        assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


def test_a_subset_leaves_the_other_linears_alone() -> None:
    lvlm, original = tiny(), tiny()
    name = "model.language_model.layers.1.mlp.gate_proj"
    recipe = Recipe(model="tiny", method="xnor", linears=(name,))
    assert [report.name for report in sequential.quantize(lvlm, recipe, samples=SAMPLES)] == [name]
    changed = [n for n in lvlm.linears if not torch.equal(lvlm.linears[n].weight, original.linears[n].weight)]
    assert changed == [name]


def test_sensitivities_can_be_shared_between_runs(whole: Path, tmp_path: Path) -> None:
    shared = sensitivities.maps(tiny(), SAMPLES)
    list(_quantize(tmp_path / "run", sensitivities=shared))
    assert _files(tmp_path / "run") == _files(whole)
    with pytest.raises(SabError, match="do not cover"):
        list(_quantize(None, sensitivities={}))


def test_a_fisher_run_keeps_both_kinds(tmp_path: Path) -> None:
    recipe = Recipe(model="tiny", method="sab", iterations=1, max_salient=2, sensitivity="fisher")
    list(_quantize(tmp_path / "run", recipe))
    run = Run.open(tmp_path / "run")
    for name, report in run.reports.items():
        fisher, plain = run.sensitivity(name, "fisher"), run.sensitivity(name, "input")
        assert fisher is not None
        assert plain is not None
        assert fisher[0].shape == report.shape
        assert plain[0].shape == report.shape[1:]


@pytest.mark.parametrize("method", ["xnor", "sab-h"])
def test_linears_of_one_input_share_a_factor(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v, then o, gate and up, down: four factorings a block, so none is missing and none is done twice."""
    factored: list[tuple[int, ...]] = []
    inner = sequential.factor_hessian

    def factor_hessian(hessian: torch.Tensor, damping: float) -> Any:
        factored.append(tuple(hessian.shape))
        return inner(hessian, damping)

    monkeypatch.setattr(sequential, "factor_hessian", factor_hessian)
    lvlm = tiny()
    recipe = replace(QUICK, method=method, iterations=1, refine=0 if method == "sab-h" else None)
    reports = list(sequential.quantize(lvlm, recipe, samples=SAMPLES))
    assert len(reports) == 7 * len(lvlm.blocks)
    assert len(factored) == 4 * len(lvlm.blocks)


def test_q_k_and_v_share_their_input_sensitivity() -> None:
    maps = sensitivities.maps(tiny(), SAMPLES)
    block = "model.language_model.layers.0."
    query, value, output = (maps[f"{block}self_attn.{kind}_proj"] for kind in ("q", "v", "o"))
    assert torch.equal(query[0], value[0])
    assert not torch.equal(query[0], output[0])
    assert not torch.equal(query[0], query[1])


# --- vision tower and projector

EVERY = replace(QUICK, parts=("vision", "projector", "decoder"), method="xnor")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LVLM, dict[str, torch.Tensor]]:
    """An uninterrupted run of all parts, the model after it, and the Hessian each linear was fitted with."""
    directory = tmp_path_factory.mktemp("every") / "run"
    given: dict[str, torch.Tensor] = {}
    fit = sequential.fit_linears

    def spy(*arguments: Any, **named: Any) -> Any:
        given.update(dict.fromkeys(named["names"], named["hessian"].hessian))
        return fit(*arguments, **named)

    lvlm = tiny()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sequential, "fit_linears", spy)
        list(sequential.quantize(lvlm, EVERY, directory, samples=SAMPLES))
    return directory, lvlm, given


def inputs_of(lvlm: LVLM, names: Sequence[str], with_text: bool) -> dict[str, torch.Tensor]:
    """What linears see over the samples, one ordinary forward pass per sample: [tokens, m]."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [
        lvlm.linears[name].register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(inputs[0].flatten(0, -2))
        )
        for name in names
    ]
    for sample in SAMPLES:
        if with_text or sample.picture is not None:
            with torch.no_grad():
                lvlm.model(**lvlm.forward_arguments(lvlm.prepare(sample.messages, sample.picture)))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def test_every_part_is_fitted_to_what_the_binarized_parts_before_it_pass_on(
    every: tuple[Path, LVLM, dict[str, torch.Tensor]],
) -> None:
    directory, lvlm, given = every
    run = Run.open(directory)
    assert run.finished
    assert list(run.reports) == list(lvlm.linears)
    fresh = tiny()
    places = [(info.part, info.block) for info in fresh.info.values()]
    assert list(dict.fromkeys(places)) == [
        *(("vision", 0), ("vision", 1), ("projector", -1)),
        *(("decoder", 0), ("decoder", 1)),
    ]
    for place in dict.fromkeys(places):
        inside = [name for name in fresh.linears if (fresh.info[name].part, fresh.info[name].block) == place]
        for name, rows in inputs_of(fresh, inside, with_text=place[0] == "decoder").items():
            torch.testing.assert_close(given[name], 2 * rows.T @ rows / len(rows), rtol=1e-3, atol=1e-3)
        for name in inside:
            runs.put_weight(fresh, name, run.codes(name).dense())
    for report in run.reports.values():
        assert torch.equal(lvlm.linears[report.name].weight, run.codes(report.name).dense())
        assert report.part == lvlm.info[report.name].part
        only_vision = report.part != "decoder"
        assert (report.tokens_language == 0) == only_vision
        assert (report.switched_off == sequential.ONLY_VISION) == only_vision
        assert (report.counts["neither"] == report.weights) == only_vision
    tokens = {(report.part, report.tokens_vision) for report in run.reports.values()}
    assert tokens == {("vision", 16 * 4), ("projector", 4 * 4), ("decoder", 4 * 4)}


@pytest.mark.parametrize("stopped_after", [3, 11])  # in the tower; in the projector
def test_a_killed_run_of_every_part_ends_with_the_same_bytes(
    every: tuple[Path, LVLM, dict[str, torch.Tensor]], tmp_path: Path, stopped_after: int
) -> None:
    first = _quantize(tmp_path / "run", EVERY)
    for _ in range(stopped_after):
        next(first)
    del first
    assert len(list(_quantize(tmp_path / "run", EVERY))) == 26
    assert _files(tmp_path / "run") == _files(every[0])


def test_maps_of_the_decoder_do_not_depend_on_the_parts(
    whole: Path, every: tuple[Path, LVLM, dict[str, torch.Tensor]]
) -> None:
    one, two = Run.open(whole).sensitivities(), Run.open(every[0]).sensitivities()
    assert one.keys() == two.keys()
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], two[name], strict=True))


def test_the_tower_alone_is_said_to_have_no_map_and_ignores_beta() -> None:
    lvlm, original = tiny(), tiny()
    recipe = replace(QUICK, parts=("vision",), beta=0.0, compensation="lineage")
    with pytest.warns(UserWarning, match=r"blocks\.0\.attn\.qkv: only vision tokens exist") as said:
        reports = list(sequential.quantize(lvlm, recipe, samples=SAMPLES))
    assert len([each for each in said if "only vision" in str(each.message)]) == 1
    assert len([each for each in said if "64 vision tokens calibrate" in str(each.message)]) == 1
    assert len(reports) == 10
    for name, linear in lvlm.linears.items():
        assert torch.equal(linear.weight, original.linears[name].weight) == (lvlm.info[name].part != "vision")


def test_parts_that_cannot_be_reached_are_refused() -> None:
    text = [sample for sample in dialogues(9) if sample.picture is None]
    with pytest.raises(SabError, match="has a picture"):
        next(sequential.quantize(tiny(), EVERY, samples=text))
    lvlm = tiny()
    lvlm.info = {name: replace(info, part="vision") for name, info in lvlm.info.items()}
    with pytest.raises(SabError, match="as its projector"):
        next(sequential.quantize(lvlm, EVERY, samples=SAMPLES))
    with pytest.raises(SabError, match="no linear"):
        next(_quantize(None, replace(QUICK, linears=("model.visual.merger.mlp.0",))))  # not of the decoder


# --- what is not as it should be


def test_a_raised_damping_is_noted_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    combine = sequential.combine

    def indefinite(*arguments: Any) -> torch.Tensor:
        hessian = combine(*arguments)
        return hessian - 0.05 * hessian.diagonal().mean() * torch.eye(len(hessian))

    monkeypatch.setattr(sequential, "combine", indefinite)
    recipe = Recipe(model="tiny", method="xnor", linears=tuple(tiny().decoder_linears)[:3])
    with pytest.warns(UserWarning, match=r"q_proj: .* damping of 0\.1 instead of 0\.01") as said:
        reports = list(_quantize(None, recipe))
    assert [report.damping_used for report in reports] == pytest.approx([0.1] * 3)
    assert len([each for each in said if "damping" in str(each.message)]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("sensitivity", ["input", "fisher"])
def test_activations_that_are_not_finite_name_the_linear_that_meets_them(
    tmp_path: Path, value: float, sensitivity: str
) -> None:
    lvlm = tiny()
    lvlm.blocks[1].input_layernorm.weight.data.fill_(value)
    recipe = replace(QUICK, sensitivity=sensitivity)
    with pytest.raises(SabError, match=r"layers\.1\..*(NaN|infinity)"):
        list(sequential.quantize(lvlm, recipe, tmp_path / "run", samples=SAMPLES))
    assert not Run.open(tmp_path / "run").finished
    assert not any(_files(tmp_path / "run"))


def test_activations_that_are_not_finite_are_found_before_any_fit_of_their_block() -> None:
    clean = sensitivities.maps(tiny(), SAMPLES)
    lvlm = tiny()
    lvlm.linears["model.language_model.layers.1.self_attn.v_proj"].bias.data.fill_(float("nan"))
    done: list[int] = []
    running = sequential.quantize(lvlm, QUICK, samples=SAMPLES, sensitivities=clean)
    with pytest.raises(SabError, match=r"layers\.1\.self_attn\.o_proj: its calibration activations"):
        done.extend(report.block for report in running)
    assert done == [0] * 7
    with pytest.raises(SabError, match=r"layers\.1\..*: its Fisher information"):
        sensitivities.maps(lvlm, SAMPLES, "fisher")


def test_a_weight_that_is_not_finite_is_named() -> None:
    lvlm = tiny()
    name = list(lvlm.decoder_linears)[3]
    lvlm.linears[name].weight.data[0, 0] = float("nan")
    lvlm.fingerprint = fingerprint(lvlm.model.config, lvlm.linears.items())
    with pytest.raises(SabError, match=r"layers\.0\.(self_attn\.o_proj|mlp)"):
        list(sequential.quantize(lvlm, QUICK, samples=SAMPLES))


def test_few_tokens_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="vision tokens calibrate linears of up to 256 inputs"):
        next(_quantize(None))


def test_text_only_calibration_switches_the_map_off() -> None:
    """Without vision tokens there is nothing to compare, so no weight is given a class."""
    text = [sample for sample in dialogues(9) if sample.picture is None]
    report = next(sequential.quantize(tiny(), QUICK, samples=text))
    assert report.tokens_vision == 0
    assert report.counts["neither"] == report.weights


def test_a_budget_that_is_too_small_is_said_once() -> None:
    recipe = replace(QUICK, method="sab-h", search="budget", bits=1.0, iterations=1, block_size=256, refine=0)
    with pytest.warns(UserWarning, match=r"budget of 1; ") as said:
        reports = list(itertools.islice(sequential.quantize(tiny(), recipe, samples=dialogues(2)), 3))
    assert all(report.bits_all_in > 1 for report in reports)
    assert sum("budget" in str(each.message) for each in said) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*budget.*")
        next(sequential.quantize(tiny(), replace(recipe, bits=3.9), samples=dialogues(2)))


def test_a_run_goes_on_in_the_type_it_was_begun_in(tmp_path: Path) -> None:
    first = _quantize(tmp_path / "run")
    next(first)
    del first
    reduced = tiny()
    reduced.model.to(torch.bfloat16)
    with pytest.raises(SabError, match="begun in float32, not in bfloat16: go on with --dtype float32"):
        next(sequential.quantize(reduced, QUICK, tmp_path / "run", samples=SAMPLES))


def test_a_source_without_samples_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    recipe = replace(QUICK, calibration=str(tmp_path / "empty.jsonl"), linears=None)
    with pytest.raises(SabError, match=r"empty\.jsonl"):
        list(sequential.quantize(tiny(), recipe, tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())
    assert next(_quantize(tmp_path / "run")).name


def test_foreign_and_damaged_directories_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SabError, match="another recipe"):
        next(_quantize(whole, Recipe(model="tiny", method="xnor")))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(SabError, match="holds no run"):
        next(_quantize(tmp_path / "notes"))
    assert (tmp_path / "notes" / "diary.txt").read_text() == "mine"
    with pytest.raises(SabError, match="is a file"):
        next(_quantize(tmp_path / "notes" / "diary.txt"))
    first = _quantize(tmp_path / "run")
    name = next(first).name
    del first
    path = tmp_path / "run" / "codes" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(SabError, match="checksum"):
        list(_quantize(tmp_path / "run"))


def test_continuing_under_other_conditions_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(_quantize(tmp_path / "run"))
    monkeypatch.setattr(runs.platform, "machine", lambda: "another")
    with pytest.warns(UserWarning, match="other versions, threads, processes or hardware"):
        next(_quantize(tmp_path / "run"))


def test_a_full_disk_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = _quantize(tmp_path / "run")
    done = [next(running).name, next(running).name]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(runs.os, "fsync", full)
        with pytest.raises(SabError, match=r"No space left on device.*finished linears of a run are kept"):
            next(running)
    assert list(Run.open(tmp_path / "run").reports) == done
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    assert len(list(_quantize(tmp_path / "run"))) == 14


def test_a_binarized_model_and_unknown_linears_are_refused() -> None:
    lvlm = tiny()
    recipe = Recipe(model="tiny", method="xnor")
    list(sequential.quantize(lvlm, recipe, samples=SAMPLES))
    with pytest.raises(SabError, match="binarized before"):
        next(sequential.quantize(lvlm, recipe, samples=SAMPLES))
    with pytest.raises(SabError, match="no linear 'lm_head'"):
        next(_quantize(None, Recipe(model="tiny", linears=("lm_head",))))
    with pytest.raises(SabError, match="choose input or fisher"):
        sensitivities.maps(tiny(), SAMPLES, "taylor")


def test_a_run_of_the_tower_alone_reads_no_decoder_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the samples went through to the decoder")

    monkeypatch.setattr(calibrated, "capture", read)
    recipe = replace(QUICK, parts=("vision",), method="xnor")
    assert len(list(sequential.quantize(tiny(), recipe, samples=SAMPLES))) > 0
