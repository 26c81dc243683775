"""README and docs/: commands are commands, links lead somewhere, pages list what there is, and the tutorial runs."""

import csv
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxgrok
from jaxgrok.cli import COMMANDS
from jaxgrok.cli import analyze as analyze_command
from jaxgrok.cli import slingshots as slingshots_command
from jaxgrok.cli.sweep import presets
from jaxgrok.search import search
from jaxgrok.tables import parts, sizes, timing
from tests.conftest import COMPILED_IN_FULL, REPOSITORY
from tests.test_architecture import ORDER

DOCS = REPOSITORY / "docs"
TUTORIAL = DOCS / "tutorial.md"
# What took long to compute: these pages quote commands of their time, which are not to be run again.
PAGES = sorted(page for page in [REPOSITORY / "README.md", *DOCS.rglob("*.md")] if page.parent != DOCS / "results")
LINKED = sorted([REPOSITORY / "README.md", *DOCS.rglob("*.md")])
# A network that groks after 200 to 300 epochs, in place of the six of the quick preset.
REDUCED = "--seeds 1 --wd 1.5 --p 29 --frac 0.7 --max-epochs 600 --checkpoint-every 100"


def name_of(page):
    return str(page.relative_to(REPOSITORY))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def module(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# --- commands, links and lists ----------------------------------------------------------------------------------------


def commands_of(text):
    """(command, its arguments) of each line of a page that starts one of ours, whichever way it does."""
    text = text.replace("\\\n", " ").replace("NAME", "mainline")
    text = re.sub(r"\$[A-Z_]+", "3", text)  # a scheduler's number of this task
    found = re.findall(r"(?:python scripts/(\w+)\.py|\bjaxgrok (\w+))([^#\n`&|]*)", text)
    return [
        (script or command, shlex.split(rest)) for script, command, rest in found if (script or command) in COMMANDS
    ]


@each_page
def test_the_pages_commands_are_commands(page, monkeypatch, capsys):
    """Every sweep plans without complaint; every flag of the other commands is known."""
    monkeypatch.chdir(REPOSITORY)
    for name, arguments in commands_of(page.read_text()):
        command = importlib.import_module(f"jaxgrok.cli.{name}")
        accepted = command.parser().format_help_all()
        for flag in [word.partition("=")[0] for word in arguments if word.startswith("--")]:
            assert f"{flag} " in accepted or f"{flag}\n" in accepted or f"{flag}]" in accepted, (name, flag)
        needs_torch = "torch" in arguments and importlib.util.find_spec("torch") is None
        # `--distributed` has to come before JAX is used in the process.
        if name == "sweep" and "--help" not in arguments and "--distributed" not in arguments and not needs_torch:
            plan = [*arguments, *([] if "--plan" in arguments else ["--plan"])]
            assert command.main(plan) == 0, (arguments, capsys.readouterr().err)


def test_readme_has_the_commands_that_ci_follows():
    text = (REPOSITORY / "README.md").read_text()
    assert "pip install -e . && python scripts/sweep.py --preset quick" in text
    assert 'pip install -e ".[test]" && pytest -n 2 --dist loadfile' in text


@each_page
def test_blocks_of_python_compile(page):
    for block in blocks(page.read_text(), "python"):
        compile(block, name_of(page), "exec")


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_to_files_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), link


def test_the_pages_made_from_the_code_have_every_flag_and_every_experiment():
    hooks = module("hooks")
    reference = hooks.on_page_markdown((DOCS / "reference" / "commands.md").read_text())
    for name in COMMANDS:
        section = re.split(rf"^## jaxgrok {name}$", reference, flags=re.M)[1].split("\n## ")[0]
        for action in importlib.import_module(f"jaxgrok.cli.{name}").parser()._actions:
            flag = action.option_strings[-1] if action.option_strings else action.dest
            assert flag in ("--help", "--help-all") or re.search(
                rf"^\| `({flag}|{action.metavar})[ `]", section, flags=re.M
            ), flag
    experiments = hooks.on_page_markdown((DOCS / "reference" / "experiments.md").read_text())
    assert re.findall(r"^## (\w+)$", experiments, flags=re.M) == presets()


def test_the_reference_has_every_public_function():
    listed = re.findall(r"^::: [\w.]+\.(\w+)$", (DOCS / "reference" / "python.md").read_text(), flags=re.M)
    names = {name for name in jaxgrok.__all__ if name[0] != "_"}
    modules = {"figures", "fourier", "interop", "measures", "tables"}
    assert names - set(listed) <= modules
    headings = (DOCS / "reference" / "python.md").read_text()
    for name in modules:
        assert f"\n## jaxgrok.{name}\n" in headings


