"""The shape of the house: imports flow one way, and the half that reads runs never trains."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxgrok"

# The half that makes runs, then the half that reads them. A module imports only what stands before it in its row;
# the two halves meet at the checkpoint, and no maker of runs imports a reader beyond it.
ORDER = [
    "config",
    "command",
    "schedule",
    "tasks",
    "model",
    "weight_files",
    "interop",
    "loss",
    "training",
    "grid",
    "plan",
    "checkpoint",
    "phases",
    "sweeping",
]
READING = [
    "weight_files",
    "interop",
    "checkpoint",
    "phases",
    "results",
    "fourier",
    "network",
    "ablations",
    "measures",
    "heads",
    "analysis",
    "stats",
    "report",
    "order",
    "threshold",
    "part_tables",
    "size_tables",
    "circuit_tables",
    "head_tables",
    "released",
    "slingshots",
    "figures",
]
BETWEEN = ["progress", "crossover"]  # one shows a running sweep and a finished one, the other trains by what it reads


def imports(module: str) -> set[str]:
    files = [PACKAGE / f"{module}.py"] if (PACKAGE / f"{module}.py").exists() else sorted((PACKAGE / module).glob("*.py"))
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxgrok"):
                parts = node.module.split(".")
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names if alias.name != "__version__"}
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxgrok.")}
    return found - {module}


def modules() -> set[str]:
    return {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}


def test_every_module_has_its_place():
    assert modules() == {*ORDER, *READING, *BETWEEN}


def test_imports_flow_one_way():
    for row in (ORDER, READING):
        for place, module in enumerate(row):
            later = set(row[place + 1 :])
            assert not imports(module) & later, module
    for module in ORDER:
        assert not imports(module) & (set(READING) - set(ORDER)), module


def test_what_reads_runs_never_trains_them():
    for module in READING:
        assert not imports(module) & {"training", "sweeping", "plan", "progress"}, module


def test_the_table_would_see_a_wrong_import():
    assert "training" in imports("sweeping")
    assert "report" in imports("figures")


def test_there_is_nothing_called_utils():
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in ("utils", "helpers", "common")]
