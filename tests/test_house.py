"""The rules of the house that code cannot say about itself: imports point down, and some things are never imported."""

from __future__ import annotations

import ast
from pathlib import Path

import moectl

PACKAGE = Path(moectl.__file__).parent
# Lower may not import higher; packages on one floor may not import each other. The ground floor's modules may.
FLOORS = [
    {"errors", "units", "staging", "provenance", "plan"},
    {"arch", "checkpoint", "data"},
    {"model"},
    {"conversion", "inspection", "routing", "training"},
    {"report"},
    {"api"},
    {"cli"},
]
# The front doors: `moectl` itself hands out the functions of `api` lazily, `__main__` starts the command.
DOORS = {"__init__", "__main__"}


def part_of(module: str) -> str:
    """`moectl.arch.spec` -> `arch`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in a file, those inside functions and for type checkers included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            found += [(node.lineno, f"moectl.{alias.name}" if node.module == "moectl" else node.module) for alias in node.names]
    return found


def wrong_imports(path: Path, part: str) -> list[str]:
    floors = {name: level for level, names in enumerate(FLOORS) for name in names}
    wrong = []
    for line, module in imports(path):
        target = part_of(module)
        if module.split(".")[0] != "moectl" or module == "moectl" or target == "__version__" or target == part:
            continue
        level, below = floors[part], floors[target]
        if below > level or (below == level and level > 0):
            wrong.append(f"{path.name}:{line}: {part} imports {module}")
    return wrong


def test_every_part_of_the_package_has_a_floor():
    parts = {path.stem for path in PACKAGE.iterdir() if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"}
    assert parts - DOORS == set().union(*FLOORS)


def test_imports_point_down():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in DOORS:
            wrong += wrong_imports(path, part)
    assert wrong == []


def test_an_import_that_points_up_is_found(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from moectl.cli import app\n    from moectl import data\n    import moectl.arch.spec\n")
    assert wrong_imports(file, "arch") == ["bad.py:2: arch imports moectl.cli", "bad.py:3: arch imports moectl.data"]


def test_the_package_never_imports_click_or_transformers():
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, module in imports(path):
            assert module.split(".")[0] not in ("click", "transformers"), f"{path}:{line}: {module}"
            assert not module.startswith("typer._"), f"{path}:{line}: {module}"


def test_only_the_cli_prints():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            assert called != "print", f"{path}:{node.lineno}"


def test_package_inits_hold_a_docstring_only():
    for path in sorted(PACKAGE.rglob("__init__.py")):
        if path.parent != PACKAGE:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path
