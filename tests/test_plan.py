import jax
import pytest

from jaxgrok.config import Config
from jaxgrok.tasks import make_config, make_task
from jaxgrok.training.grid import Run, make_sweep
from jaxgrok.training.plan import batch_size, epoch_flops, forward_flops, make_batches, run_bytes
from jaxgrok.training.run import make_hyper, make_train


def test_the_mainline_step_costs_what_architecture_says():
    assert epoch_flops(Config(), 3830) == pytest.approx(3.74e9, rel=0.03)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"p": 31, "d_model": 32}, 0.5),
        ({"p": 31, "d_model": 32, "n_layers": 2}, 0.5),
        ({"arch": "mlp", "p": 31}, 0.5),
        ({"task": "addition3", "d_model": 32}, 480),
        ({"task": "induction", "seq_len": 19, "repeat_len": 5, "d_model": 32}, 100),
        ({"task": "skip_trigram", "d_model": 64}, 480),
    ],
)
def test_flops_and_memory_against_the_compiler(fields, size):
    config = make_config(**fields)
    trainer, task = make_train(config), make_task(config)
    train, test = task.split(size, 0)
    params = jax.eval_shape(trainer.init, make_hyper(config, 0, 1.0, 1e-3)).params
    evaluate = jax.jit(trainer.evaluate).lower(params, train).compile()
    cost = evaluate.cost_analysis()
    # The compiler also counts what is not a product: exponentials, sums, the loss.
    assert 1 <= cost["flops"] / forward_flops(config, len(train.tokens)) < 1.5
    state = jax.eval_shape(trainer.init, make_hyper(config, 0, 1.0, 1e-3))
    advance = jax.jit(trainer.advance).lower(state, train, make_hyper(config, 0, 1.0, 1e-3), 10).compile()
    needed = advance.memory_analysis().temp_size_in_bytes
    assert 0.6 < run_bytes(config, len(train.tokens), len(test.tokens)) / needed < 2.5


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
    assert batch_size(Config(), 3830, 8939, jax.devices("cpu")[:1]) == 1
    tiny = batch_size(Config(p=13, d_model=16), 80, 89, jax.devices("cpu")[:1])
    assert 16 <= tiny <= 256
    on_gpu = batch_size(Config(), 3830, 8939, [FakeGPU()])
    assert on_gpu * run_bytes(Config(), 3830, 8939) <= 0.8 * 80e9 < (on_gpu + 1) * run_bytes(Config(), 3830, 8939)
    assert batch_size(Config(), 3830, 8939, [FakeGPU()] * 4) == 4 * on_gpu
    assert batch_size(Config(d_model=4096, n_heads=4), 3830, 8939, jax.devices("cpu")[:1]) == 1


def test_a_run_is_hashable_and_knows_its_size():
    sweep = make_sweep({"p": 5, "frac": 0.5, "seeds": 1})
    (run,) = sweep.runs()
    assert run == Run(Config(p=5), 0, 0.5, 12, 1.0, 1e-3)
    assert hash(run) == hash(*sweep.runs())
