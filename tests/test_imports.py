"""The house rules on imports, read off the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("sab/**/*.py"), *ROOT.glob("viz/**/*.py"), ROOT / "app.py"])
# The algorithm, in the order in which it runs; a stage sees the ones before it.
STAGES = ("errors", "devices", "hessian", "significance", "stack", "structure", "binarizers", "layout", "packing")
STAGES += ("compensate",)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run on import: not functions, not what is for the type checker alone."""
    found: list[ast.stmt] = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        found.append(statement)
        waiting += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
    return found


def imports(path: Path, on_import_only: bool = False) -> set[str]:
    """Dotted names of everything a file imports; `from sab import models` counts as sab.models."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = top_level(tree) if on_import_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                names.add(deeper if _is_module(deeper) else str(node.module))
    return names


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def outside(names: set[str], allowed: tuple[str, ...]) -> set[str]:
    """Imports that are neither allowed nor of the standard library."""
    return {
        name
        for name in names
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name == entry or name.startswith(entry + ".") for entry in allowed)
    }


def files(pattern: str) -> list[Path]:
    found = sorted(ROOT.glob(pattern))
    assert found, f"nothing matches {pattern}: the rule would hold for no file"
    return found


@pytest.mark.parametrize("path", files("sab/**/*.py"), ids=module_name)
def test_the_pipeline_knows_nothing_of_the_page(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("viz", "gradio", "plotly", "app", "tests")}


@pytest.mark.parametrize("path", files("viz/figures/*.py"), ids=module_name)
def test_figures_draw_arrays_and_nothing_else(path: Path) -> None:
    allowed = ("viz.theme", "viz.downsample", "viz.figures", "numpy", "pandas", "plotly")
    assert not outside(imports(path), allowed)


def test_theme_and_pooling_stand_alone() -> None:
    assert not outside(imports(ROOT / "viz/theme.py"), ("plotly",))
    assert not outside(imports(ROOT / "viz/downsample.py"), ("numpy",))


@pytest.mark.parametrize("path", files("viz/pages/*.py"), ids=module_name)
def test_pages_do_not_reach_back_to_the_app(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("app", "tests")}


@pytest.mark.parametrize("stage", STAGES)
def test_an_algorithm_file_sees_earlier_stages_only(stage: str) -> None:
    place = ROOT / "sab" / stage
    paths = files(f"sab/{stage}/*.py") if place.is_dir() else [place.with_suffix(".py")]
    earlier = tuple(f"sab.{name}" for name in STAGES[: STAGES.index(stage) + 1])
    for path in paths:
        assert not outside(imports(path), (*earlier, "torch", "triton", "numpy")), path


def test_only_models_knows_families() -> None:
    for path in files("sab/*.py"):
        if path.name not in ("models.py", "configurations.py", "processors.py", "hf.py"):
            assert not {name for name in imports(path) if name.startswith("transformers.models")}, path


def graph(on_import_only: bool) -> dict[str, set[str]]:
    names = {module_name(path) for path in FILES}
    return {module_name(path): imports(path, on_import_only) & names for path in FILES}


def test_imports_form_no_circle() -> None:
    edges = graph(on_import_only=True)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for other in sorted(edges[name] - {name}):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


def test_the_page_is_up_before_torch_is() -> None:
    """Building the page imports neither torch nor transformers, which take seconds."""
    edges = graph(on_import_only=True)
    paths = {module_name(path): path for path in FILES}
    waiting, seen = ["app", "viz.pages.shell"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        heavy = {
            entry
            for entry in imports(paths[name], on_import_only=True)
            if entry.split(".")[0] in ("torch", "transformers", "safetensors")
        }
        assert not heavy, f"{name} imports {heavy} on start"
        waiting += edges[name]
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    assert "viz.pages.explore" in seen
