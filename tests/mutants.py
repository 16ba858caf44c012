"""The tests tried on broken code: `python -m tests.mutants [part of a name …]`.

Each mutant breaks one claim of the method, of the counting or of the runtime, in a copy of the package; the tests
named beside it have to fail there, and pass on the copy as it is. A mutant that lives is a claim that no test holds.
`tests/test_mutants.py` sees to it that every mutant still has a place in the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("sab", "viz", "tests", "assets", "pyproject.toml", "README.md", "app.py")


@dataclass(frozen=True)
class Mutant:
    """`claim` that is broken by putting `now` in the place of `was`, once, in `file`; `tests` that have to fail."""

    claim: str
    file: str
    was: str
    now: str
    tests: str


MUTANTS = (
    Mutant(
        "classes",
        "sab/significance.py",
        "partition[unimodal & (vision > language)] = 2",
        "partition[unimodal & (vision > language)] = 1",
        "tests/test_significance.py",
    ),
    Mutant(
        "sparsity",
        "sab/significance.py",
        "return ((ROOT_TWO - ratio) /",
        "return ((ratio - 1.0) /",
        "tests/test_significance.py",
    ),
    Mutant(
        "integration",
        "sab/significance.py",
        "(1.0 - unimodal_ratio) + (2.0 * unimodal_ratio - 1.0) * sparsity",
        "unimodal_ratio + (1.0 - 2.0 * unimodal_ratio) * sparsity",
        "tests/test_significance.py",
    ),
    Mutant(
        "hessian of a mean",
        "sab/hessian.py",
        "(2.0 / self.tokens)",
        "(1.0 / self.tokens)",
        "tests/test_hessian.py",
    ),
    Mutant(
        "mix of modalities",
        "sab/hessian.py",
        "(1.0 - beta) * language + beta * vision",
        "beta * language + (1.0 - beta) * vision",
        "tests/test_hessian.py",
    ),
    Mutant(
        "exact compensation",
        "sab/compensate.py",
        "            if lineage:\n",
        "            if not lineage:\n",
        "tests/test_compensate.py -k compensation",
    ),
    Mutant(
        "direction of compensation",
        "sab/compensate.py",
        "remaining[:, stop:] -= error @ carry",
        "remaining[:, stop:] += error @ carry",
        "tests/test_compensate.py -k compensation",
    ),
    Mutant(
        "number of salient columns",
        "sab/structure.py",
        "return stack.sums(energy).argmax(1) + 1",
        "return stack.sums(energy).argmax(1) + 2",
        "tests/test_structure.py",
    ),
    Mutant(
        "break-point",
        "sab/structure.py",
        "energy += explained_energy(values.shape[1] - number, whole - at_cut, below_high, order)",
        "energy -= explained_energy(values.shape[1] - number, whole - at_cut, below_high, order)",
        "tests/test_structure.py",
    ),
    Mutant(
        "scales are least squares",
        "sab/binarizers/alternate.py",
        "torch.cat([column, column.square()])",
        "torch.cat([column, column])",
        "tests/test_binarizers.py",
    ),
    Mutant(
        "the loss is weighted by the square of the map",
        "sab/binarizers/alternate.py",
        "mask * weighting.square()",
        "mask * weighting",
        "tests/test_binarizers.py",
    ),
    Mutant(
        "means of BiLLM add up",
        "sab/binarizers/billm.py",
        "mean_total = mean_total + mean",
        "mean_total = mean",
        "tests/test_binarizers.py",
    ),
    Mutant(
        "feedback of GPTQ",
        "sab/binarizers/gptq.py",
        "settled = settle(weight, context.inverse_factor, Levels(step, zero, bits))",
        "settled = weight",
        "tests/test_compensate.py tests/test_binarizers.py -k gptq",
    ),
    Mutant(
        "codes survive packing",
        "sab/packing.py",
        "planes = [(codes.levels >> bit & 1).bool()",
        "planes = [(codes.levels >> (codes.bits - 1 - bit) & 1).bool()",
        "tests/test_packing.py",
    ),
    Mutant(
        "refinement is judged on held-out data",
        "sab/refine.py",
        "return Refinement(refined if after < before else dict(codes)",
        "return Refinement(refined if after > before else dict(codes)",
        "tests/test_refine.py",
    ),
    Mutant(
        "a bit of refinement follows its own gradient",
        "sab/refine.py",
        "half = (weight - replace(codes, group=~codes.group).dense()) / 2",
        "half = (replace(codes, group=~codes.group).dense() - weight) / 2",
        "tests/test_refine.py -k gradient",
    ),
    Mutant(
        "damage of a run is seen",
        "sab/files.py",
        "if vouch(data, identity) != digest:",
        "if vouch(data, identity) == '':",
        "tests/test_faults.py tests/test_runs.py",
    ),
    Mutant(
        "intervals",
        "sab/evaluate.py",
        "spread = Z_95**2 / count",
        "spread = Z_95 / count",
        "tests/test_evaluate.py",
    ),
    Mutant(
        "gaps have a direction",
        "sab/compare.py",
        "np.mean([getattr(a, name) for a in one], 0) - np.mean([getattr(b, name) for b in two], 0)",
        "np.mean([getattr(b, name) for b in two], 0) - np.mean([getattr(a, name) for a in one], 0)",
        "tests/test_compare.py -k gap",
    ),
    Mutant(
        "products of the C kernel",
        "sab/kernels/cpu.c",
        "total = fma3(total, mul(halved, PARAMETER(1)), sub(VALUE(a, 0), VALUE(b, 0)));",
        "total = fma3(total, mul(halved, PARAMETER(1)), add(VALUE(a, 0), VALUE(b, 0)));",
        "tests/test_kernels.py -k exact",
    ),
    Mutant(
        "what a packed linear owns",
        "sab/packed.py",
        "owned = [*self.buffers(), *self.parameters()]",
        "owned = [*self.parameters()]",
        "tests/test_packed.py",
    ),
)


def tried(mutant: Mutant | None, tests: str, folder: Path) -> bool:
    """Whether tests pass on a copy of the project, broken by a mutant or whole."""
    place = folder / "project"
    place.mkdir()
    for name in COPIED:
        if name == "assets":  # large, and no mutant touches it
            (place / name).symlink_to(ROOT / name)
        elif (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place / name)
    if mutant is not None:
        path = place / mutant.file
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.was, mutant.now), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *_arguments(tests)]
    environment = {**os.environ, "PYTHONPATH": str(place)}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True).returncode == 0


def _arguments(tests: str) -> list[str]:
    paths, _, chosen = tests.partition(" -k ")
    return [*paths.split(), *(["-k", chosen] if chosen else [])]


def main() -> int:
    wanted = sys.argv[1:]
    alive = 0
    for mutant in MUTANTS:
        if wanted and not any(part in mutant.claim for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            lives = tried(mutant, mutant.tests, Path(folder))
        alive += lives
        print(f"{'LIVES ' if lives else 'killed'}  {mutant.claim}  ({mutant.file})", flush=True)
    if wanted:
        return int(alive > 0)
    files = {path for mutant in MUTANTS for path in mutant.tests.partition(" -k ")[0].split()}
    with tempfile.TemporaryDirectory() as folder:
        whole = tried(None, " ".join(sorted(files)), Path(folder))
    print("the same tests on the code as it is:", "pass" if whole else "FAIL", flush=True)
    return int(alive > 0 or not whole)


if __name__ == "__main__":
    sys.exit(main())
