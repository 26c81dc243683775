"""Exported networks in TransformerLens itself: it loads them as a whole and computes the same logits.

    pip install transformer_lens && pytest -n 0 -m slow -s tests/test_transformer_lens.py

In its version 3 by HookedTransformer, in 4 by the native TransformerBridge. -s prints the differences, which
docs/results/transformer_lens.md records.
"""

import jax
import numpy as np
import pytest

from jaxgrok.config import Config
from jaxgrok.nets import interop, weight_files
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_task
from tests.test_interop import RELEASED, params_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")]
NORMS = {"none": None, "layernorm": "LN", "rmsnorm": "RMS"}
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformer_lens", reason="transformer_lens is not installed")
try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:  # gone in TransformerLens 4
    HookedTransformer = None


def their_network(state, **settings):
    """Their network with these weights: strict, so it takes every name and has no other; none is folded or centred."""
    dtype = settings.pop("dtype")
    if HookedTransformer is not None:
        network = HookedTransformer(HookedTransformerConfig(**settings, dtype=dtype, device="cpu"))
    else:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources import boot_native
        from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

        settings = TransformerBridgeConfig(**settings, architecture="TransformerLensNative")
        network, state = boot_native(settings, device="cpu", dtype=dtype), convert_tl_checkpoint(state, settings)
    network.load_state_dict(state, strict=True)
    return network


def their_logits(path, config, tokens):
    """Logits [N, C] at the last position, of their network with the weights of a file."""
    state = weight_files.read(path).state
    shape = {"n_layers": config.n_layers, "n_heads": config.n_heads, "d_model": config.d_model, "d_head": config.d_head}
    network = their_network(
        {name: torch.from_numpy(x) for name, x in state.items()},
        **shape,
        d_mlp=config.mlp_width,
        d_vocab=config.p + 1,
        n_ctx=3,
        act_fn=config.act, attn_only=False, normalization_type=NORMS[config.norm], positional_embedding_type="standard",
        dtype=getattr(torch, config.dtype),
    )  # fmt: skip
    with torch.no_grad():
        return network(torch.from_numpy(np.asarray(tokens, np.int64)), return_type="logits")[:, -1].numpy()


def differences(folder, config, params, suffix):
    """(largest absolute difference of the two networks' logits on all p^2 pairs, largest logit) after an export to a
    file."""
    params = jax.tree.map(lambda x: np.asarray(x, config.dtype), params)
    interop.save(folder / f"weights{suffix}", config, params, names="transformer_lens")
    task = make_task(config)
    tokens = task.pairs(np.arange(config.p**2), 0).tokens
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(make_model(config, task).apply({"params": params}, tokens)[0][:, 0])
    theirs = their_logits(folder / f"weights{suffix}", config, tokens)
    assert ours.dtype == theirs.dtype == np.dtype(config.dtype)
    return np.abs(ours - theirs).max(), np.abs(theirs).max()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("network", "suffix"),
    [
        ("random", ".safetensors"),
        ("two layers, gelu", ".npz"),
        ("released", ".pth"),
        *((n, ".npz") for n in list(NORMS)[1:]),
    ],
)
def test_the_same_logits(tmp_path, request, network, suffix, dtype):
    if network == "released":
        _, params, _ = interop.load(request.getfixturevalue("shared") / RELEASED)
        config = Config(dtype=dtype)
    else:
        fields = {"n_layers": 2, "act": "gelu"} if "two" in network else {"norm": network} if network in NORMS else {}
        config = Config(dtype=dtype, **fields)
        # Scaled, so that attention is not one-hot; biases too, so that losing one would show.
        params = jax.tree.map(lambda x: x / np.sqrt(config.d_model), params_of(config))
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    difference, largest = differences(tmp_path, config, params, suffix)
    ratio = difference / largest
    print(f"\n{network}, {dtype}, {suffix}: {difference:.1e}; largest logit {largest:.1f}, ratio {ratio:.1e}")
    # float64: some thousand roundings of a logit of tens. float32: some roundings of the largest logit.
    assert difference <= (1e-10 if dtype == "float64" else 2e-6 * largest)
