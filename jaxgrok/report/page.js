// What the page does: one run and one checkpoint are chosen, and every section shows them.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const MOST_LINES = 200; // runs drawn as lines of their own
const CURVES = ["train_loss", "test_loss", "train_acc", "test_acc"];
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#99ddff"];
const OTHER = "#8a939c"; // frequencies that are no keys
const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const say = (value) =>
  value == null || Number.isNaN(value)
    ? "-"
    : Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3)
      ? value.toPrecision(4)
      : +value.toPrecision(5);
const whole = (value) => (value == null ? "-" : Math.round(value).toLocaleString("en"));

const state = { run: 0, checkpoint: 0 }; // rows of data.runs and of the run's checkpoints
const charts = {}; // by the id of their element
const circuits = new Map(data.circuits.map((circuit) => [circuit.run, circuit]));

// --- elements --------------------------------------------------------------------------------------------------------

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text != null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function table({ name, header, rows, note }, parent) {
  if (!rows.length) return;
  const made = element("table", null, parent);
  made.className = "data";
  if (name) element("caption", name, made);
  const head = element("tr", null, element("thead", null, made)),
    body = element("tbody", null, made);
  for (const cell of header) element("th", cell, head);
  for (const row of rows) {
    const line = element("tr", null, body);
    for (const cell of row) element("td", cell, line);
  }
  if (note) {
    const more = element("details", null, parent);
    element("summary", "what the columns mean", more);
    element("p", note, more);
  }
}

function options(select, texts) {
  select.replaceChildren(
    ...texts.map((text, i) => {
      const made = element("option", text);
      made.value = i;
      return made;
    }),
  );
}

// --- charts ----------------------------------------------------------------------------------------------------------

// Of a logarithmic axis only the powers of ten are marked, and of many only some.
const decades = (u, marks) => {
  const powers = marks.filter((mark) => Math.abs(Math.log10(mark) - Math.round(Math.log10(mark))) < 1e-9);
  const every = Math.ceil(powers.length / 7);
  return marks.map((mark) => (powers.includes(mark) && Math.round(Math.log10(mark)) % every === 0 ? mark : null));
};
const named = (mark) =>
  mark == null ? "" : mark >= 0.01 && mark < 1e5 ? mark.toLocaleString("en") : mark.toExponential(0);

function axes(x, y, size = 64, { xLog = false, yLog = false } = {}) {
  const axis = (label, isLog) => ({
    label,
    labelSize: 18,
    font: "12px system-ui",
    labelFont: "12px system-ui",
    stroke: () => css("faint"),
    grid: { stroke: () => css("rule"), width: 1, ...(isLog ? { filter: decades } : {}) },
    ticks: { stroke: () => css("rule"), ...(isLog ? { filter: decades } : {}) },
    ...(isLog ? { filter: decades, values: (_, marks) => marks.map(named) } : {}),
  });
  return [axis(x, xLog), { ...axis(y, yLog), size }];
}

function chart(id, height, options, values) {
  charts[id]?.destroy();
  const place = $(id);
  charts[id] = new uPlot(
    { width: place.clientWidth || 300, height, legend: { show: true, live: true }, ...options },
    values,
    place,
  );
  charts[id].wanted = height;
  return charts[id];
}

