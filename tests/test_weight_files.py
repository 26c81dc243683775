"""Files of weights: pickles that want to run code, damage, missing packages, and places that cannot be written."""

import json
import os
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest

from jaxgrok.config import BadInput
from jaxgrok.nets import interop
from tests.test_interop import SMALL, assert_same, params_of


class RunsCode:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("under_model", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, under_model, zipped):
    torch = pytest.importorskip("torch")
    content = {"embed.W_E": torch.zeros(2, 2), "x": RunsCode(tmp_path / "ran")}
    content = {"model": content} if under_model else content
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match="run code"):
        interop.load(path)
    assert not (tmp_path / "ran").exists()


def test_an_npz_with_a_pickle_is_refused(tmp_path):
    path = tmp_path / "evil.npz"
    with open(path, "wb") as file:
        np.savez(file, **{"embed.W_E": np.array([RunsCode(tmp_path / "ran")], object)})
    with pytest.raises(BadInput, match="run code"):
        interop.load(path)
    path.write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    with pytest.raises(BadInput, match="run code"):
        interop.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["half", "empty", "noise", "end"])
def test_damaged_files_are_refused_in_one_line(tmp_path, suffix, damage):
    pytest.importorskip({".safetensors": "safetensors", ".pth": "torch"}.get(suffix, "numpy"))
    path = tmp_path / f"weights{suffix}"
    interop.save(path, SMALL, params_of(SMALL))
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(2000)
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "noise": noise, "end": whole[:-1]}[damage])
    with pytest.raises(BadInput) as caught:
        interop.load(path)
    assert "\n" not in str(caught.value)


def test_other_contents_are_refused(tmp_path, shared):
    torch = pytest.importorskip("torch")
    for name, content in {"list": [1.0], "model": {"model": [1.0]}, "number": {"embed.W_E": 3}}.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(BadInput, match="state dictionary"):
            interop.load(tmp_path / f"{name}.pth")
    with pytest.raises(BadInput, match=r"pos_embed.W_pos.*\(3, 128\)"):
        interop.load(shared / "reference/published/5_digit_addition_infinite.pth")
    with pytest.raises(BadInput, match=r"pos_embed.W_pos.*\(3, 48\)"):
        interop.load(shared / "reference/published/induction_head_infinite.pth")
    with pytest.raises(BadInput, match=r"embed.W_E.*\(128, 12\).*\(128, 22\), as in task skip_trigram"):
        interop.load(shared / "reference/published/5_digit_addition_infinite.pth", task="skip_trigram")


def test_names_and_places(tmp_path):
    with pytest.raises(BadInput, match=r"\.safetensors"):
        interop.load(tmp_path / "weights.txt")
    with pytest.raises(BadInput, match="exists"):
        interop.load(tmp_path / "weights.npz")
    with pytest.raises(BadInput, match="written"):
        interop.save(tmp_path / "nowhere" / "weights.npz", SMALL, params_of(SMALL))
    with pytest.raises(BadInput, match="transformer_lens"):
        interop.to_state(SMALL, params_of(SMALL), "huggingface")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, suffix):
    pytest.importorskip({".safetensors": "safetensors", ".pth": "torch"}.get(suffix, "numpy"))
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"old")

    def no_space(source, target):
        assert source.stat().st_size > 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space left on device"):  # the commands end with status 1
        interop.save(path, SMALL, params_of(SMALL))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("module", "suffix"), [("torch", ".pth"), ("safetensors.numpy", ".safetensors")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, suffix):
    monkeypatch.setitem(sys.modules, module, None)
    path, package = tmp_path / f"weights{suffix}", module.split(".")[0]
    accepted = f'only with {package}, which must be installed: pip install "jaxgrok[{package}]"'
    said = re.escape(f"file: got '{path}'; accepted: {accepted}")
    with pytest.raises(BadInput, match=said):
        interop.save(path, SMALL, params_of(SMALL))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"x")
    with pytest.raises(BadInput, match=said):
        interop.load(path)


def test_drawing_with_torch_asks_for_torch_and_npz_does_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r"init: got 'torch'; accepted: only with torch.*\"jaxgrok\[torch\]\""):
        interop.draw_with_torch(SMALL, 0)
    path, params = tmp_path / "weights.npz", params_of(SMALL)
    interop.save(path, SMALL, params)
    assert_same(interop.load(path).params, params)


@pytest.mark.parametrize("numbers", [10**9, 10**12, 10**30])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path, numbers, zipped):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({numbers},), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(80)
    path = tmp_path / "huge.npz"
    if zipped:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("W_in.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged") as caught:
        interop.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [10**9, 10**12])
def test_a_safetensors_that_declares_more_than_it_holds_is_refused(tmp_path, numbers):
    pytest.importorskip("safetensors")
    tensor = {"dtype": "F64", "shape": [numbers], "data_offsets": [0, 8 * numbers]}
    header = json.dumps({"W_in": tensor}).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(80))
    with pytest.raises(BadInput, match="damaged"):
        interop.load(path)
    path.write_bytes((2**40).to_bytes(8, "little") + header)
    with pytest.raises(BadInput, match="damaged"):
        interop.load(path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_tensor_that_repeats_one_number_is_refused(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    torch.save({"W_in": torch.zeros(1, dtype=getattr(torch, dtype)).expand(10**12)}, tmp_path / "huge.pth")
    with pytest.raises(BadInput, match="damaged"):
        interop.load(tmp_path / "huge.pth")
