// What the page does: one run and one checkpoint are chosen, and every section shows them.
"use strict";

function choose(row) {
  state.run = row;
  const run = chosen(),
    rows = rowsOf(run.cell);
  $("cell").value = run.cell;
  options(
    $("run"),
    rows.map((each) => `seed ${data.runs[each].seed}`),
  );
  $("run").value = rows.indexOf(row);
  history.replaceState(null, "", `#run=${run.run}`); // so that a page that loads itself anew, or is sent on, shows it
  $("told").textContent =
    `run ${run.run}: ${run.outcome}; memorised at ${whole(run.memorised)}, ${data.cells[run.cell].event} at ${whole(run.grokked)}, trained ${whole(run.last_epoch)} epochs`;
  const circuit = circuitOf(run.run);
  if (circuit) state.checkpoint = circuit.epoch.length - 1;
  const network = data.networks.findLastIndex((each) => each.run === run.run);
  if (network >= 0) {
    $("which").value = network;
    drawNetwork();
  }
  if (data.cells.length > MOST_CELLS) drawSurvival();
  drawRun();
}

function drawRun() {
  drawCurves("loss", ["train_loss", "test_loss"], "nats", LOG);
  drawCurves("accuracy", ["train_acc", "test_acc"], "accuracy", { range: [-0.03, 1.03] });
  drawCheckpoint();
  drawMeasures();
}

function draw() {
  for (const [id, made] of Object.entries(charts)) {
    made.destroy();
    delete charts[id];
  }
  drawSurvival();
  if (data.runs.length) drawRun();
  drawNetwork();
}

document.title = `${data.title} - jaxgrok`;
$("title").textContent = data.title;
for (const [label, text] of data.about) {
  const list = document.querySelector("#about dl");
  element("dt", label, list);
  element("dd", text, list);
}
for (const line of data.damage) element("p", line, document.querySelector("#about .damage"));
const whenTables = document.querySelector("#when .tables");
table(data.timing, whenTables);
$("advice").textContent = data.advice;
if (data.waiting) element("p", data.waiting, whenTables);
if (data.stages) table(data.stages, whenTables);
drawPlanes();
for (const each of data.seeds) {
  const place = document.querySelector("#seeds .tables");
  // Of many cells, each table is opened by whoever wants to see it.
  const fold = data.seeds.length > MOST_TABLES ? element("details", null, place) : null;
  if (fold) element("summary", each.name, fold);
  table(each, fold ?? place);
}
$("seeds").hidden = !data.seeds.length;
if (data.claims) table(data.claims, document.querySelector("#claims .tables"));
$("claims").hidden = !data.claims;
options(
  $("cell"),
  data.cells.map((cell) => cell.name),
);
options(
  $("which"),
  data.networks.map(
    (network) => `${data.cells[network.cell].name}, run ${network.run} at epoch ${whole(network.epoch)}`,
  ),
);
if (data.networks.length) $("which").value = data.networks.length - 1;
$("cell").addEventListener("change", () => choose(rowsOf(+$("cell").value)[0]));
$("run").addEventListener("change", () => choose(rowsOf(chosen().cell)[+$("run").value]));
const step = (by) => choose((state.run + by + data.runs.length) % data.runs.length);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("checkpoint").addEventListener("input", () => chooseCheckpoint(+$("checkpoint").value));
$("play").addEventListener("click", play);
for (const id of ["which", "a", "b", "neuron"]) $(id).addEventListener("input", drawNetwork);
$("network-note").textContent = data.networks_left_out;
$("picker").hidden = $("curves").hidden = !data.runs.length;
$("circuit").hidden = !data.circuits.length;
drawSurvival();
const linked = +(location.hash.match(/^#run=(\d+)$/)?.[1] ?? NaN);
if (data.runs.length)
  choose(
    Math.max(
      0,
      data.runs.findIndex((run) => run.run === linked),
    ),
  );
if (!charts.logits) drawNetwork(); // the chosen run has none
