import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sab import bench, cli, cli_checkpoint, files, terminal
from sab.errors import SabError
from sab.runs import Run
from tests.tiny import picture, tiny_folder

MODEL = str(tiny_folder())
QUICK = ["--method", "xnor", "--samples", "2", "--iterations", "1"]


def _call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON of stdout's last line, stderr."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip() else {}, err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["quantize", MODEL, "--out", str(directory), *QUICK]) == 0
    return directory


def test_quantize_ends_with_one_json_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, result, err = _call(capsys, "quantize", MODEL, "--out", tmp_path / "run", *QUICK)
    assert code == 0
    run = Run.open(tmp_path / "run")
    assert run.finished
    assert result["bits_all_in"] == run.bits_all_in > result["bits_nominal"]
    assert result["linears"] == 14
    assert "100 %" in err
    assert "tokens calibrate" in err


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, result, _ = _call(capsys, "quantize", MODEL, "--out", tmp_path / "run", "--dry-run", *QUICK)
    assert (code, result["linears"]) == (0, 14)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_needs_resume(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, _, err = _call(capsys, "quantize", MODEL, "--out", run, *QUICK)
    assert code == 2
    assert "add --resume" in err
    code, result, _ = _call(capsys, "quantize", MODEL, "--out", run, "--resume", *QUICK)
    assert (code, result["finished"]) == (0, True)


def test_eval_measures_a_run_and_stores_it(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, result, err = _call(capsys, "eval", run, "--limit", "9")
    assert code == 0
    assert result["counts"]["overall"] == 9
    assert set(result) >= {"accuracy", "interval", "blank_picture", "perplexity", "tokens_per_second"}
    assert result["divergence"]["kl"] > 0
    assert "overall" in err
    assert Run.open(run).accuracy == result


def test_compare_gives_a_row_per_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, result, _ = _call(
        capsys,
        *("compare", MODEL, "--methods", "full,xnor,rtn2", "--samples", "2", "--limit", "8"),
        *("--out", tmp_path),
    )
    assert code == 0
    assert [row["method"] for row in result["rows"]] == ["full", "xnor", "rtn2"]
    full, xnor, _ = result["rows"]
    assert full["bits_all_in"] == 16
    assert xnor["bits_all_in"] < 2
    assert xnor["divergence"]["kl"] > 0
    assert 0 <= xnor["agreement"] <= 1
    assert Run.open(tmp_path / "xnor").accuracy is not None
    assert (tmp_path / f"full-{Run.open(tmp_path / 'xnor').fingerprint[:12]}" / "accuracy.json").exists()


def test_literature_and_parts_are_ordinary_fields_of_the_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parts = ["--parts", "projector,vision", "--literature"]
    code, result, _ = _call(capsys, "quantize", MODEL, "--out", tmp_path / "run", *QUICK, *parts)
    assert (code, result["linears"]) == (0, 12)
    recipe = Run.open(tmp_path / "run").recipe
    assert (recipe.compensation, recipe.beta, recipe.parts) == ("lineage", 0.0, ("vision", "projector"))
    code, result, _ = _call(capsys, "quantize", MODEL, "--out", tmp_path / "x", "--dry-run", "--keep", "hessian")
    assert code == 0
    asked = result["recipe"]
    assert (asked["compensation"], asked["beta"], asked["parts"], asked["keep"]) == (
        *("exact", None),
        *(["decoder"], "hessian"),
    )


def test_bench_pipeline_times_both_and_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    code, result, err = _call(capsys, "bench", "pipeline", "--size", "128", "--blocks", "1", "--shapes", "none")
    assert code == 0
    assert set(result["seconds_per_block"]) == {"batched", "plain"}
    assert result["ratio"] == pytest.approx(
        result["seconds_per_block"]["plain"] / result["seconds_per_block"]["batched"], rel=0.02
    )
    assert result["losses"]["batched"] == pytest.approx(result["losses"]["plain"], abs=1e-4)
    assert "times as fast" in err


def test_bench_does_not_compare_what_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.CONTENDERS, "plain", lambda weight, context: 0.9 * weight)
    code, _, err = _call(capsys, "bench", "pipeline", "--size", "128", "--blocks", "1", "--shapes", "none")
    assert code == 2
    assert "a defect" in err


@pytest.mark.parametrize("method", ["xnor", "pb-llm"])
def test_inspect_accounts_for_every_byte(
    capsys: pytest.CaptureFixture[str], method: str, run: Path, tmp_path: Path
) -> None:
    if method != "xnor":
        run = tmp_path / "run"
        assert cli.main(["quantize", MODEL, "--out", str(run), *QUICK, "--method", method]) == 0
        capsys.readouterr()
    code, result, _ = _call(capsys, "inspect", run)
    assert code == 0
    on_disk = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    assert result["total_bytes"] == sum(on_disk.values()) == sum(result["files"].values())
    codes = sum(size for path, size in on_disk.items() if path.parent.name == "codes")
    assert result["code_bytes"] + result["header_bytes"] == codes
    assert sum(result["codes"].values()) == result["code_bytes"] == Run.open(run).bytes


def test_chat_streams_and_sums_up(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "p.png")
    code, result, err = _call(
        capsys,
        *("chat", run, "--image", tmp_path / "p.png", "--prompt", "What?", "--max-new-tokens", "5"),
    )
    assert code == 0
    assert result["tokens"] <= 5
    assert result["answer"] in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["quantize"],
        ["quantize", "nowhere/at/all", "--out", "x"],
        ["quantize", MODEL, "--out", "x", "--method", "magic"],
        ["quantize", MODEL, "--out", "x", "--samples", "many"],
        ["quantize", MODEL, "--out", "x", "--samples", "0"],
        ["quantize", MODEL, "--out", "x", "--salient-top-p", "nan"],
        ["quantize", MODEL, "--out", "x", "--linears", "lm_head"],
        ["eval", MODEL, "--limit", "0"],
        ["eval", MODEL, "--suite", "secret"],
        ["eval", "--device", "abacus", "--limit", "1"],
        ["compare", MODEL, "--methods", ""],
        ["compare", MODEL, "--methods", "full,magic"],
        ["quantize", MODEL, "--out", "x", "--parts", "head"],
        ["quantize", MODEL, "--out", "x", "--parts", ""],
        ["quantize", MODEL, "--out", "x", "--keep", "all"],
        ["quantize", MODEL, "--out", "x", "--literature", "--beta", "0.5"],
        ["compare", MODEL, "--literature", "--compensation", "exact"],
        ["bench"],
        ["bench", "dance"],
        ["bench", "pipeline", "--size", "100"],
        ["bench", "pipeline", "--shapes", "13b"],
        ["quantize", MODEL],
        ["bench", "pipeline", "--size", "256", "--blocks", "3"],
        ["inspect", "no-run-here"],
        ["inspect", MODEL],
        ["compare", MODEL, "--methods", "full", "--extend", "no-table-here"],
        ["chat", MODEL, "--prompt", ""],
        ["chat", MODEL, "--prompt", "Hi", "--image", "missing.png"],
        ["chat", MODEL, "--prompt", "Hi", "--temperature", "nan"],
        ["train-demo", "--minutes", "0"],
        ["train-demo", "--minutes", "-1"],
        ["train-demo", "--minutes", "nan"],
        ["train-demo", "--steps", "1", "--cool-down", "nan"],
        ["train-demo", "--steps", "1", "--seed", "99999999999999999999"],
        ["train-demo", "--steps", "1", "--device", "abacus"],
        ["train-demo", "--steps", "1", "--start", "nowhere"],
        ["train-demo", "--steps", "1", "--state", "file"],
        ["train-demo", "--steps", "1", "--out", "file"],
        ["train-demo", "--stage", "dance"],
        ["quantize", MODEL, "--out", "x", "--block-size", "0"],
        ["quantize", MODEL, "--out", "x", "--linears", ""],
        ["quantize", MODEL, "--out", "x", "--device", "meta"],
        ["quantize", "--recipe", "pipe", "--out", "x"],
        ["quantize", MODEL, "--out", "x", "--calibration", "pipe"],
        ["inspect", "piped"],
        ["eval", MODEL, "--limit", "99999999999999"],
        ["chat", MODEL, "--prompt", "Hi", "--image", ""],
        ["chat", MODEL, "--prompt", "Hi", "--image", "pipe"],
        ["chat", MODEL, "--prompt", "Hi", "--seed", "99999999999999999999"],
        ["compare", MODEL, "--methods", "full", "--extend", "pipe"],
        ["compare", MODEL, "--methods", "full", "--table", ""],
        ["compare", MODEL, "--methods", "full", "--table", "file/table.json"],
        ["compare", MODEL, "--methods", "full", "--out", "file"],
        ["controls", MODEL, "--out", "file/controls.json"],
        ["controls", MODEL, "--out", "controls.safetensors"],
        ["causal", MODEL, "--out", "file/causal.json"],
        ["causal", MODEL, "--share", "nan"],
        ["bench", "chat", "--limit", "0"],
        ["bench", "answers", "--limit", "-5"],
        ["bench", "kernels", "--seconds", "nan"],
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the work begins, not after it: no model is loaded where the fault lies in an option."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "piped").mkdir()
    for pipe in ("pipe", "piped/recipe.json"):  # nobody writes to them
        if hasattr(os, "mkfifo"):
            os.mkfifo(pipe)
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("sab: ")
    assert last.endswith(".")
    assert "Traceback" not in err


def test_a_result_that_cannot_be_written_is_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, values: object) -> None:
        raise SabError(f"{path.name} could not be written (No space left on device).")

    monkeypatch.setattr(files, "write_json", full)
    table = tmp_path / "table.json"
    code, result, err = _call(capsys, "compare", MODEL, "--methods", "full", "--limit", "2", "--table", table)
    assert code == 2
    assert "No space left" in err
    assert [row["entry"] for row in result["rows"]] == ["full"]


def test_an_interrupt_says_how_to_continue(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_checkpoint, "_inspect", interrupted)
    assert cli.main(["inspect", "x"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_progress_shows_percent_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = terminal.Progress(stream)
    progress("work", 0.0)
    now[0] += 30
    progress("work", 0.25)
    progress("work", 0.26)  # too soon to be said
    progress("work", 1.0)
    assert stream.getvalue().splitlines() == ["  0 %  work", " 25 %  work, 1:30 left", "100 %  work"]