def test_the_map_of_the_house_has_every_package_in_its_order():
    table = (DOCS / "design.md").read_text().split("## Map of the house")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)/?` \|", table, flags=re.M)) == ORDER


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    docstring = (
        "What it does.\n\nseed: of the run, 0 <= seed.\nepoch [T]: a number\n    of updates.\n\nA limit: it is so."
    )
    listed = "- **seed**: of the run, 0 &lt;= seed.\n- **epoch** [T]: a number of updates."
    assert module("docstrings").markdown(docstring) == f"What it does.\n\n{listed}\n\nA limit: it is so."


# --- files and columns ------------------------------------------------------------------------------------------------


def entries(section):
    """The patterns of columns that a section of files.md lists, and {placeholder: its words}."""
    columns, words = [], {}
    for table in re.findall(r"(?:^\|.*\n)+", section, flags=re.M):
        header, _, *rows = table.splitlines()
        first = [re.match(r"\| `([^`]+)`", row)[1] for row in rows]
        placeholder = re.match(r"\| `(<\w+>)`", header)
        if placeholder:
            words[placeholder[1]] = first
        else:
            columns += first
    return columns, words


def sections():
    """{file: (its patterns, its words)} of files.md."""
    text = (DOCS / "reference" / "files.md").read_text()
    found = re.findall(r"^<!-- columns: (.*?) -->$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    return {name: entries(section) for name, section in found}


def expected(columns, words, more):
    """{column: the pattern that it is from}, with the words of a page in place of its placeholders."""
    found = {column: column for column in columns}
    for placeholder, listed in {**words, **more}.items():
        found = {
            column.replace(placeholder, word): pattern
            for column, pattern in found.items()
            for word in (listed if placeholder in column else [""])
        }
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny sweeps of every kind, analysed."""
    home = tmp_path_factory.mktemp("tables")

    def sweep(name, analysed=True, **settings):
        path = jaxgrok.sweep(jaxgrok.make_sweep({"seeds": 1, "epochs": 2, **settings}), home / name)
        timing.write_timing_tables(jaxgrok.load(path))
        parts.write_part_tables(jaxgrok.load(path))
        if analysed:
            assert analyze_command.run({"target": path}) == 0
        return path

    small = {"d_model": 8, "n_heads": 2}
    modular = sweep("modular", p=5, frac=0.5, **small)
    assert slingshots_command.main([str(modular)]) == 0
    induction = sweep(
        "induction", task="induction", seq_len=16, repeat_len=4, n_tokens=12, batch_size=8, n_test=16, **small
    )
    budget = {"task": "addition1", "seeds": 1, "max_epochs": 2, **small}
    by_size = search(budget, home / "by_size", low=5, high=90, count=2, precision=100)
    sizes.write_size_tables(jaxgrok.load(by_size), sizes.sizes_of(jaxgrok.load(by_size)))
    group = sweep("group", task="s3", frac=0.5, **small)
    return {"modular": modular, "induction": induction, "by_size": by_size, "group": group}


OF = {"heads.csv": "induction", "representations.csv": "group", "parts.csv": "induction", "crossover.csv": "by_size"}


@pytest.mark.parametrize("table", [name for name in sections() if name.endswith(".csv")])
def test_every_column_has_an_entry_and_no_other_has(folders, table):
    folder = folders[OF.get(table, "modular")]
    with open(folder / "tables" / table, newline="") as file:
        header = next(csv.reader(file))
    listed = sections()
    config = jaxgrok.load(folder).runs[0].config
    params = jaxgrok.load(folder).params(run=0)
    weights = [*(name.replace("/", ".") for name in jaxgrok.interop.by_name(params)), "total"]
    more = {"<head>": list(map(str, range(config.n_heads))), "<weight>": weights, "<place>": ["0", "1", "2"]}
    of_table = expected(*listed[table], more)
    if table == "networks.csv":
        of_table |= expected(*listed["measures.csv"], more)
    everywhere = set(listed["every table"][0])
    assert [column for column in header if column not in of_table and column not in everywhere] == []
    # Each entry is of a column: where a placeholder has words that only some patterns take, each pattern has one.
    assert set(of_table.values()) - {of_table[column] for column in header if column in of_table} == set()
    used = set(header)
    for placeholder, words in listed[table][1].items():
        for word in words:
            patterns = [pattern for pattern in listed[table][0] if placeholder in pattern]
            ways = {column for column in expected(patterns, {**listed[table][1], placeholder: [word]}, {})}
            assert ways & used, (placeholder, word)


def test_every_coordinate_of_every_table_is_a_column(folders):
    columns = set()
    for folder in folders.values():
        for table in (folder / "tables").glob("*.csv"):
            columns |= set(table.read_text().splitlines()[0].split(","))
    assert set(sections()["every table"][0]) <= columns


def test_every_array_of_metrics_has_an_entry_and_no_other_has(folders):
    with np.load(folders["induction"] / "metrics.npz") as arrays:
        names = set(arrays.files)
    record = jaxgrok.load(folders["induction"]).runs[0]
    assert names - set(record.coordinates) == set(sections()["metrics.npz"][0])


def test_every_measure_has_an_entry_and_no_other_has(folders):
    listed = sections()
    (file, *_) = sorted((folders["modular"] / "analysis").rglob("*.npz"))
    with np.load(file) as measures:
        names = set(measures.files)
    with open(folders["modular"] / "tables" / "measures.csv", newline="") as table:
        columns = set(next(csv.reader(table)))
    arrays = set(listed["analysis"][0])
    assert arrays <= names
    by_head = {name for name in names if name.startswith("attention_")}
    assert {name for name in names - arrays - by_head if name.replace("/", "_") not in columns} == set()


# --- the tutorial -----------------------------------------------------------------------------------------------------


def cells_of_the_notebook():
    return json.loads((DOCS / "tutorial.ipynb").read_text())["cells"]


def test_the_notebook_is_the_tutorial():
    """The notebook is what docs/notebook.py makes of the tutorial, and has all its blocks."""
    pytest.importorskip("jupytext")
    made = module("notebook").notebook_of(TUTORIAL.read_text()).cells
    cells = cells_of_the_notebook()
    sources = ["".join(cell["source"]) for cell in cells]
    assert [(cell["cell_type"], cell["source"]) for cell in made] == [
        (cell["cell_type"], source) for cell, source in zip(cells, sources, strict=True)
    ], "run python docs/notebook.py"
    text = TUTORIAL.read_text()
    for block in [*blocks(text, "bash"), *blocks(text, "python")]:
        assert any(source.removeprefix("%%bash\n") == block.strip() for source in sources), block


def run(command, cwd, env, **options):
    """Run a command; returns what it printed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_bash(text, cwd, env, change=lambda command: command):
    """Run a page's blocks of bash, each in a shell of its own."""
    for block in blocks(text, "bash"):
        run(["bash", "-euc", change(block)], cwd, env)


def run_python(text, cwd, env, python):
    """Run a page's blocks of Python in one interpreter; returns what they print."""
    script = cwd / "blocks.py"
    script.write_text("\n".join(blocks(text, "python")))
    return run([str(python), "-W", "error", str(script)], cwd, {**env, "MPLBACKEND": "agg"})


def test_the_tutorial_runs_at_a_reduced_size(tmp_path):
    def change(command):
        reduced = command.replace("--preset quick", f"--preset quick {REDUCED}")
        return re.sub(r"^jaxgrok", f"{shlex.quote(sys.executable)} -m jaxgrok", reduced, flags=re.M)

    run_bash(TUTORIAL.read_text(), tmp_path, os.environ, change)
    printed = run_python(TUTORIAL.read_text(), tmp_path, os.environ, sys.executable)
    assert "explained" in printed
    assert (tmp_path / "circuit.png").stat().st_size > 10_000


def numbers(pattern, text):
    return [float(x) for x in re.findall(pattern, text)]


@pytest.mark.slow
def test_the_tutorial_runs_in_an_empty_environment(tmp_path):
    """From `pip install` to the circuit, word by word, with nothing but a copy of the repository."""
    names = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "jaxgrok", "sweeps", "scripts")
    for name in names:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, tmp_path)
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    env = {name: value for name, value in COMPILED_IN_FULL.items() if name not in hidden}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    text = TUTORIAL.read_text()
    (install,) = blocks(text, "console")
    run(["bash", "-euc", install], tmp_path, env)
    env["PATH"] = f"{tmp_path / '.venv' / 'bin'}:{env['PATH']}"
    python = tmp_path / ".venv" / "bin" / "python"
    assert text.rindex("```bash") < text.index("```python")  # the order in which they are run here
    run_bash(text, tmp_path, env)
    printed = run_python(text, tmp_path, env, python)
    print(printed)
    keys = json.loads(re.search(r"^\[.*\]$", printed, flags=re.M)[0])
    assert 2 <= len(keys) <= 6
    assert numbers(r"explained: ([\d.]+)", printed)[0] > 0.85
    network, waves, left, guess = numbers(r"(?:network|waves alone|without waves|a guess): +([\d.e-]+)", printed)
    assert max(network, waves) < 1e-2 < guess < left
    *without, control = numbers(r"without +\d+: accuracy ([\d.]+)", printed)
    assert max(without) < 0.9 < control
    # Other pages go on from there.
    for page in ("figure", "python"):
        run_python((DOCS / "how-to" / f"{page}.md").read_text(), tmp_path, env, python)
    if importlib.util.find_spec("pandas") is not None:
        run_python((DOCS / "how-to" / "pandas.md").read_text(), tmp_path, env, sys.executable)
