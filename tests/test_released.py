"""A run beside a released one: what is read, where they part, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxgrok.config import BadInput
from jaxgrok.store.curves import RunCurves
from jaxgrok.tables import released
from jaxgrok.tables.released import LossCurves
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import sweep


def curves(n=1000, factor=1.0):
    epochs = np.arange(n)
    loss = 5 * np.exp(-epochs / 50) + 1e-7
    return LossCurves(epochs, loss, epochs[::10], factor * (1 + loss[::10]))


def test_the_largest_difference_is_over_shared_epochs_up_to_the_last():
    ours, theirs = curves(1000), curves(800)
    ours.train_loss[500] *= 1.5
    assert released.deviation(ours, theirs, "train", 0, 499) == 0
    assert released.deviation(ours, theirs, "train", 499, 500) == pytest.approx(0.5)
    assert released.deviation(curves(factor=1.1), theirs, "test", 0, 10_000) == pytest.approx(0.1)


def test_first_below():
    c = curves()
    first = released.first_below(c.epoch_train, c.train_loss, 0.1)
    assert c.train_loss[first] < 0.1 <= c.train_loss[first - 1]
    assert released.first_below(c.epoch_train, c.train_loss, 1e-9) is None


def test_rows_name_thresholds_and_differences():
    rows = {row[0]: row[1:] for row in released.comparison(curves(), curves(factor=2.0))}
    assert rows["initial train loss"] == ["5.000000100", "5.000000100"]
    assert rows["test loss, largest relative difference, epochs 100 - 300"] == ["", "0.5"]
    assert rows["train loss first below 0.1, epoch"] == ["196", "196"]
    assert rows["test loss first below 1, epoch"] == ["-", "-"]


def test_spikes_are_described():
    c = curves(2000)
    assert released.spike_rows(c) == [["spikes in 2,000 epochs", "0"]]
    c.train_loss[1500:1510] = 0.2
    rows = dict(released.spike_rows(c))
    assert rows["spikes in 2,000 epochs"] == "1"
    assert rows["first at epoch"] == "1,500"
    assert rows["higher than 0.1"] == "1"


def test_samples_of_a_json(tmp_path):
    samples = {"train_at": {"0": 5.0, "100": 1.0}, "test_at": {"0": 6.0, "100": 2.0}}
    (tmp_path / "curves.json").write_text(json.dumps({"_about": {}, "low": samples}))
    theirs = released.read_released(tmp_path / "curves.json", "low")
    assert not theirs.whole
    assert ["test loss at epoch 100", "2", "1.68"] in released.comparison(curves(), theirs)
    with pytest.raises(BadInput, match="one of low"):
        released.read_released(tmp_path / "curves.json", "high")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadInput, match=r"broken\.json"):
        released.read_released(tmp_path / "broken.json", "low")


@pytest.mark.parametrize(
    "content", [[1, 2], {"low": {"train_at": {}, "test_at": {}}}, {"low": {"train_at": {"x": 1}, "test_at": {}}}]
)
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "curves.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"curves\.json"):
        released.read_released(tmp_path / "curves.json", "low")


def test_a_run_that_has_not_begun_or_skipped_epochs_is_refused():
    c = curves()

    def of_every(part):
        accuracy = np.zeros(len(c.epoch_eval[part]))
        curves = (x[part] for x in (c.epoch_train, c.train_loss, c.epoch_eval, c.test_loss))
        return RunCurves(*curves, accuracy, accuracy, last_epoch=1000)

    assert released.losses_of(of_every(slice(None))).epochs("train")[-1] == 999
    with pytest.raises(BadInput, match="begun"):
        released.losses_of(of_every(slice(0)))
    with pytest.raises(BadInput, match="train_every"):
        released.losses_of(of_every(slice(None, None, 10)))


def test_the_last_stretch_reaches_the_end():
    rows = [row[0] for row in released.comparison(curves(950), curves(900))]
    assert "train loss, largest relative difference, epochs 300 - 899" in rows


def test_the_released_curves(shared):
    pytest.importorskip("torch")
    theirs = released.read_released(shared / "reference/published/wd_10-1_mod_addition_loss_curve.pth")
    assert released.first_below(theirs.epoch_eval, theirs.test_loss, 0.1) == 95_520
    assert (theirs.test_loss.max(), theirs.epoch_eval[theirs.test_loss.argmax()]) == (
        pytest.approx(40.45, abs=0.01),
        1550,
    )
    assert released.spike_rows(theirs)[0][1] == "0"


def test_weights_without_curves_are_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", x=np.zeros(3))
    with pytest.raises(BadInput, match="train_losses"):
        released.read_released(tmp_path / "weights.npz")


def test_a_directory_of_several_runs_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import rerun

    path = sweep(
        make_sweep({"arch": "mlp", "p": 5, "d_mlp": 4, "frac": 0.5, "seeds": 2, "epochs": 2}), tmp_path / "runs"
    )
    assert rerun.main([str(path), "curves.json"]) == 2
    assert capsys.readouterr().err == f"rerun.py: error: run directory: got {str(path)!r}; accepted: one run, not 2\n"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"low": {"train_at": {"0": ' + "9" * 400 + '}, "test_at": {"0": 1}}}',
        '{"low": {"train_at": {"' + "9" * 30 + '": 1}, "test_at": {"0": 1}}}',
        '{"low": {"train_at": [1, 2], "test_at": {"0": 1}}}',
        '{"a\\nb": {"train_at": {"0": 1}, "test_at": {"0": 1}}}',
    ],
    ids=["deep", "loss", "epoch", "list", "newline"],
)
def test_json_out_of_reason_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "curves.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        released.read_released(tmp_path / "curves.json", "low")
    assert "\n" not in str(caught.value)
