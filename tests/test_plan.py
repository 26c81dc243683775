import os
import subprocess
import sys
import time

import jax
import pytest

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.memory import device_memory
from jaxgrok.store.steps import KEPT_STEPS
from jaxgrok.tasks import make_config, make_task
from jaxgrok.training import plan as plan_module
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.layout import prepare
from jaxgrok.training.plan import (
    COMPILER_BYTES,
    batch_size,
    check_memory,
    checkpoint_bytes,
    describe,
    epoch_flops,
    forward_flops,
    make_batches,
    n_test,
    run_bytes,
    run_memory,
)
from jaxgrok.training.run import make_program, train
from jaxgrok.training.sweep import sweep as run_sweep


def test_the_mainline_step_costs_what_architecture_says():
    assert epoch_flops(Config(), 3830) == pytest.approx(3.29e9, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"p": 31, "d_model": 32}, 0.5),
        ({"p": 31, "d_model": 32, "n_layers": 2}, 0.5),
        ({"p": 31, "d_model": 32, "norm": "layernorm"}, 0.5),
        ({"task": "s4", "d_model": 32}, 0.5),
        ({"task": "add+subtract", "p": 13, "d_model": 32}, 0.5),
        ({"task": "parity3", "seq_len": 13, "d_model": 32}, 480),
        ({"arch": "mlp", "p": 31}, 0.5),
        ({"task": "addition3", "d_model": 32}, 480),
        ({"task": "induction", "seq_len": 19, "repeat_len": 5, "d_model": 32}, 100),
        ({"task": "skip_trigram", "d_model": 64}, 480),
    ],
)
def test_flops_and_memory_against_the_compiler(fields, size):
    config = make_config(**fields)
    program, task, hyper = make_program(config), make_task(config), Run(config).hyper()
    train, test = task.split(size, 0)
    assert train is not None
    state = jax.eval_shape(program.init, hyper)
    with jax.default_device(jax.devices("cpu")[0]):  # elsewhere libraries compute products, and XLA does not count them
        evaluate = jax.jit(program.evaluate).lower(state.params, train).compile()
        advance = jax.jit(program.advance).lower(state, train, hyper, 10).compile()
    cost = evaluate.cost_analysis()
    # The compiler also counts what is not a product: exponentials, sums, the loss.
    assert 1 <= cost["flops"] / forward_flops(config, len(train.tokens)) < 1.5
    needed = advance.memory_analysis().temp_size_in_bytes
    assert n_test(config, len(train.tokens)) == len(test.tokens)
    assert 0.6 < run_bytes(config, len(train.tokens)) / needed < 2.5


def runs(**settings):
    sweep = make_sweep(settings)
    numbered = dict(enumerate(sweep.runs()))
    return numbered, {number: sweep.planned_epochs(run) for number, run in numbered.items()}


def test_no_run_pays_for_anothers_data_or_length():
    numbered, epochs = runs(p=13, d_model=8, seeds=5, frac="0.3,0.5", wd="0.1,1")
    batches = make_batches(numbered, epochs, jax.devices(), batch_runs=4)
    for batch in batches:
        assert {numbered[number].n_train for number in batch.runs} == {batch.n_train}
        assert {epochs[number] for number in batch.runs} == {batch.epochs}
        assert len(batch.runs) <= 4
    assert sorted(number for batch in batches for number in batch.runs) == list(range(20))
    # Within a bucket sizes differ by one at most: at most two shapes are compiled.
    assert sorted(len(batch.runs) for batch in batches) == [2, 2, 2, 2, 3, 3, 3, 3]


class FakeGPU:
    platform = "gpu"

    def memory_stats(self):
        return {"bytes_limit": 80e9}


def test_batches_fill_an_accelerators_memory_and_a_cpus_cache():
    assert batch_size(Config(), 3830, jax.devices("cpu")[:1]) == 1
    tiny = batch_size(Config(p=13, d_model=16), 80, jax.devices("cpu")[:1])
    assert 16 <= tiny <= 256
    on_gpu = batch_size(Config(), 3830, [FakeGPU()])
    assert on_gpu * run_bytes(Config(), 3830) <= 0.8 * 80e9 < (on_gpu + 1) * run_bytes(Config(), 3830)
    assert batch_size(Config(), 3830, [FakeGPU()] * 4) == 4 * on_gpu
    assert batch_size(Config(d_model=4096, n_heads=4), 3830, jax.devices("cpu")[:1]) == 1


