// When: the curves of all runs, the share that has not grokked yet, and the phase diagram.
"use strict";

const epochs = unpacked(data.epochs).values;
const epochAxis = Float64Array.from(epochs, (epoch) => epoch + 1);
const curves = unpacked(data.curves);
const chosen = () => data.runs[state.run];
const rowsOf = (cell) =>
  data.runs
    .map((run, row) => [run, row])
    .filter(([run]) => run.cell === cell)
    .map(([, row]) => row);

function curveOf(row, name) {
  const length = epochs.length,
    at = (row * CURVES.length + CURVES.indexOf(name)) * length;
  return Array.from(curves.values.subarray(at, at + length), shown(name));
}
// A loss of 0 has no place on a logarithmic axis.
const shown = (name) => (name.endsWith("loss") ? positive : finite);

// Quantiles over runs at each epoch, as long as nine tenths of them still train.
function quantiles(rows, name, shares) {
  const length = epochs.length,
    bands = shares.map(() => []);
  for (let i = 0; i < length; i++) {
    const here = rows
      .map((row) => curves.values[(row * CURVES.length + CURVES.indexOf(name)) * length + i])
      .filter(Number.isFinite)
      .sort((x, y) => x - y);
    const enough = here.length >= 0.9 * rows.length;
    shares.forEach((share, j) =>
      bands[j].push(enough ? shown(name)(here[Math.round(share * (here.length - 1))]) : null),
    );
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
    // Where less is recorded than is evaluated, a curve has gaps between its epochs.
    series.push({ points: { show: false }, spanGaps: true, value: (_, y) => say(y), ...line });
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
      scales: { x: EPOCHS, y: yScale },
      series,
      bands,
      focus: { alpha: 1 },
      cursor: { focus: { prox: 30 } },
      plugins: [checkpointMarker],
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
  const cells = data.cells.filter((cell, i) => cell.survival && (i < MOST_CELLS || i === chosen().cell));
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
