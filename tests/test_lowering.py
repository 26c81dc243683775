"""Every compiled step lowers for GPU and TPU, on a machine that has neither.

This finds an operation that a platform does not have, a call back to the host, a product in less than the asked
precision, and arrays in float64 where the config says float32. It does not run anything there.

A TPU has no float64 hardware. JAX lowers float64 for it all the same, and XLA emulates it by pairs of float32, so a
module that lowers may still lack an operation when XLA compiles it (jax-ml/jax issues 10158 and 11831).
"""

import functools
import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import pytest

from jaxgrok.config import Config, Hyper
from jaxgrok.measures import ablations, circuits, fourier, heads, subjects
from jaxgrok.tasks import make_config, make_task
from jaxgrok.training.batch import MOST_INTERVALS
from jaxgrok.training.run import make_program

PLATFORMS = ("cuda", "tpu")
ROWS = 2
SMALL = {"d_model": 8, "n_heads": 2}
MODULAR = {**SMALL, "p": 5}
DRAWN = {**SMALL, "n_test": 8}
INDUCTION = {**DRAWN, "task": "induction", "seq_len": 13, "repeat_len": 3}
# Every value of every field in some case, with the fraction or the number of examples to train on. Fields meet where
# one changes the code of another: dropout with fresh data and with minibatches, a loss with a dtype.
CASES = {
    "add": ({**MODULAR, "task": "add"}, 0.3),
    "subtract": ({**MODULAR, "task": "subtract", "arch": "attn_only", "batch_size": 4, "loss": "float32"}, 0.3),
    "clock": (
        {**MODULAR, "task": "add", "sequence": "xy", "attention": "full", "attn_coeff": 0.5, "act": "square"},
        0.3,
    ),
    "tied": ({**MODULAR, "task": "add", "tied": "yes", "orthograd": "yes", "loss": "stablemax", "max_norm": 20.0}, 0.3),
    "layernorm": ({**MODULAR, "task": "add", "norm": "layernorm", "n_layers": 2}, 0.3),
    "rmsnorm": ({**MODULAR, "task": "add", "norm": "rmsnorm"}, 0.3),
    "schedule_free": ({**MODULAR, "task": "add", "optimizer": "schedule_free", "label_smoothing": 0.1}, 0.3),
    "window": ({**MODULAR, "task": "add", "grokfast": 2.0, "grokfast_window": 3}, 0.3),
    "muon": ({**MODULAR, "task": "add", "optimizer": "muon"}, 0.3),
    "lion": ({**MODULAR, "task": "add", "optimizer": "lion", "grokfast": 2.0}, 0.3),
    "multiply": ({"p": 5, "task": "multiply", "arch": "mlp", "loss": "float64", "regulariser": "l2"}, 0.3),
    "x2xyy2": ({**MODULAR, "task": "x2xyy2", "act": "gelu", "dtype": "float64", "dropout": 0.1}, 0.3),
    "random": ({"p": 5, "task": "random", "arch": "mlp", "optimizer": "sgd", "regulariser": "l1"}, 0.3),
    "mixed": ({**MODULAR, "task": "add+subtract", "attention": "full"}, 0.3),
    "group": ({**SMALL, "task": "s3_conjugate", "sequence": "xy"}, 0.3),
    "parity": ({**DRAWN, "task": "parity2", "seq_len": 7}, 10),
    "addition": ({**DRAWN, "task": "addition2", "dropout": 0.1, "batch_size": 4, "residual_factor": 2}, None),
    "addition-limited": ({**DRAWN, "task": "addition2", "arch": "attn_only", "optimizer": "sgd", "n_ctx": 12}, 10),
    "induction": ({**INDUCTION, "regulariser": "l1", "matmul_precision": "high"}, None),
    "induction-limited": ({**INDUCTION, "arch": "transformer", "loss": "float64", "warmup_steps": 0}, 10),
    "skip_trigram": ({**DRAWN, "task": "skip_trigram", "loss": "float32", "optimizer": "sgd"}, None),
    "skip_trigram-limited": (
        {**DRAWN, "task": "skip_trigram", "batch_size": 4, "dropout": 0.1, "regulariser": "none"},
        10,
    ),
}