def test_a_run_is_hashable_and_knows_its_size():
    sweep = make_sweep({"p": 5, "frac": 0.5, "seeds": 1})
    (run,) = sweep.runs()
    assert run == Run(Config(p=5), 0, 0.5, 12, 1.0, 1e-3)
    assert hash(run) == hash(*sweep.runs())


# --- sizes out of reason: a plan answers, a sweep is refused ----------------------------------------------------------


class SmallGPU(FakeGPU):
    def memory_stats(self):
        return {"bytes_limit": 4e9}


class SilentGPU(FakeGPU):
    def memory_stats(self):
        return None


TOO_LARGE = [
    ({"d_model": 100_000}, "d_model", 100_000),
    ({"d_mlp": 1_000_000}, "d_mlp", 1_000_000),
    ({"n_layers": 1000}, "n_layers", 1000),
    ({"task": "skip_trigram", "seq_len": 100_000}, "seq_len", 100_000),
    ({"task": "induction", "seq_len": 100_000, "n_train": 50}, "seq_len", 100_000),
    ({"task": "induction", "n_tokens": 1_000_000}, "n_tokens", 1_000_000),
    ({"task": "addition5", "n_train": 1_000_000}, "n_train", 1_000_000),
    ({"task": "addition5", "batch_size": 1_000_000}, "batch_size", 1_000_000),
    ({"task": "addition5", "n_test": 1_000_000}, "n_test", 1_000_000),
    ({"p": 2000}, "p", 2000),
]


@pytest.mark.parametrize(("settings", "field", "value"), TOO_LARGE)
def test_a_run_that_does_not_fit_names_the_size_that_is_to_blame(settings, field, value):
    numbered, epochs = runs(**settings, seeds=1)
    batches = make_batches(numbered, epochs, [SmallGPU()])
    with pytest.raises(BadInput) as error:
        check_memory(batches, [SmallGPU()])
    assert (error.value.name, error.value.value) == (field, value)
    assert "4.0 GB available" in str(error.value)
    check_memory(batches, [SilentGPU()])


def test_a_run_that_fits_is_not_refused():
    numbered, epochs = runs(seeds=2)
    for device in (FakeGPU(), SmallGPU(), jax.devices("cpu")[0]):
        check_memory(make_batches(numbered, epochs, [device]), [device])


