"""The page of a sweep: its numbers are the tables', its network computes what jax does, and every control works."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import jaxgrok
from jaxgrok.cli import analyze as cli_analyze
from jaxgrok.cli import report as cli_report
from jaxgrok.measures.checkpoints import analyze
from jaxgrok.nets.model import make_model
from jaxgrok.report import page, page_data, write_page
from jaxgrok.report.data import _at
from jaxgrok.store.results import load
from jaxgrok.store.schedule import schedule
from jaxgrok.tables import heads, phase_diagram, sizes, slingshots, timing
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import make_sweep, sweep_from
from jaxgrok.training.sweep import Interrupted, prepare, sweep
from tests.on_disk import StopAt

PROGRAMS = Path(jaxgrok.__file__).parent / "report"
SETTINGS = {"p": 11, "n_heads": 2, "d_model": 16, "d_mlp": 24, "frac": 0.6, "lr": 3e-3, "checkpoint_every": 100}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """An analysed sweep of four runs in two cells, in a directory with an unkind name."""
    path = tmp_path_factory.mktemp("sweep") / "<script>alert(1)<"
    sweep(make_sweep({**SETTINGS, "seeds": 2, "wd": [0.1, 1], "epochs": 300}), path)
    return analyze(path).results


@pytest.fixture(scope="module")
def data(results):
    return page_data(results)


def unpacked(value):
    array = np.frombuffer(base64.b64decode(value["base64"]), np.dtype(value["dtype"]).newbyteorder("<"))
    return array.reshape(value["shape"])


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_tables_are_those_of_the_shared_modules(results, data):
    header, rows = timing.readable_table(results.cells)
    assert data["timing"]["header"] == header
    assert data["timing"]["rows"] == rows
    header, rows = timing.stages_table(results.cells)
    assert (data["stages"]["header"], data["stages"]["rows"]) == (header, rows)


def test_curves_are_those_of_the_runs(results, data):
    epochs, curves = unpacked(data["epochs"]).astype(int), unpacked(data["curves"])
    assert epochs.tolist() == schedule(300, results.eval_every)
    for row, run in enumerate(data["runs"]):
        of_run = results.curves_of(results.runs[run["run"]])
        np.testing.assert_array_equal(curves[row, 1], of_run.test_loss.astype(np.float32))
        np.testing.assert_array_equal(curves[row, 3], of_run.test_acc.astype(np.float32))
        timings = results.timing(results.runs[run["run"]])
        assert (run["outcome"], run["memorised"]) == (timings.outcome, timings.by("memorised"))


def test_a_loss_is_the_largest_of_its_stretch(results):
    """A spike between two epochs of the page is seen."""
    of_run = results.curves_of(results.runs[0])
    spiked = replace(of_run, train_loss=np.where(of_run.epoch_train == 123, 1e3, of_run.train_loss))
    assert _at(spiked, "train_loss", np.array([0, 100, 200])).tolist()[1] == 1e3
    assert len(_at(spiked, "train_loss", np.array([0, 100, 1000]))) == 2


def test_where_nothing_was_recorded_nothing_is_shown(results):
    """A loss of a later epoch was shown at the earlier ones."""
    of_run = results.curves_of(results.runs[0])
    sparse = replace(of_run, epoch_train=of_run.epoch_train[::100], train_loss=of_run.train_loss[::100])
    values = _at(sparse, "train_loss", np.array([0, 10, 90, 100, 150, 200]))
    assert values[[0, 3, 5]].tolist() == sparse.train_loss.tolist()
    assert np.isnan(values[[1, 2, 4]]).all()


def test_a_run_that_was_analysed_in_part_has_a_page(tmp_path):
    """It has trained on since, or its measures are damaged."""
    path = sweep(make_sweep({**SETTINGS, "seeds": 1, "epochs": 100}), tmp_path / "runs")
    analyze(path)
    sweep(make_sweep({**SETTINGS, "seeds": 1, "epochs": 300}), path)
    data = page_data(jaxgrok.load(path))
    assert [network["epoch"] for network in data["networks"]] == [0, 100]
    assert data["circuits"][0]["epoch"][-1] == 100


def test_a_sweep_that_has_not_begun_has_a_page(tmp_path):
    plan = prepare(make_sweep({**SETTINGS, "seeds": 1, "epochs": 100}), tmp_path / "runs")
    plan.files.checkpoints.mkdir(parents=True)
    plan.write()
    data = page_data(jaxgrok.load(tmp_path / "runs"))
    assert data["runs"] == data["cells"] == data["circuits"] == []
    assert "1 of 1 runs have not begun" in data["waiting"]


def test_circuits_are_the_measures_of_the_runs(results, data):
    assert [found["run"] for found in data["circuits"]] == [0, 1, 2, 3]
    for found in data["circuits"]:
        measures = results.measures(run=found["run"])
        assert found["epoch"] == measures["epoch"].tolist()
        np.testing.assert_array_equal(unpacked(found["alpha"]), measures["alpha"].astype(np.float32))
        np.testing.assert_array_equal(unpacked(found["loss/test"]), measures["loss"]["test"].astype(np.float32))
        assert found["keys"] == (np.flatnonzero(measures["key_frequencies"]["keys"][-1]) + 1).tolist()


def test_the_survival_of_a_cell_ends_with_its_longest_run(data):
    for cell in data["cells"]:
        survival = cell["survival"]
        assert survival["time"][0] == 0
        assert survival["time"][-1] == 300
        assert survival["share"][0] == 1


def test_names_are_text(results):
    """The directory's name would start a script."""
    text = page(results)
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 3
    (found,) = re.findall(r'id="data">(.*?)</script>', text, re.S)
    assert json.loads(found)["title"] == results.path.name


