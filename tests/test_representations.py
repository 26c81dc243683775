"""The irreducible representations of groups against their character tables, and what networks on groups use of them."""

import csv
import json

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok import figures
from jaxgrok.cli import main
from jaxgrok.config import BadInput, Config
from jaxgrok.measures import representations, subjects
from jaxgrok.nets import interop
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_task
from jaxgrok.tasks.groups import inverses, table_of
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import sweep
from tests.test_figures import words

# Characters, from any book, by the classes in the order of their first elements (`classes_of`).
KNOWN = {
    ("s", 3): {"1a": [1, 1, 1], "1b": [1, -1, 1], "2": [2, 0, -1]},
    ("d", 4): {
        **{"1a": [1, 1, 1, 1, 1], "1b": [1, 1, 1, -1, -1], "1c": [1, -1, 1, 1, -1], "1d": [1, -1, 1, -1, 1]},
        "2": [2, 0, -2, 0, 0],
    },
}
DIMENSIONS = {
    ("s", 4): [1, 1, 2, 3, 3],
    ("s", 5): [1, 1, 4, 4, 5, 5, 6],
    ("s", 6): [1, 1, 5, 5, 5, 5, 9, 9, 10, 10, 16],
    ("a", 5): [1, 3, 3, 4, 5],
    ("d", 7): [1, 1, 2, 2, 2],
    ("d", 1000): [1] * 4 + [2] * 499,
}


@pytest.mark.parametrize(("group", "dimensions"), DIMENSIONS.items(), ids=str)
def test_the_dimensions_are_known(group, dimensions):
    of = representations.irreps(*group)
    assert of.dimension.tolist() == dimensions
    np.testing.assert_allclose(of.size, of.dimension**2 / len(of.class_of), rtol=1e-9)
    assert of.size.sum() == pytest.approx(1)
    assert len(set(of.names)) == len(of.names)


@pytest.mark.parametrize("group", KNOWN, ids=str)
def test_projectors_are_those_of_the_characters(group):
    """P = d / G sum over g of the character of g^-1 times g."""
    of = representations.irreps(*group)
    characters = KNOWN[group]
    assert set(of.names) == set(characters)
    for name, dimension, projection in zip(of.names, of.dimension, of.projection, strict=True):
        expected = dimension * np.array(characters[name]) / len(of.class_of)
        np.testing.assert_allclose(projection, expected, atol=1e-12)


@pytest.mark.parametrize("group", [("s", 4), ("a", 4), ("d", 6), ("s", 5)], ids=str)
def test_the_spaces_are_orthogonal_whole_and_kept_by_the_group(group, rng):
    of, table = representations.irreps(*group), table_of(*group)
    P = of.projection[:, of.class_of]
    np.testing.assert_allclose(
        np.einsum("iab,jbc->ijac", P, P), np.einsum("ij,iab->ijab", np.eye(len(P)), P), atol=1e-10
    )
    np.testing.assert_allclose(P.sum(0), np.eye(len(table)), atol=1e-10)
    x, y = rng.integers(len(table), size=2)
    for space in P:
        # moved from the left by x and from the right by y
        np.testing.assert_allclose(space[table[x]][:, table[x]], space, atol=1e-10)
        np.testing.assert_allclose(space[table[:, y]][:, table[:, y]], space, atol=1e-10)


def test_a_pair_of_complex_conjugates_is_one_real_space():
    of = representations.irreps("a", 4)
    assert of.names == ("1", "1+1", "3")
    assert (of.size * 12).round(9).tolist() == [1, 2, 9]
    assert of.dimension.tolist() == [1, 1, 3]


def test_shares_of_a_planted_matrix(rng):
    of = representations.irreps("s", 4)
    P = of.projection[:, of.class_of]
    W = 3 * P[2] @ rng.normal(size=(24, 5)) + 4 * P[4] @ rng.normal(size=(24, 5))
    parts = np.array([(space @ W) for space in P])
    expected = (parts**2).sum((1, 2)) / (W**2).sum()
    np.testing.assert_allclose(representations.shares(W, of), expected, atol=1e-12)
    assert expected[[0, 1, 3]].max() < 1e-20
    many = representations.shares(rng.normal(size=(24, 20_000)), of)
    np.testing.assert_allclose(many, of.size, rtol=0.05)


def network(task, rng, **fields):
    config = Config(**{"task": task, "d_model": 12, "n_heads": 3, "dtype": "float64", **fields})
    tokens = make_task(config).all_examples(0).tokens
    shapes = jax.eval_shape(make_model(config, make_task(config)).init, jax.random.key(0), tokens)["params"]
    return config, jax.tree.map(lambda x: rng.normal(size=x.shape), shapes), tokens


