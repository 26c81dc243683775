"""The package as it is installed: from a wheel, outside any checkout, and in place (`pip install -e`)."""

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = "--epochs 20 --seeds 1 --wd 1 --p 5 --d-model 8 --n-heads 2"
# Without setuptools here, pip fetches it from the index for the build.
HAS_SETUPTOOLS = importlib.util.find_spec("setuptools") is not None
BUILD = ["--no-build-isolation", "--no-index"] if HAS_SETUPTOOLS else []
slow = pytest.mark.slow


def run(*command, cwd, **options):
    """Run a command without this checkout on its path; returns what it printed on both streams."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source") / "jaxgrok"
    folder.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("jaxgrok", "sweeps", "scripts"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", *BUILD, "--wheel-dir", folder, source]
    run(*pip, cwd=folder)
    (built,) = folder.glob("jaxgrok-*.whl")
    return built


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that sees the packages installed here, but not this checkout's jaxgrok."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    ours = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    theirs = Path(sysconfig.get_path("purelib"))
    # A .pth adds a folder without reading the .pth files in it, so an editable jaxgrok there is not seen.
    (ours / "dependencies.pth").write_text(f"{theirs}\n")
    return home / "bin"


def install(environment, *arguments, cwd):
    """Install with this interpreter's pip, without dependencies."""
    python = environment / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        *BUILD,
    ]
    run(*pip, "--ignore-installed", *arguments, cwd=cwd)


def test_the_setup_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    folders = {file.parent.relative_to(REPOSITORY) for file in (REPOSITORY / "jaxgrok").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(setup["options"]["packages"].split()) == packages | {"jaxgrok.sweeps"}


@slow
def test_the_wheel_holds_every_package_and_the_presets(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    modules = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "jaxgrok").rglob("*.py")}
    assert modules <= held
    assert {f"jaxgrok/sweeps/{file.name}" for file in (REPOSITORY / "sweeps").glob("*.toml")} <= held
    report = [file for file in (REPOSITORY / "jaxgrok" / "report").rglob("*") if file.is_file()]
    assert {str(file.relative_to(REPOSITORY)) for file in report if "__pycache__" not in file.parts} <= held
    assert "jaxgrok/py.typed" in held
    assert not {
        name for name in held if name.split("/")[0] not in ("jaxgrok", wheel.name.split("-py3")[0] + ".dist-info")
    }


@slow
def test_the_installed_command_trains_a_preset_outside_the_checkout(wheel, environment, tmp_path):
    install(environment, wheel, cwd=tmp_path)
    where = run(environment / "python", "-c", "import jaxgrok; print(jaxgrok.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)
    command = environment / "jaxgrok"
    said = run(command, "sweep", "--preset", "quick", *TINY.split(), "--out", "made", cwd=tmp_path)
    assert "1 run in 1 batch" in said
    assert (tmp_path / "made" / "tables" / "summary.md").exists()
    assert run(environment / "python", "-m", "jaxgrok", "--version", cwd=tmp_path).startswith("jaxgrok ")


@slow
def test_an_editable_install_finds_the_packages_and_the_presets(source, environment, tmp_path):
    install(environment, "-e", source, cwd=tmp_path)
    where = run(environment / "python", "-c", "import jaxgrok.cli; print(jaxgrok.__file__)", cwd=tmp_path)
    assert Path(where.strip()) == source / "jaxgrok" / "__init__.py"
    said = run(environment / "jaxgrok", "sweep", "--preset", "mainline", "--seeds", "2", "--plan", cwd=tmp_path)
    assert "2 runs" in said
