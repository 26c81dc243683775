"""Tests run under x64; what needs the reference files beside the checkout asks for `shared`."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the authors' released runs and exact trajectories; absent on a user's machine."""
    path = Path(os.environ.get("JAXGROK_SHARED", REPOSITORY.parent / "shared"))
    if not path.exists():
        if os.environ.get("JAXGROK_REQUIRE_SHARED"):
            pytest.fail(f"{path} is missing, and JAXGROK_REQUIRE_SHARED is set")
        pytest.skip("the reference files (../shared, or JAXGROK_SHARED) are not on this machine")
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(0)