@pytest.mark.parametrize("task", ["s3", "a4", "d5_conjugate"])
@pytest.mark.parametrize("fields", [{}, {"arch": "attn_only", "sequence": "xy"}])
def test_scores_against_the_whole_cube_of_logits(task, fields, rng):
    config, params, tokens = network(task, rng, **fields)
    made = make_task(config)
    G, table, inverse = len(made.table), made.table, inverses(made.table)
    is_train = rng.random((G, G)) < 0.4
    found = jax.tree.map(np.asarray, representations.scores(config, params, is_train))
    model = make_model(config, made)
    logits = np.asarray(model.apply({"params": params}, tokens)[0])[:, 0, :G].reshape(G, G, G)
    losses = np.asarray(cross_entropy(logits, made.answers))
    for part, chosen in (("all", is_train | ~is_train), ("train", is_train), ("test", ~is_train)):
        assert found["loss"][part] == pytest.approx(losses[chosen].mean())
        right = logits.argmax(-1) == made.answers
        assert found["accuracies"][part] == pytest.approx(right[chosen].mean())
    of = representations.irreps(*{"s3": ("s", 3), "a4": ("a", 4), "d5_conjugate": ("d", 5)}[task])
    assert found["logit_share"].shape == (len(of.names),)
    if task.endswith("conjugate"):
        assert np.isnan(found["logit_share"]).all()
    else:
        quotient = table[table[:, :, None], inverse[None, None]]  # x y c^-1
        mean = np.array([logits[quotient == u].mean() for u in range(G)]) - logits.mean()
        by_class = np.array(
            [mean[representations.classes_of(table) == k].mean() for k in representations.classes_of(table)]
        )
        P = of.projection[:, of.class_of]
        explained = [((space @ by_class) ** 2).mean() / logits.var() for space in P]
        np.testing.assert_allclose(found["logit_share"], explained, rtol=1e-8, atol=1e-12)
    if "arch" in fields:
        assert found.get("W_L_share") is None
    else:
        W_L = (params["blocks_0"]["mlp"]["W_out"] @ params["unembed"]["W_U"][:, :G]).T
        np.testing.assert_allclose(found["W_L_share"], representations.shares(W_L, of), rtol=1e-9)


def test_characters_as_logits_are_explained_and_belong_to_their_representation():
    """Logits that are the character of x y c^-1 of one representation."""
    of, table = representations.irreps("s", 4), table_of("s", 4)
    quotient = table[table[:, :, None], inverses(table)[None, None]]
    character = (of.projection[3] * 24 / of.dimension[3])[representations.classes_of(table)][quotient]
    sizes = np.bincount(representations.classes_of(table))
    sums = np.array([character[representations.classes_of(table)[quotient] == k].sum() for k in range(len(sizes))])
    found = representations._explained(of, jax.numpy.asarray(sums), (character.sum(), (character**2).sum()))
    np.testing.assert_allclose(found, np.eye(5)[3], atol=1e-10)


def test_a_network_that_diverged_is_left_out_of_the_figure(rng):
    config, params, _ = network("s3", rng)
    good = jax.tree.map(np.asarray, representations.scores(config, params))
    bad = jax.tree.map(lambda x: np.full_like(x, np.nan), good)
    with_bad, alone = (figures.representations_figure(config, of) for of in ([bad, good], [good]))
    for found, expected in zip(with_bad.axes, alone.axes, strict=True):
        np.testing.assert_array_equal(found.collections[0].get_offsets(), expected.collections[0].get_offsets())
    assert "diverged" in words(figures.representations_figure(config, [bad]))


def test_another_task_is_refused(rng):
    with pytest.raises(BadInput, match="a task on a group"):
        representations.scores(Config(p=5, d_model=8, n_heads=2), {}, None)


def test_a_sweep_on_a_group_is_analysed(tmp_path, capsys):
    settings = {"task": "s3,d4_xyx", "frac": 0.6, "d_model": 8, "n_heads": 2, "seeds": 2, "epochs": 20}
    path = sweep(make_sweep({**settings, "checkpoint_every": 10}), tmp_path / "runs")
    assert main(["analyze", str(path)]) == 0
    assert "irreducible" not in capsys.readouterr().err
    rows = list(csv.DictReader((path / "tables" / "representations.csv").read_text().splitlines()))
    results = jaxgrok.load(path)
    n_checkpoints = len(results.checkpoint_epochs(results.runs[0]))
    assert len(rows) == 2 * n_checkpoints * (3 + 5)
    first = [row for row in rows if row["run"] == "0" and row["epoch"] == "0"]
    assert sum(float(row["W_E_share"]) for row in first) == pytest.approx(1, abs=1e-5)
    assert all(row["logit_share"] == "" for row in rows if row["task"] == "d4_xyx")
    text = (path / "tables" / "representations.md").read_text()
    assert text.count("| 1a |") == 2
    assert len(list((path / "figures").glob("representations-*.png"))) == 4
    subject = subjects.subject_of_run(results, run=0)
    measured = subjects.measure_subject(subject)
    assert set(measured["loss"]) == {"all", "train", "test"}
    found = json.loads(json.dumps(subjects.subject_to_json(subject, measured)))
    assert len(found["W_E_share"]) == 3
    assert main(["analyze", str(path), "--run", "0", "--figures", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "representations.png").exists()
    assert "Medians" not in capsys.readouterr().out
    assert "representation" in (path / "report.html").read_text()


def test_a_file_of_a_network_on_a_group_is_measured(tmp_path, rng, capsys):
    config, params, _ = network("s3", rng)
    interop.save(tmp_path / "w.npz", config, params)
    assert main(["analyze", str(tmp_path / "w.npz"), "--task", "s3", "--json", str(tmp_path / "m.json")]) == 0
    out = capsys.readouterr().out
    assert "1a" in out
    assert "over all pairs" in out
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["loss"].keys() == {"all"}
    assert main(["analyze", str(tmp_path / "w.npz"), "--task", "s4"]) == 2
    assert "embed.W_E" in capsys.readouterr().err
