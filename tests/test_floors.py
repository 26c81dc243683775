"""The lowest versions that setup.cfg allows: a sweep trains, resumes, is analyzed and loads with exactly those."""

import configparser
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "scripts"
TINY = ["--arch", "transformer", "--p", "7", "--d-model", "8", "--frac", "0.6", "--seeds", "2", "--out", "runs"]
# The last Python with wheels of numpy 2.0.
LAST_PYTHON = (3, 12)
VERSIONS = "import importlib.metadata as m, sys; print(*(f'{name}=={m.version(name)}' for name in sys.argv[1:]))"
# The permutation test is the part of scipy whose accepted arguments changed most; the sweep below does not call it.
CONCORDANCE = """
import numpy as np
from jaxgrok.stats.order import concordance
times = np.array([[1, 2, 3], [1, 3, 2], [2, 1, 3], [1, 2, 3]])
assert 0 < concordance(times, times > 0).pvalue <= 1
"""
# Updates of another size would be a wrong number without a word: optax 0.2.6 gives 0.4.
MUON = """
import jax, optax
from jaxgrok.training.gradients import muon
weights = {"mlp": {"W_in": jax.random.normal(jax.random.key(0), (8, 32))}}
transform = muon(optax.scale_by_adam())
updates, _ = transform.update(weights, transform.init(weights), weights)
assert 0.15 < float((updates["mlp"]["W_in"] ** 2).mean() ** 0.5) < 0.25
"""


def floors() -> dict[str, str]:
    """Return {package: lowest version} of every run-time dependency."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    wanted = config["options"]["install_requires"].split("\n")
    lines = [line.strip() for line in wanted if line.strip() and not line.strip().startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", line) for line in lines]
    assert lines, "setup.cfg names no dependency"
    assert all(found), f"each dependency should read name>=version: {lines}"
    return {match[1]: match[2] for match in found if match is not None}


def same_version(one: str, other: str) -> bool:
    """Whether two release numbers are equal; 2 is 2.0.0."""
    numbers = [[int(part) for part in version.split(".")] for version in (one, other)]
    longest = max(map(len, numbers))
    first, second = ([*parts, *[0] * (longest - len(parts))] for parts in numbers)
    return first == second


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] > LAST_PYTHON, reason="the lowest numpy has no wheel for this Python")
def test_the_lowest_versions_train_resume_analyze_and_load(tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def call(*words):
        command = [str(python), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment)

    def run(*words) -> str:
        done = call(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    wheels = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    # Any version will do here, so that a floor that does not exist or fits no other fails below instead of skipping.
    if call("-m", "pip", "download", *wheels, "--no-deps", "--dest", tmp_path / "probe", "filelock").returncode:
        pytest.skip("pip reaches no package index")
    wanted = floors()
    run("-m", "pip", "install", *wheels, *(f"{name}=={version}" for name, version in wanted.items()))
    installed = dict(pin.split("==") for pin in run("-c", VERSIONS, *wanted).split())
    wrong = {name: installed[name] for name in wanted if not same_version(installed[name], wanted[name])}
    assert not wrong

    run(SCRIPTS / "sweep.py", *TINY, "--epochs", "30")
    run(SCRIPTS / "sweep.py", *TINY, "--epochs", "40")
    run(SCRIPTS / "analyze.py", "runs")
    run("-c", "import jaxgrok; assert jaxgrok.load('runs').params(seed=0)")
    run("-c", CONCORDANCE)
    run("-c", MUON)