def test_a_run_that_fits_into_all_memory_but_not_beside_another_trains_alone(monkeypatch):
    """The cores of a CPU are devices that share its memory."""
    cpus, (numbered, epochs) = jax.devices("cpu")[:1] * 8, runs(seeds=4)
    needed = plan_module.run_memory(Config(), 3830, cpus)
    for share, sizes in ((1.5, [1, 1, 1, 1]), (3.5, [2, 2]), (8.5, [4])):
        monkeypatch.setattr(plan_module, "device_memory", lambda of, share=share: int(share * needed) // len(of))
        batches = make_batches(numbered, epochs, cpus)
        assert [len(batch.runs) for batch in batches] == sizes
        check_memory(batches, cpus)
    monkeypatch.setattr(plan_module, "device_memory", lambda of: int(0.9 * needed) // len(of))
    with pytest.raises(BadInput, match="a run fits into memory"):
        check_memory(batches, cpus)


def test_too_little_memory_under_ulimit_is_refused_before_the_compiler_aborts(monkeypatch):
    numbered, epochs = runs(seeds=1)
    for device in (jax.devices("cpu")[0], FakeGPU()):
        batches = make_batches(numbered, epochs, [device])
        monkeypatch.setattr(plan_module, "address_space_left", lambda: COMPILER_BYTES - 0.5e9)
        with pytest.raises(BadInput, match=r"ulimit -v.* MB more, to compile"):
            check_memory(batches, [device])
        # An accelerator's runs lie in its own memory, a CPU's in the process's.
        monkeypatch.setattr(plan_module, "address_space_left", lambda: COMPILER_BYTES)
        if isinstance(device, FakeGPU):
            check_memory(batches, [device])
        else:
            with pytest.raises(BadInput, match="ulimit -v"):
                check_memory(batches, [device])


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not enforce `ulimit -v`, or do not tell what is mapped"
)
def test_a_sweep_under_ulimit_ends_in_one_line(tmp_path):
    sweep = [
        sys.executable,
        "-m",
        "jaxgrok",
        "sweep",
        "--seeds",
        "1",
        "--epochs",
        "10",
        "--out",
        str(tmp_path / "runs"),
    ]
    line = ["sh", "-c", 'ulimit -v 1700000 && exec "$@"', "sh", *sweep]
    on_cpu = {**os.environ, "JAX_PLATFORMS": "cpu"}  # CUDA maps more than that before anything can be said
    ended = subprocess.run(line, capture_output=True, text=True, env=on_cpu)
    assert ended.returncode == 2
    assert "ulimit -v: got 'too little memory'" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


class SharedGPU(FakeGPU):
    """A GPU of which another process holds all but 10 GB, as JAX's allocator tells it once it has its pool."""

    def memory_stats(self):
        return {"bytes_limit": 80e9, "pool_bytes": 10e9}


def test_a_second_sweep_on_one_gpu_fills_what_the_first_has_left(monkeypatch):
    assert device_memory([SharedGPU()]) == 10e9
    alone, beside = (batch_size(Config(), 3830, [device]) for device in (FakeGPU(), SharedGPU()))
    assert beside == pytest.approx(alone / 8, abs=1)
    numbered, epochs = runs(p=2000, seeds=1)
    with pytest.raises(BadInput, match=r"10\.0 GB available"):
        check_memory(make_batches(numbered, epochs, [SharedGPU()]), [SharedGPU()])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert device_memory([SharedGPU()]) == 80e9


def test_the_memory_of_a_device():
    assert device_memory([FakeGPU()]) == 80e9
    assert device_memory([SilentGPU()]) is None
    one = device_memory(jax.devices("cpu")[:1])
    assert one is None or one > 1e9
    assert one is None or device_memory(jax.devices("cpu")[:1] * 4) == one // 4


@pytest.mark.parametrize(
    "settings",
    [
        {"d_model": 100_000},
        {"d_mlp": 1_000_000},
        {"n_layers": 1000},
        {"task": "induction", "seq_len": 100_000},
        {"task": "induction", "n_tokens": 1_000_000},
        {"arch": "mlp", "d_mlp": 1_000_000},
    ],
)
def test_a_plan_answers_within_seconds_for_any_size(settings, tmp_path):
    start = time.monotonic()
    plan = prepare(make_sweep({**settings, "seeds": 1}), tmp_path / "runs")
    (cost,) = describe(plan)
    assert time.monotonic() - start < 30  # seconds on an idle machine
    assert cost.flops > 0
    assert 0 < cost.seconds < float("inf")
    assert cost.memory == run_memory(cost.config, cost.n_train, plan.devices)
    available = device_memory(plan.devices)
    assert cost.fits is (None if available is None else cost.memory <= available)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(device_memory(jax.devices("cpu")[:1]) is None, reason="the machine does not tell its memory")
@pytest.mark.parametrize(
    ("settings", "field"), [({"d_model": 100_000}, "d_model"), ({"task": "induction", "seq_len": 100_000}, "seq_len")]
)
def test_a_sweep_that_does_not_fit_is_refused_before_anything_is_written(settings, field, tmp_path):
    sweep = make_sweep({**settings, "seeds": 1})
    assert [cost.fits for cost in describe(prepare(sweep, tmp_path / "runs"))] == [False]
    with pytest.raises(BadInput, match=rf"^{field}: .* GB available") as error:
        run_sweep(sweep, tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_disk_holds_the_checkpoints_and_the_states_that_are_kept(tmp_path):
    plan = prepare(make_sweep({"p": 13, "d_model": 8, "seeds": 3, "epochs": 100}), tmp_path / "runs")
    (cost,) = describe(plan)
    of_params = 3 * len(plan.checkpoints(plan.batches[0])) * checkpoint_bytes(cost.config)
    of_states = 3 * KEPT_STEPS * 3 * checkpoint_bytes(cost.config)  # parameters and Adam's two moments
    of_curves = 3 * 4 * (100 + 4 * 100)  # a train loss and an evaluation every epoch
    # All of it is in one sealed step, and the parameters and curves are in the step before as well.
    assert cost.disk == 2 * (of_params + of_curves) + of_states
    assert cost.files <= 40
    assert (cost.runs, cost.epochs, cost.fits) == (3, 100, True)


def test_a_precision_that_the_device_does_not_have_is_refused(tmp_path):
    settings = {"p": 5, "d_model": 8, "n_heads": 2, "epochs": 10, "matmul_precision": "tf32_x3"}
    cpu = jax.devices("cpu")[:1]
    with pytest.raises(BadInput, match=r"got 'tf32_x3'; accepted: default high highest on a CPU"):
        prepare(make_sweep(settings), tmp_path / "runs", devices=cpu)
    assert not list(tmp_path.iterdir())
    if jax.default_backend() == "cpu":
        with pytest.raises(BadInput, match="on a CPU"):
            train(Config(p=5, d_model=8, n_heads=2, matmul_precision="tf32_x3"), epochs=10)
