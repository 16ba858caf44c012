"""Files to take home do not pile up."""

from __future__ import annotations

from viz.pages import downloads


def test_only_the_newest_files_stay() -> None:
    made = []
    for number in range(downloads.MOST + 5):
        path = downloads.place_for("recipe.json")
        path.write_text(str(number))
        made.append(path)
    assert [path.name for path in made] == ["recipe.json"] * len(made)
    assert [path.exists() for path in made] == [False] * 5 + [True] * downloads.MOST
    assert made[-1].read_text() == str(len(made) - 1)
