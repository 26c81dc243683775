// The network at work: what it does with two numbers, computed from its weights.
"use strict";

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
  $("answer").textContent = `a = ${a}, b = ${b}: says ${best}; the answer is ${right}`;
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
    ["no key's cluster", OTHER, (k) => !keys.includes(k)],
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
  const answer = marker(() => right);
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

// A colour as red, green and blue.
const bytes = (colour) => colour.match(/[0-9a-f]{2}/gi).map((byte) => parseInt(byte, 16));

// Maps of every pair. colour: of the largest value; the chosen pair stands out.
function drawMaps(network, a, b) {
  network.maps ??= attentionToFirst(network);
  const { p, keys, clusters } = network,
    pair = a * p + b;
  $("maps").replaceChildren();
  const draw = (map, most, colour, caption) => {
    const context = picture($("maps"), caption, p),
      image = context.createImageData(p, p),
      [low, high] = [bytes(css("panel")), bytes(colour)];
    map.forEach((x, i) => image.data.set([...low.map((from, j) => from + (x / most) * (high[j] - from)), 255], 4 * i));
    image.data.set([...bytes(css("accent")), 255], 4 * pair);
    context.putImageData(image, 0, 0);
  };
  network.maps.forEach((map, head) => draw(map, 1, css("train"), `head ${head}: ${map[pair].toFixed(2)} to a = ${a}`));
  const last = clusters.length - 1,
    asked = $("neuron").value === "" ? clusters.findIndex((k) => keys.includes(k)) : +$("neuron").value,
    neuron = Math.min(last, Math.max(0, Math.floor(asked) || 0)),
    map = neuronMap(network, neuron),
    key = keys.indexOf(clusters[neuron]);
  $("neuron").max = last;
  $("neuron").placeholder = neuron;
  const cluster = clusters[neuron] ? `k = ${clusters[neuron]}` : "no cluster";
  draw(
    map,
    Math.max(...map) || 1,
    key < 0 ? OTHER : COLOURS[key % COLOURS.length],
    `neuron ${neuron} (${cluster}): ${say(map[pair])}`,
  );
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
