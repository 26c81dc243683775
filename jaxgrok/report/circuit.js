// The circuit over training: the measures of the chosen run at the chosen checkpoint.
"use strict";

const unpackedCircuits = new Map();
function circuitOf(run) {
  if (!circuits.has(run)) return null;
  if (!unpackedCircuits.has(run)) {
    const found = circuits.get(run);
    unpackedCircuits.set(
      run,
      Object.fromEntries(Object.entries(found).map(([name, value]) => [name, value?.base64 ? unpacked(value) : value])),
    );
  }
  return unpackedCircuits.get(run);
}
const SPECTRA = [
  ["W_E", "W_E_frequency_norms", "norm"],
  ["W_L", "W_L_frequency_norms", "norm"],
  ["clusters", "neuron_clusters", "neurons"],
  ["alpha", "alpha", "alpha_k"],
];
const epochOfCheckpoint = () => circuitOf(chosen().run)?.epoch[state.checkpoint] ?? null;
const checkpointMarker = marker(() => (epochOfCheckpoint() == null ? null : epochOfCheckpoint() + 1));
const at = (array, checkpoint) => {
  const width = array.shape.slice(1).reduce((x, y) => x * y, 1);
  return Array.from(array.values.subarray(checkpoint * width, (checkpoint + 1) * width));
};

function drawCheckpoint() {
  const circuit = circuitOf(chosen().run);
  $("circuit").hidden = !data.circuits.length;
  if (!data.circuits.length) return;
  for (const part of $("circuit").querySelectorAll(".controls, .grid, #measures, h3")) part.hidden = !circuit;
  $("circuit-note").textContent = circuit
    ? `${data.circuits_left_out} ${circuit.keys.length ? `The colours are the keys of the run's last analysed checkpoint: ${circuit.keys.join(" ")}.` : "The run's last analysed checkpoint has no keys."}`
    : `Run ${chosen().run} is not here: it was not analysed, or the page has no room for it. ${data.circuits_left_out}`;
  if (!circuit) return;
  state.checkpoint = Math.min(state.checkpoint, circuit.epoch.length - 1);
  $("checkpoint").max = circuit.epoch.length - 1;
  $("checkpoint").value = state.checkpoint;
  const values = ["neurons_unclustered", "neurons_always_active"]
    .filter((name) => circuit[name])
    .map((name) => `${name.replace(/_/g, " ")} ${at(circuit[name], state.checkpoint)}`);
  $("epoch").textContent = [`epoch ${whole(epochOfCheckpoint())}`, ...values].join("; ");
  for (const [id, name, label] of SPECTRA) {
    $(id).parentElement.hidden = !circuit[name];
    if (circuit[name]) drawBars(id, at(circuit[name], state.checkpoint), circuit.keys, label);
  }
}

const MEASURED = {
  "loss/train": ["train", "train"],
  "loss/test": ["test", "test"],
  "restricted_loss/all": ["restricted, all pairs", "restricted"],
  "excluded_loss/train": ["excluded, train", "excluded"],
};
function drawMeasures() {
  const circuit = circuitOf(chosen().run);
  if (!circuit) return;
  const shown = Object.keys(MEASURED).filter((name) => circuit[name]);
  const series = [
    { label: "epoch", value: (_, x) => (x == null ? "-" : whole(x - 1)) },
    ...shown.map((name) => ({
      label: MEASURED[name][0],
      stroke: css(MEASURED[name][1]),
      width: 2,
      points: { show: false },
      value: (_, y) => say(y),
    })),
  ];
  const made = chart(
    "measures",
    260,
    {
      axes: axes("epoch + 1", "nats", 64, { xLog: true, yLog: true }),
      scales: { x: EPOCHS, y: LOG },
      series,
      plugins: [checkpointMarker],
    },
    [circuit.epoch.map((epoch) => epoch + 1), ...shown.map((name) => Array.from(circuit[name].values, positive))],
  );
  made.over.addEventListener("click", () => made.cursor.idx != null && chooseCheckpoint(made.cursor.idx));
}

function chooseCheckpoint(number) {
  state.checkpoint = Math.max(0, number);
  drawCheckpoint();
  for (const id of ["measures", "loss", "accuracy"]) charts[id]?.redraw(false);
}

let playing = null;
function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
  } else {
    const last = () => (circuitOf(chosen().run)?.epoch.length ?? 1) - 1;
    if (state.checkpoint >= last()) state.checkpoint = -1;
    playing = setInterval(() => {
      chooseCheckpoint(state.checkpoint + 1);
      if (state.checkpoint >= last()) play();
    }, 120);
  }
  $("play").textContent = playing ? "stop" : "play";
}
