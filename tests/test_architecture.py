"""The shape of the package: imports flow one way, and the half that reads runs never trains."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxgrok"

# Lowest first. A package imports only those that stand before it.
ORDER = (
    "stopping",
    "expressions",
    "task_names",
    "config",
    "memory",
    "atomic",
    "tasks",
    "stats",
    "nets",
    "store",
    "training",
    "measures",
    "tables",
    "figures",
    "scorecard",
    "report",
    "search",
    "cli",
)
READERS = ("measures", "tables", "figures", "scorecard", "report")
PLANNED: set[str] = set()  # named by the architecture, not built yet


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(text: str) -> set[str]:
    """The packages of jaxgrok that a module imports, anywhere in it: at the top, in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError("relative imports hide what is imported")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxgrok":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            found |= {parts[1] for parts in names if parts[0] == "jaxgrok" and len(parts) > 1}
    return found - {"__version__"}


def wrong_imports(package: str, text: str) -> set[str]:
    """What a module of a package imports and may not."""
    allowed = {package, *ORDER[: ORDER.index(package)]} - ({"training"} if package in READERS else set())
    return imported(text) - allowed


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or not file.name.startswith("__"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_flow_one_way(file):
    assert not wrong_imports(package_of(file), file.read_text())


def test_every_package_has_its_place():
    assert {package_of(file) for file in FILES} == set(ORDER) - PLANNED


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("stats", "from jaxgrok.tasks import make_task\n\nfrom jaxgrok import nets"),
        ("measures", "def f():\n    from jaxgrok.training.run import train"),
        ("tables", "from jaxgrok.training import grid"),
        ("store", "import jaxgrok.training.sweep"),
        ("figures", "if TYPE_CHECKING:\n    from jaxgrok.cli import show"),
    ],
)
def test_a_wrong_import_is_seen(package, text):
    assert wrong_imports(package, text)


def test_there_is_nothing_called_utils():
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in ("utils", "helpers", "common")]
