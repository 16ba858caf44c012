"""Mutants (`python -m tests.mutants`) break what is there: each has one place in the code as it is now."""

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.claim)
def test_a_mutant_still_has_its_place(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.was) == 1
    assert mutant.now not in text.replace(mutant.was, "")
    paths = mutant.tests.partition(" -k ")[0].split()
    assert all((ROOT / path).exists() for path in paths)