def abstract(tree):
    """The shapes of a pytree, with an axis of rows in front."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((ROWS, *jnp.shape(x)), jnp.asarray(x).dtype), tree)


def steps_of(config: Config, size) -> dict:
    """{name: (the function of ROWS runs, its arguments as shapes)} of a config's program."""
    program = make_program(config, 3)
    number = jax.ShapeDtypeStruct((ROWS,), config.dtype)
    seed = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    hyper = Hyper(seed, seed, number, number, number)
    train, test = map(abstract, program.task.split(size, 0))
    init = jax.vmap(program.init)
    state = jax.eval_shape(init, hyper)
    n_steps, is_evaluated = (jax.ShapeDtypeStruct((MOST_INTERVALS,), dtype) for dtype in (jnp.int32, bool))
    return {
        "init": (init, (hyper,)),
        "advance": (
            jax.vmap(program.advance_through, (0, 0, 0, 0, None, None)),
            (state, train, test, hyper, n_steps, is_evaluated),
        ),
    }


def lowered(f, arguments, *platforms: str) -> list[str]:
    """The StableHLO of a function for each of these platforms. It is traced once."""
    traced = jax.jit(f).trace(*arguments)
    return [traced.lower(lowering_platforms=(platform,)).as_text() for platform in platforms]


def check_module(text: str, config: Config, precision: str, libraries: Iterable[str] = ()) -> None:
    """Assert what holds for a module on any device: no host, the asked precision, and no wide array in float64.

    libraries: what it may call of the libraries that come with JAX for that device.
    """
    # Custom calls are how a module reaches libraries, and the host.
    assert set(re.findall(r"stablehlo\.custom_call @(\w+)", text)) <= set(libraries)
    assert not re.search(r"stablehlo\.(infeed|outfeed|send|recv)", text)
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert all(f"precision = [{precision}, {precision}]" in line for line in products)
    if not config.needs_x64:
        # Under x64 a Python number is a scalar in float64 until it meets an array; optax computes a few for each run.
        # Constants of the code are in float64 too, and are cast.
        computed = re.sub(r".*stablehlo\.(constant|slice|reshape|convert) .*", "", text)
        shapes = {tuple(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)*)f64>", computed)}
        assert all(math.prod(shape) <= ROWS for shape in shapes)


def test_a_module_is_of_the_platform_that_was_named():
    def f(x):
        return jax.lax.platform_dependent(x, cpu=jnp.tan, cuda=jnp.sin, tpu=jnp.cos)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    for text, own, other in zip(lowered(f, (number,), *PLATFORMS), ("sine", "cosine"), ("cosine", "sine")):
        assert f"stablehlo.{own} " in text
        assert f"stablehlo.{other} " not in text
    cpu, *others = lowered(lambda seed: jax.random.bits(jax.random.key(seed)), (0,), "cpu", *PLATFORMS)
    assert cpu not in others  # random bits are a loop on a CPU alone


def test_a_call_to_the_host_a_low_precision_and_a_wide_float64_would_be_found():
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)

    def to_host(x):
        return jax.pure_callback(lambda x: x, x, x)

    for platform in PLATFORMS:
        # Without the device JAX knows of no such call, and with it the call is in the module.
        with pytest.raises((ValueError, AssertionError)):
            check_module(*lowered(to_host, (x,), platform), Config(), "HIGHEST")
    wide = lowered(lambda x: x.astype("float64") + 1, (x,), "tpu")
    for text in (*lowered(to_host, (x,), "cpu"), *lowered(lambda x: x @ x, (x,), "cuda"), *wide):
        with pytest.raises(AssertionError):
            check_module(text, Config(), "HIGHEST")
    check_module(*wide, Config(dtype="float64"), "HIGHEST")


@pytest.mark.parametrize("name", CASES)
def test_training_lowers(name):
    fields, size = CASES[name]
    config = make_config(**fields)
    for step, (f, arguments) in steps_of(config, size).items():
        cpu, *others = lowered(f, arguments, "cpu", *PLATFORMS)
        for text in others:
            check_module(text, config, config.matmul_precision.upper())
        draws = step == "init" or (step == "advance" and (size is None or config.dropout > 0))
        assert (cpu not in others) == draws


def test_products_of_three_in_tf32_lower_for_a_gpu_and_not_for_a_cpu():
    fields, size = CASES["add"]
    config = make_config(**fields, matmul_precision="tf32_x3")
    for f, arguments in steps_of(config, size).values():
        (text,) = lowered(f, arguments, "cuda")
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        three = "lhs_precision_type = tf32, rhs_precision_type = tf32, accumulation_type = f32"
        assert all(three in line and "num_primitive_operations = 3" in line for line in products)
        if products:
            with pytest.raises(ValueError, match="TF32_TF32_F32_X3"):
                lowered(f, arguments, "cpu")


