// The page's data, and what every section is built of: elements, colours, lines and bars.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const MOST_LINES = 200; // runs drawn as lines of their own
const MOST_CELLS = 20; // cells whose survival is drawn, beside the chosen one
const MOST_TABLES = 12; // across seeds, that stand open
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

const LOG = { distr: 3 };
const EPOCHS = { time: false, ...LOG, range: (_, least, most) => [Math.max(1, least), Math.max(2, most)] };
const positive = (value) => (value > 0 && Number.isFinite(value) ? value : null);
const finite = (value) => (Number.isFinite(value) ? value : null);

const state = { run: 0, checkpoint: 0 }; // rows of data.runs and of the run's checkpoints
const charts = {}; // by the id of their element
const circuits = new Map(data.circuits.map((circuit) => [circuit.run, circuit]));

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

// A vertical line at a place on the horizontal axis.
const marker = (place) => ({
  hooks: {
    draw: (u) => {
      const at = place();
      if (at == null) return;
      const x = Math.round(u.valToPos(at, "x", true));
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