new ResizeObserver(() =>
  requestAnimationFrame(() => {
    for (const [id, made] of Object.entries(charts)) {
      const width = $(id).clientWidth;
      if (width && Math.abs(width - made.width) > 1) made.setSize({ width, height: made.wanted });
    }
  }),
).observe(document.querySelector("main"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());

// A vertical line at an epoch, drawn over a chart whose axis of epochs is epoch + 1.
const marker = (epoch) => ({
  hooks: {
    draw: (u) => {
      const at = epoch();
      if (at == null) return;
      const x = Math.round(u.valToPos(at + 1, "x", true));
      u.ctx.save();
      u.ctx.strokeStyle = css("accent");
      u.ctx.lineWidth = 2 * devicePixelRatio;
      u.ctx.beginPath();
      u.ctx.moveTo(x, u.bbox.top);
      u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
      u.ctx.stroke();
      u.ctx.restore();
    },
  },
});

const LOG = { distr: 3 };
const epochs = unpacked(data.epochs).values;
const epochAxis = Float64Array.from(epochs, (epoch) => epoch + 1);
const curves = unpacked(data.curves);
const chosen = () => data.runs[state.run];
const rowsOf = (cell) =>
  data.runs
    .map((run, row) => [run, row])
    .filter(([run]) => run.cell === cell)
    .map(([, row]) => row);
const positive = (value) => (value > 0 && Number.isFinite(value) ? value : null);
const finite = (value) => (Number.isFinite(value) ? value : null);

function curveOf(row, name) {
  const length = epochs.length,
    at = (row * CURVES.length + CURVES.indexOf(name)) * length;
  return Array.from(curves.values.subarray(at, at + length), name.endsWith("loss") ? positive : finite);
}

function quantiles(rows, name, shares) {
  const all = rows.map((row) => curveOf(row, name));
  const bands = shares.map(() => []);
  for (let i = 0; i < epochs.length; i++) {
    const here = all
      .map((values) => values[i])
      .filter((value) => value !== null)
      .sort((x, y) => x - y);
    shares.forEach((share, j) => bands[j].push(here.length ? here[Math.round(share * (here.length - 1))] : null));
  }
  return bands;
}

function drawCurves(id, names, label, yScale) {
  const rows = rowsOf(chosen().cell),
    series = [{ label: "epoch", value: (_, x) => (x == null ? "-" : whole(x - 1)) }],
    values = [epochAxis],
    bands = [],
    owners = [null];
  const add = (line, points, owner = null) => {
    series.push({ points: { show: false }, value: (_, y) => say(y), ...line });
    values.push(points);
    owners.push(owner);
  };
  for (const name of names) {
    const colour = css(name.split("_")[0]);
    if (rows.length > MOST_LINES) {
      const [low, middle, high] = quantiles(rows, name, [0.1, 0.5, 0.9]);
      add({ label: `${name.split("_")[0]}, 90 %`, stroke: "transparent" }, high);
      add({ label: `${name.split("_")[0]}, 10 %`, stroke: "transparent" }, low);
      bands.push({ series: [series.length - 2, series.length - 1], fill: colour + "33" });
      add({ label: `${name.split("_")[0]}, median`, stroke: colour, width: 1, dash: [4, 3] }, middle);
    } else {
      for (const row of rows)
        if (row !== state.run)
          add(
            { label: `run ${data.runs[row].run}`, stroke: colour + "55", width: 1, class: "hidden-legend" },
            curveOf(row, name),
            row,
          );
    }
  }
  for (const name of names)
    add(
      { label: `${name.split("_")[0]} of run ${chosen().run}`, stroke: css(name.split("_")[0]), width: 2.5 },
      curveOf(state.run, name),
      state.run,
    );
  const made = chart(
    id,
    300,
    {
      axes: axes("epoch + 1", label, 64, { xLog: true, yLog: yScale === LOG }),
      scales: { x: { time: false, ...LOG }, y: yScale },
      series,
      bands,
      focus: { alpha: 1 },
      cursor: { focus: { prox: 30 } },
      plugins: [marker(epochOfCheckpoint)],
    },
    values,
  );
  made.over.addEventListener("click", () => {
    // The line nearest to the click.
    const { left, top, idx } = made.cursor;
    if (idx == null || left < 0) return;
    let best = null,
      least = 40;
    owners.forEach((owner, i) => {
      if (owner == null || values[i][idx] == null) return;
      const distance = Math.abs(made.valToPos(values[i][idx], "y") - top);
      if (distance < least) [best, least] = [owner, distance];
    });
    if (best !== null) choose(best);
  });
  for (const row of made.root.querySelectorAll(".hidden-legend")) row.hidden = true;
}

function drawSurvival() {
  const cells = data.cells.filter((cell) => cell.survival);
  $("survival").hidden = !cells.length;
  if (!cells.length) return;
  const time = [...new Set(cells.flatMap((cell) => cell.survival.time))].sort((x, y) => x - y);
  const series = [{ label: "epoch", value: (_, x) => whole(x) }],
    values = [time],
    bands = [];
  cells.forEach((cell, i) => {
    const colour = COLOURS[i % COLOURS.length],
      at = (name) => {
        let j = -1;
        const { time: own } = cell.survival,
          last = own[own.length - 1];
        return time.map((t) => {
          while (j + 1 < own.length && own[j + 1] <= t) j++;
          return t > last ? null : cell.survival[name][Math.max(j, 0)];
        });
      };
    const steps = uPlot.paths.stepped({ align: 1 }),
      quiet = { paths: steps, points: { show: false }, stroke: "transparent", class: "hidden-legend" };
    series.push(
      { ...quiet, label: "high" },
      { ...quiet, label: "low" },
      { ...quiet, class: "shown", label: cell.name, stroke: colour, width: 2, value: (_, y) => say(y) },
    );
    values.push(at("high"), at("low"), at("share"));
    bands.push({ series: [series.length - 3, series.length - 2], fill: colour + "22" });
  });
  const made = chart(
    "survival",
    240,
    { axes: axes("epoch", "share of runs"), scales: { x: { time: false }, y: { range: [0, 1.02] } }, series, bands },
    values,
  );
  for (const row of made.root.querySelectorAll(".hidden-legend")) row.hidden = true;
  $("event").textContent = cells.every((cell) => cell.event === "learned") ? "learned" : "grokked";
}

const fromZero = (_, least, most) => [Math.min(0, least), Math.max(0, most) * 1.05 || 1];

// Bars over frequencies 1, 2, ..., the keys in their colours.
function drawBars(id, values, keys, label) {
  const colourOf = new Map(keys.map((key, i) => [key, COLOURS[i % COLOURS.length]])),
    x = values.map((_, i) => i + 1);
  const series = [{ label: "k", value: (_, k) => k ?? "-" }];
  const bars = uPlot.paths.bars({ size: [0.8, 20] }),
    rows = [x];
  series.push({
    label: "no key",
    paths: bars,
    stroke: OTHER,
    fill: OTHER,
    points: { show: false },
    value: (_, y) => say(y),
  });
  rows.push(values.map((value, i) => (colourOf.has(i + 1) ? null : finite(value))));
  for (const key of keys) {
    series.push({
      label: `k = ${key}`,
      paths: bars,
      stroke: colourOf.get(key),
      fill: colourOf.get(key),
      points: { show: false },
      value: (_, y) => say(y),
    });
    rows.push(values.map((value, i) => (i + 1 === key ? finite(value) : null)));
  }
  const known = charts[id];
  if (known && known.keys === keys) return known.setData(rows);
  chart(
    id,
    190,
    {
      axes: axes("frequency k", label, 54),
      scales: { x: { time: false, range: [0, values.length + 1] }, y: { range: fromZero } },
      series,
      legend: { show: false },
    },
    rows,
  ).keys = keys;
}

function drawPlanes() {
  $("planes").hidden = !data.planes.length;
  const medians = data.planes
    .flatMap(({ fields }) => fields.flat())
    .map((field) => field?.median)
    .filter((x) => x > 0);
  const [least, most] = [Math.min(...medians), Math.max(...medians)];
  for (const { name, header, rows, fields } of data.planes) {
    const made = element("table", null, document.querySelector("#planes .tables"));
    made.className = "data plane";
    if (name) element("caption", name, made);
    const head = element("tr", null, element("thead", null, made)),
      body = element("tbody", null, made);
    for (const cell of header) element("th", cell, head);
    fields.forEach((row, i) => {
      const line = element("tr", null, body);
      element("th", rows[i], line);
      for (const field of row) {
        const place = element("td", field ? `${field.share} at ${field.time}` : "-", line);
        if (!field) continue;
        element(
          "small",
          Object.entries(field.others)
            .map(([outcome, n]) => `${n} ${outcome}`)
            .join(", "),
          place,
        );
        place.classList.toggle("never", field.median === null);
        const late = most > least ? Math.log(field.median / least) / Math.log(most / least) : 0.5;
        if (field.median) element("i", null, place).style.width = `${10 + 90 * late}%`;
      }
    });
  }
}

// --- the circuit over training ---------------------------------------------------------------------------------------

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
const at = (array, checkpoint) => {
  const width = array.shape.slice(1).reduce((x, y) => x * y, 1);
  return Array.from(array.values.subarray(checkpoint * width, (checkpoint + 1) * width));
};

function drawCheckpoint() {
  const circuit = circuitOf(chosen().run);
  $("circuit").hidden = !data.circuits.length;
  if (!data.circuits.length) return;
  for (const part of $("circuit").querySelectorAll(".controls, .grid, #measures")) part.hidden = !circuit;
  $("circuit-note").textContent = circuit
    ? `${data.circuits_left_out} ${circuit.keys.length ? `The colours are the keys of the run's last checkpoint: ${circuit.keys.join(" ")}.` : "The run's last checkpoint has no keys."}`
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
      scales: { x: { time: false, ...LOG }, y: LOG },
      series,
      plugins: [marker(epochOfCheckpoint)],
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

// --- the network at work ---------------------------------------------------------------------------------------------

const ready = new Map();
function networkOf(number) {
  if (!ready.has(number)) {
    const found = data.networks[number],
      weights = Object.fromEntries(Object.entries(found.weights).map(([name, x]) => [name, unpacked(x)]));
    ready.set(number, {
      ...found,
      weights,
      s: found.s && unpacked(found.s).values,
      labels: unpacked(found.labels).values,
    });
  }
  return ready.get(number);
}

function drawNetwork() {
  $("network").hidden = !data.networks.length;
  if (!data.networks.length) return;
  const network = networkOf(+$("which").value || 0),
    { p } = network;
  const [a, b] = ["a", "b"].map((id) => {
    $(id).max = p - 1;
    return Math.min(p - 1, Math.max(0, Math.floor(+$(id).value) || 0));
  });
  const { pattern, neurons, logits } = forward(network, a, b);
  const best = logits.indexOf(Math.max(...logits)),
    right = network.labels[a * p + b];
  $("answer").textContent = `says ${best}; the answer is ${right}`;
  $("attention").replaceChildren(
    ...pattern.map((share, head) => {
      const line = element("div");
      line.className = "head";
      element("span", `head ${head}`, line);
      share.forEach((x, i) => {
        const bar = element("div", null, line);
        bar.className = "bar";
        element("i", null, bar).style.width = `${100 * x}%`;
        element("span", `${["a", "b", "="][i]} ${x.toFixed(2)}`, bar);
      });
      return line;
    }),
  );
  const { keys } = network,
    order = [...network.clusters.keys()].sort(
      (x, y) => (network.clusters[x] || 1e9) - (network.clusters[y] || 1e9) || x - y,
    );
  const groups = [
    ["no cluster", OTHER, (k) => !keys.includes(k)],
    ...keys.map((key, i) => [`k = ${key}`, COLOURS[i % COLOURS.length], (k) => k === key]),
  ];
  const bars = uPlot.paths.bars({ size: [1, 8] }),
    x = order.map((_, i) => i + 1);
  chart(
    "neurons",
    190,
    {
      axes: axes("neuron", "activation", 54),
      scales: { x: { time: false, range: [0, x.length + 1] }, y: { range: fromZero } },
      series: [
        { label: "neuron" },
        ...groups.map(([label, colour]) => ({
          label,
          stroke: colour,
          fill: colour,
          paths: bars,
          points: { show: false },
          value: (_, y) => say(y),
        })),
      ],
    },
    [x, ...groups.map(([, , has]) => order.map((neuron) => (has(network.clusters[neuron]) ? neurons[neuron] : null)))],
  );
  drawMaps(network, a, b);
  drawCircles(network, a, b);
  const classes = Array.from({ length: p }, (_, c) => c);
  const answer = { hooks: { draw: (u) => marker(() => right - 1).hooks.draw(u) } };
  chart(
    "logits",
    220,
    {
      axes: axes("class c", "logit"),
      scales: { x: { time: false, range: [-1, p] } },
      series: [
        { label: "c" },
        { label: "logit", stroke: css("ink"), width: 2, points: { show: false }, value: (_, y) => say(y) },
      ],
      plugins: [answer],
    },
    [classes, Array.from(logits)],
  );
  $("waves").hidden = $("waves").previousElementSibling.hidden = !network.s || !keys.length;
  if (!network.s || !keys.length) return;
  const s = network.s[a * p + b],
    waves = keys.map((key, i) => classes.map((c) => network.alpha[i] * Math.cos((2 * Math.PI * key * (s - c)) / p)));
  const sum = classes.map((_, c) => waves.reduce((total, wave) => total + wave[c], 0));
  chart(
    "waves",
    220,
    {
      axes: axes("class c", "logit"),
      scales: { x: { time: false, range: [-1, p] } },
      series: [
        { label: "c" },
        ...keys.map((key, i) => ({
          label: `k = ${key}`,
          stroke: COLOURS[i % COLOURS.length],
          width: 1,
          points: { show: false },
          value: (_, y) => say(y),
        })),
        { label: "their sum", stroke: css("ink"), width: 2, points: { show: false }, value: (_, y) => say(y) },
      ],
      plugins: [answer],
    },
    [classes, ...waves, sum],
  );
}

function picture(parent, caption, size) {
  const made = element("figure", null, parent),
    canvas = element("canvas", null, made);
  canvas.width = canvas.height = size;
  element("figcaption", caption, made);
  return canvas.getContext("2d");
}

// A colour of the style sheet as red, green and blue.
const rgb = (name) =>
  css(name)
    .match(/[0-9a-f]{2}/gi)
    .map((byte) => parseInt(byte, 16));

function drawMaps(network, a, b) {
  network.maps ??= attentionToFirst(network);
  const { p } = network,
    [low, high] = [rgb("panel"), rgb("train")];
  $("maps").replaceChildren();
  network.maps.forEach((map, head) => {
    const context = picture($("maps"), `head ${head}: ${map[a * p + b].toFixed(2)} to a = ${a}`, p),
      image = context.createImageData(p, p);
    map.forEach((share, pair) => image.data.set([...low.map((x, i) => x + share * (high[i] - x)), 255], 4 * pair));
    image.data.set([...rgb("accent"), 255], 4 * (a * p + b));
    context.putImageData(image, 0, 0);
  });
}

function drawCircles(network, a, b) {
  $("circles").replaceChildren();
  $("circles").previousElementSibling.hidden = !network.keys.length;
  network.keys.forEach((key, i) => {
    const size = 340,
      context = picture($("circles"), `k = ${key}`, size),
      points = circle(network, key);
    const most = Math.max(...points.flat().map(Math.abs)) * 1.15,
      on = (x) => size / 2 + (x / most) * (size / 2);
    points.forEach(([x, y], number) => {
      const is = number === a || number === b;
      context.fillStyle = is ? css("accent") : COLOURS[i % COLOURS.length];
      context.beginPath();
      context.arc(on(x), on(-y), is ? 9 : 4, 0, 2 * Math.PI);
      context.fill();
      context.font = "26px system-ui";
      if (is) context.fillText(number === a ? "a" : "b", on(x) + 10, on(-y) - 8);
    });
  });
}

// --- the whole page --------------------------------------------------------------------------------------------------

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
if (data.waiting) element("p", data.waiting, whenTables);
if (data.stages) table(data.stages, whenTables);
drawPlanes();
for (const each of data.seeds) table(each, document.querySelector("#seeds .tables"));
$("seeds").hidden = !data.seeds.length;
options(
  $("cell"),
  data.cells.map((cell) => cell.name),
);
options(
  $("which"),
  data.networks.map((network) => `run ${network.run} at epoch ${whole(network.epoch)}`),
);
if (data.networks.length) $("which").value = data.networks.length - 1;
$("cell").addEventListener("change", () => choose(rowsOf(+$("cell").value)[0]));
$("run").addEventListener("change", () => choose(rowsOf(chosen().cell)[+$("run").value]));
const step = (by) => choose((state.run + by + data.runs.length) % data.runs.length);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("checkpoint").addEventListener("input", () => chooseCheckpoint(+$("checkpoint").value));
$("play").addEventListener("click", play);
for (const id of ["which", "a", "b"]) $(id).addEventListener("input", drawNetwork);
$("picker").hidden = !data.runs.length;
drawSurvival();
const linked = +(location.hash.match(/^#run=(\d+)$/)?.[1] ?? NaN);
if (data.runs.length) choose(Math.max(0, data.runs.findIndex((run) => run.run === linked)));
drawNetwork();