def test_nothing_is_loaded_from_elsewhere(results):
    text = page(results)
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:)""", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "addition1", "n_train": 40, "seeds": 1},
        {"arch": "mlp", "p": 7, "seeds": 2},
        {"task": "random", "p": 7, "seeds": 1},
        {"arch": "mlp", "p": 7, "seeds": 1, "wd": [0.1, 1], "frac": [0.5, 0.7]},
    ],
    ids=str,
)
def test_every_kind_of_sweep_has_a_page(tmp_path, settings):
    path = sweep(make_sweep({"epochs": 20, "d_mlp": 8, "lr": 1e-2, **settings}), tmp_path / "runs")
    before = page_data(jaxgrok.load(path))
    assert before["circuits"] == before["networks"] == []
    assert bool(before["advice"]) == ("p" in settings)
    assert bool(before["seeds"]) == ("p" not in settings)  # modular tasks have no parts
    if "p" in settings:
        assert analyze(path).results is not None
        after = page_data(jaxgrok.load(path))
        assert len(after["circuits"]) == len(after["runs"])
        assert after["advice"] == ""
        json.dumps(after, allow_nan=False)


def test_heads_of_induction_networks_are_on_the_page(tmp_path):
    task = {"task": "induction", "seq_len": 12, "repeat_len": 3, "n_repeats": 2, "n_tokens": 8, "n_test": 16}
    settings = {**task, "n_train": 32, "d_model": 16, "n_heads": 2, "seeds": 2, "epochs": 20}
    path = sweep(make_sweep(settings), tmp_path / "runs")
    found = analyze(path).results
    (cell,) = found.cells
    header, rows = heads.runs_table(heads.heads_of(found, cell))
    shown = page_data(found)["seeds"][-1]
    assert (shown["header"], shown["rows"]) == (list(header), [list(map(str, row)) for row in rows])


def test_a_sweep_over_sizes_and_one_over_losses_show_what_they_are_for(tmp_path):
    by_size = {"task": "addition1", "n_train": [20, 40], "d_model": 8, "n_heads": 2, "seeds": 2, "epochs": 20}
    results = load(sweep(make_sweep(by_size), tmp_path / "sizes"))
    header, rows = sizes.readable_table(sizes.sizes_of(results))
    (shown,) = [table for table in page_data(results)["seeds"] if table["header"] == header]
    assert shown["rows"] == rows
    assert shown["note"].startswith("Crossover: ")

    losses = {"arch": "mlp", "p": 5, "d_mlp": 8, "frac": 0.6, "loss": ["exact", "float32"], "seeds": 2, "epochs": 80}
    results = load(sweep(make_sweep(losses), tmp_path / "losses"))
    (shown,) = page_data(results)["seeds"]
    assert (shown["header"], shown["rows"]) == slingshots.readable_table(slingshots.slingshots_of_cells(results))


def test_the_question_of_a_sweep_file_is_on_its_page(tmp_path):
    file = tmp_path / "asked.toml"
    file.write_text('question = "Does it?"\nexpect = "It does."\narch = "mlp"\np = 5\nepochs = 5\nseeds = 1\n')
    results = load(sweep(sweep_from(file, {}), tmp_path / "runs"))
    assert page_data(results)["about"][:2] == [("question", "Does it?"), ("expected", "It does.")]
    assert sweep_from(file, {"seeds": 2}).expect == "It does."
    assert sweep_from(file, {"p": 7}).question == sweep_from(file, {"p": 7}).expect == ""  # nobody said so of p = 7


def test_a_plane_holds_what_its_table_does(tmp_path):
    settings = {**SETTINGS, "arch": "mlp", "seeds": 2, "wd": [0.1, 1], "frac": [0.5, 0.7], "epochs": 60}
    results = jaxgrok.load(sweep(make_sweep({**settings, "n_heads": 4, "d_model": 128}), tmp_path / "runs"))
    (plane,) = phase_diagram.planes(results.cells)
    (shown,) = page_data(results)["planes"]
    header, rows = phase_diagram.readable_table(plane)
    assert shown["header"] == header
    for name, fields, row in zip(shown["rows"], shown["fields"], rows, strict=True):
        left = [f"{field['share']} at {field['time']}" for field in fields]
        others = ["".join(f"; {n} {outcome}" for outcome, n in field["others"].items()) for field in fields]
        assert [name, *map("".join, zip(left, others, strict=True))] == row


def test_a_large_sweep_has_fewer_points_and_fewer_circuits(results, monkeypatch):
    monkeypatch.setattr("jaxgrok.report.data.MOST_MEASURES", 1)
    monkeypatch.setattr("jaxgrok.report.data.MOST_WEIGHT_BYTES", 1)
    data = page_data(results)
    assert [found["run"] for found in data["circuits"]] == [0]
    assert data["circuits_left_out"] == "1 of 4 analysed runs, evenly chosen."
    assert [(network["run"], network["epoch"]) for network in data["networks"]] == [(0, 300)]
    assert data["networks_left_out"].startswith("There is room for 1 of ")


def test_from_the_command_line(results, tmp_path, capsys):
    assert cli_report.main([str(results.path), "--page", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out == f"page: {tmp_path / 'a.html'}\n"
    assert (tmp_path / "a.html").read_text() == page(results)
    assert cli_report.main([str(results.path), "--page", str(tmp_path / "a.txt")]) == 2
    assert "--page" in capsys.readouterr().err
    assert cli_report.main([str(results.path), "--page", str(tmp_path / "nowhere" / "a.html")]) == 2
    assert "in a directory that exists" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    assert cli_analyze.main([str(results.path)]) == 0
    assert (results.path / "report.html").read_text() == page(results)


def test_several_pages_at_once(results, tmp_path, capsys):
    other = sweep(make_sweep({**SETTINGS, "seeds": 1, "epochs": 10}), tmp_path / "other")
    (other / "report.html").unlink(missing_ok=True)
    assert cli_report.main([str(results.path), str(other)]) == 0
    assert (other / "report.html").read_text() == page(jaxgrok.load(other))
    capsys.readouterr()
    for flag in (["--live"], ["--page", str(tmp_path / "a.html")]):
        assert cli_report.main([str(results.path), str(other), *flag]) == 2
        assert f"RUN_DIR: got '2 directories'; accepted: one, with {flag[0]}" in capsys.readouterr().err


def test_a_live_page_follows_a_sweep_to_its_end(tmp_path, monkeypatch):
    settings = {**SETTINGS, "seeds": 2, "epochs": 60}
    with pytest.raises(Interrupted):
        sweep(make_sweep(settings), tmp_path / "runs", watch=StopAt(40))
    file, looks = tmp_path / "runs" / "report.html", []

    def train_on(seconds):
        looks.append(file.read_text())
        if len(looks) == 2:
            sweep(make_sweep(settings), tmp_path / "runs")

    monkeypatch.setattr(cli_report.time, "sleep", train_on)
    assert cli_report.main([str(tmp_path / "runs"), "--live"]) == 0
    assert looks[0] == looks[1]
    assert 'http-equiv="refresh"' in looks[0]
    assert len(looks) == 2
    assert file.read_text() == page(jaxgrok.load(tmp_path / "runs"))
    assert 'http-equiv="refresh"' not in file.read_text()


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_page_computes_what_jax_does(results, data, tmp_path):
    """At ten pairs, to 1e-3 of the largest logit: the weights are in half precision there."""
    if shutil.which("node") is None:
        pytest.skip("node is not on this machine")
    network = data["networks"][-1]
    (tmp_path / "network.json").write_text(json.dumps(network))
    pairs = np.random.default_rng(0).integers(0, 11, (10, 2)).tolist()
    program = str(PROGRAMS / "network.js")
    (tmp_path / "run.js").write_text(
        f"""
        const {{ unpacked, forward, attentionToFirst, neuronMap, circle }} = require({json.dumps(program)});
        const found = JSON.parse(require("fs").readFileSync({json.dumps(str(tmp_path / "network.json"))}));
        for (const name in found.weights) found.weights[name] = unpacked(found.weights[name]);
        const all = {json.dumps(pairs)}.map(([a, b]) => forward(found, a, b));
        const plain = all.map((x) => ({{ ...x, neurons: [...x.neurons], logits: [...x.logits] }}));
        const maps = attentionToFirst(found).map((map) => [...map]), neuron = [...neuronMap(found, 3)];
        console.log(JSON.stringify([plain, maps, neuron, circle(found, 2)]));
        """
    )
    done = subprocess.run(["node", str(tmp_path / "run.js")], capture_output=True, text=True, check=True)
    forward, maps, neuron_map, circle = json.loads(done.stdout)
    record = results.runs[network["run"]]
    model, params = make_model(record.config, make_task(record.config)), results.network(record, network["epoch"])
    tokens = np.array([[a, b, 11] for a, b in pairs], np.int32)
    logits, activations = model.apply({"params": params}, tokens)
    W_E = np.asarray(params["embed"]["W_E"])[:11]
    waves = [wave(4 * np.pi / 11 * np.arange(11)) @ W_E for wave in (np.cos, np.sin)]
    expected = np.stack([W_E @ (wave / np.linalg.norm(wave)) for wave in waves], axis=1)
    np.testing.assert_allclose(circle, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    for i, theirs in enumerate(forward):
        a, b = pairs[i]
        to_first = [map_of_head[a * 11 + b] for map_of_head in maps]
        np.testing.assert_allclose(neuron_map[a * 11 + b], theirs["neurons"][3], rtol=0, atol=1e-6)
        np.testing.assert_allclose(to_first, [share[0] for share in theirs["pattern"]], rtol=0, atol=1e-6)
        ours = np.asarray(logits)[i, 0, :11]
        np.testing.assert_allclose(theirs["logits"], ours, rtol=0, atol=1e-3 * np.abs(ours).max())
        pattern = np.asarray(activations["blocks.0.attn.hook_pattern"])[i, :, 0]
        np.testing.assert_allclose(theirs["pattern"], pattern, rtol=0, atol=1e-3)
        neurons = np.asarray(activations["blocks.0.mlp.hook_post"])[i, 0]
        np.testing.assert_allclose(theirs["neurons"], neurons, rtol=0, atol=2e-3 * neurons.max())


# --- the page in a browser --------------------------------------------------------------------------------------------

DRIVE = """
<script>
{ // names of its own
const said = [];
const change = (id, value, kind = "change") => {
  $(id).value = value;
  $(id).dispatchEvent(new Event(kind, { bubbles: true }));
};
const seen = () => ({
  told: $("told").textContent,
  epoch: $("epoch").textContent,
  answer: $("answer").textContent,
  pictures: [...$("maps").children].map((picture) => picture.textContent),
  thick: charts.loss.series.filter((series) => series.width > 2).map((series) => series.label),
  charts: Object.keys(charts).sort(),
  bars: [...charts.W_E.data[1]],
  logits: charts.logits.data[1][0],
});
said.push(seen());
$("next").click();
said.push(seen());
change("cell", 1);
said.push(seen());
change("run", 1);
said.push(seen());
change("checkpoint", 0, "input");
said.push(seen());
change("a", 4, "input");
change("neuron", 1, "input");
change("which", 0, "input");
said.push(seen());
const before = performance.now();
for (let i = 0; i < 20; i++) change("checkpoint", i % 4, "input");
const slider = (performance.now() - before) / 20;
$("play").click();
const playing = $("play").textContent;
$("play").click();
const made = document.createElement("pre"), heading = $("title").textContent;
made.id = "answer-of-the-test";
made.textContent = JSON.stringify({ said, errors: window.heard, slider, playing, heading });
document.body.append(made);
}
</script>
"""


@pytest.fixture(scope="module")
def driven(results, tmp_path_factory):
    """What the page shows after each of its controls was used, in headless Chromium, from disk."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("Chromium is not on this machine")
    folder = tmp_path_factory.mktemp("page")
    file = write_page(results, folder / "report.html")
    # The errors of the page's own programs are heard by a listener that stands before them.
    listener = '<script>window.heard = []; addEventListener("error", (e) => heard.push(e.message));</script>'
    text = file.read_text().replace("<head>", f"<head>{listener}", 1).replace("</body>", DRIVE + "</body>")
    file.write_text(text)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser, *flags, profile, "--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="answer-of-the-test">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