def network(config: Config):
    """The shapes of the parameters of ROWS networks of a config."""
    hyper = abstract(Hyper(jnp.int32(0), jnp.int32(0), *[jnp.zeros((), config.dtype)] * 3))
    return jax.eval_shape(jax.vmap(make_program(config).init), hyper).params


# What JAX makes a singular value decomposition of.
SVD = {
    "cuda": ("cusolver_gesvdj_ffi", "cusolver_geqrf_ffi", "cusolver_orgqr_ffi"),
    "tpu": ("Eigh", "Qr", "ProductOfElementaryHouseholderReflectors"),
}


@pytest.mark.parametrize(
    ("task", "arch", "dtype"),
    [("add", "transformer", "float32"), ("random", "transformer", "float64"), ("x2xyy2", "mlp", "float32")],
)
def test_circuit_measures_lower(task, arch, dtype):
    config = subjects.config_for_analysis(Config(task=task, arch=arch, p=5, **SMALL), dtype)
    params, split = network(config), abstract(circuits.split_of(config, 0.3, 0))
    keys, seeds = jax.ShapeDtypeStruct((ROWS, config.p // 2), bool), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    find, measure = (jax.vmap(functools.partial(f, config)) for f in (circuits.find_keys, circuits.all))
    for text in lowered(find, (params,), *PLATFORMS):
        check_module(text, config, "HIGHEST")
    for platform, text in zip(PLATFORMS, lowered(measure, (params, split, keys, seeds), *PLATFORMS)):
        check_module(text, config, "HIGHEST", SVD[platform])


def test_functions_called_by_themselves_have_full_precision_too():
    """In a notebook nothing sets a precision around them, and on a GPU the default of float32 products is TF32."""
    config = subjects.config_for_analysis(Config(p=5, **SMALL), "float32")
    params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), network(config))
    net = jax.eval_shape(lambda params: circuits.run_network(config, params)._replace(stream=None), params)
    split = circuits.split_of(config, 0.5, 0)
    labels, s = split.labels.reshape(5, 5), fourier.wave_argument(make_task(config))
    waves = jax.eval_shape(lambda logits: circuits.waves_of(logits, s)._replace(s=jnp.asarray(s)), net.logits)
    fits = jax.eval_shape(fourier.fit_neurons, net.of_neurons)
    keys, rank, stand_ins = jnp.ones(2, bool), jnp.int32(2), jnp.zeros((1, 2), fits.index.dtype)
    directions = jax.ShapeDtypeStruct((config.mlp_width, 5), jnp.float32)

    def skips(params):
        net = circuits.run_network(config, params)
        return ablations.ablations_of_skips(net, labels)

    alone = [
        (fourier.transform, net.W_L),
        (fourier.transform2, net.logits),
        (fourier.inverse, net.W_L),
        (fourier.frequency_norms, net.W_L),
        (fourier.component_norms, net.W_L),
        (fourier.keep_frequencies, net.W_L, keys),
        (fourier.neuron_blocks, net.neurons),
        (lambda blocks: fourier.from_blocks(blocks, 5), net.of_neurons.blocks),
        (lambda params: circuits.run_network(config, params)._replace(stream=None), params),
        (lambda logits: circuits.waves_of(logits, s)._replace(s=jnp.asarray(s)), net.logits),
        (lambda logits, waves: circuits.excluded_loss_of_each(logits, waves._replace(s=s), split), net.logits, waves),
        (lambda waves: circuits.wave_fit(waves._replace(s=s), keys), waves),
        (lambda logits: circuits.mlp_readout_fve(logits, s), net.logits),
        (ablations.row_space, net.W_L, jnp.ones(5, bool)),
        (ablations.losses_without_each_block, net, labels, keys),
        (ablations.losses_with_polynomials, net, fits, stand_ins, labels),
        (ablations.losses_on_directions, net, directions, rank, labels),
        (skips, params),
    ]
    for f, *arguments in alone:
        (text,) = lowered(f, arguments, "cuda")
        assert "stablehlo.dot_general" in text or f is ablations.row_space
        check_module(text, config, "HIGHEST", SVD["cuda"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_head_measures_lower(dtype):
    config = subjects.config_for_analysis(make_config(**INDUCTION), dtype)
    tokens, copies = heads.sequences(config, 4)
    of_each = jax.vmap(lambda params: heads.scores(config, params, tokens, copies))
    for text in lowered(of_each, (network(config),), *PLATFORMS):
        check_module(text, config, "HIGHEST")