def test_no_control_makes_an_error(driven):
    assert driven["errors"] == []
    assert driven["heading"] == "<script>alert(1)<"
    assert driven["playing"] == "stop"


def test_a_run_that_is_chosen_is_shown_everywhere(driven, data):
    first, following, cell, run, checkpoint, network = driven["said"]
    names = ["W_E", "W_L", "accuracy", "alpha", "clusters", "logits", "loss", "measures", "neurons", "survival"]
    assert set(names) <= set(first["charts"])
    for number, seen in ((0, first), (1, following), (2, cell), (3, run)):
        assert seen["told"].startswith(f"run {number}: ")
        assert seen["thick"] == [f"train of run {number}", f"test of run {number}"]
        circuit = data["circuits"][number]
        expected = unpacked(circuit["W_E_frequency_norms"])[-1][-5:]
        shown = [value for k, value in enumerate(seen["bars"]) if k + 1 not in circuit["keys"]]
        np.testing.assert_allclose(
            shown, [x for k, x in enumerate(expected) if k + 1 not in circuit["keys"]], rtol=1e-6
        )
    assert run["epoch"].startswith("epoch 300;")
    assert checkpoint["epoch"].startswith("epoch 0;")
    assert checkpoint["bars"] != run["bars"]
    assert network["logits"] != checkpoint["logits"]
    assert network["answer"] != checkpoint["answer"]
    assert "the answer is 9" in network["answer"]  # 4 + 5
    assert len(network["pictures"]) == 2 + 1  # two heads and a neuron
    assert network["pictures"][-1].startswith("neuron 1 (")


def test_the_slider_is_quick(driven):
    assert driven["slider"] < 100  # milliseconds a step
