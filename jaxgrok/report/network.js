// The forward pass of one block of the post's transformer for one pair of numbers, in plain loops.
"use strict";

function unpacked({ shape, dtype, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const kinds = {
    float16: (x) => fromHalf(new Uint16Array(x)),
    float32: (x) => new Float32Array(x),
    int16: (x) => new Int16Array(x),
  };
  const values = kinds[dtype](bytes.buffer);
  return { shape, values };
}

function fromHalf(halves) {
  return Float32Array.from(halves, (h) => {
    const sign = h & 0x8000 ? -1 : 1,
      exponent = (h >> 10) & 31,
      fraction = h & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

// network: its entry in the page's data, with unpacked weights. Returns the attention pattern from "=" [head][position],
// the neurons after their ReLU, and the logits of the classes 0 to p - 1.
function forward(network, a, b) {
  const w = network.weights,
    p = network.p,
    H = network.n_heads,
    f = network.residual_factor;
  const D = w["embed/W_E"].shape[1],
    K = D / H,
    tokens = [a, b, p];
  const row = ({ shape, values }, i) => values.subarray(i * shape[1], (i + 1) * shape[1]);
  const times = (x, { values }, rows, columns, at = 0) => {
    const out = new Float64Array(columns);
    for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j] += x[i] * values[at + i * columns + j];
    return out;
  };
  const plus = (x, y, factor = 1) => Float64Array.from(x, (value, i) => factor * value + y[i]);
  const stream = tokens.map((token, i) => plus(row(w["embed/W_E"], token), row(w["pos_embed/W_pos"], i)));
  const of = (name) => w[`blocks_0/${name}`];
  let attended = new Float64Array(D);
  const pattern = [];
  for (let h = 0; h < H; h++) {
    const project = (x, name) => times(x, of(`attn/${name}`), D, K, h * D * K);
    const query = project(stream[2], "W_Q");
    const scores = stream.map((x) => project(x, "W_K").reduce((sum, key, i) => sum + key * query[i], 0) / Math.sqrt(K));
    const most = Math.max(...scores),
      weights = scores.map((score) => Math.exp(score - most));
    const total = weights.reduce((sum, x) => sum + x, 0),
      share = weights.map((x) => x / total);
    const values = stream.map((x) => project(x, "W_V"));
    const z = Float64Array.from({ length: K }, (_, i) => share.reduce((sum, x, s) => sum + x * values[s][i], 0));
    attended = plus(attended, times(z, of("attn/W_O"), K, D, h * K * D));
    pattern.push(share);
  }
  const mid = plus(stream[2], attended, f),
    M = of("mlp/W_in").shape[1];
  const neurons = plus(times(mid, of("mlp/W_in"), D, M), of("mlp/b_in").values).map((x) => Math.max(x, 0));
  const post = plus(mid, plus(times(neurons, of("mlp/W_out"), M, D), of("mlp/b_out").values), f);
  const logits = times(post, w["unembed/W_U"], D, w["unembed/W_U"].shape[1]).subarray(0, p);
  return { pattern, neurons, logits };
}

// The scores of each head from "=": of every number at either position, and of "=" itself. "=" asks the same of every
// pair, so a score depends on one number and its position alone.
function scoresOf(network) {
  const w = network.weights,
    p = network.p,
    H = network.n_heads,
    D = w["embed/W_E"].shape[1],
    K = D / H;
  const of = (name) => w[`blocks_0/attn/${name}`].values;
  return Array.from({ length: H }, (_, h) => {
    const query = new Float64Array(K),
      asked = new Float64Array(D),
      first = h * D * K;
    for (let i = 0; i < D; i++)
      for (let j = 0; j < K; j++) query[j] += streamAt(network, p, 2, i) * of("W_Q")[first + i * K + j];
    for (let i = 0; i < D; i++)
      for (let j = 0; j < K; j++) asked[i] += (of("W_K")[first + i * K + j] * query[j]) / Math.sqrt(K);
    return along(network, asked);
  });
}

const streamAt = ({ weights: w }, token, position, i) =>
  w["embed/W_E"].values[token * w["embed/W_E"].shape[1] + i] +
  w["pos_embed/W_pos"].values[position * w["embed/W_E"].shape[1] + i];

// The stream before attention along a direction: of every number at the first and the second position, and of "=".
function along(network, direction) {
  const { p } = network,
    at = (token, position) => direction.reduce((sum, x, i) => sum + x * streamAt(network, token, position, i), 0);
  const [first, second] = [0, 1].map((position) => Float64Array.from({ length: p }, (_, token) => at(token, position)));
  return { first, second, equals: at(p, 2) };
}

// How a head attends to a, b and "=".
function shares({ first, second, equals }, a, b) {
  const most = Math.max(first[a], second[b], equals),
    weights = [first[a], second[b], equals].map((score) => Math.exp(score - most)),
    total = weights[0] + weights[1] + weights[2];
  return weights.map((x) => x / total);
}

// The attention of each head from "=" to a, for every pair: [head][a * p + b].
function attentionToFirst(network) {
  const { p } = network;
  return scoresOf(network).map((scores) =>
    Float64Array.from({ length: p * p }, (_, pair) => shares(scores, Math.floor(pair / p), pair % p)[0]),
  );
}

// One neuron after its ReLU, on every pair: [a * p + b].
function neuronMap(network, neuron) {
  const w = network.weights,
    p = network.p,
    D = w["embed/W_E"].shape[1],
    K = D / network.n_heads,
    { shape, values: W_in } = w["blocks_0/mlp/W_in"];
  const reads = Float64Array.from({ length: D }, (_, i) => W_in[i * shape[1] + neuron]);
  const { equals: skip } = along(network, reads),
    base = network.residual_factor * skip + w["blocks_0/mlp/b_in"].values[neuron];
  // What the neuron reads of what each head writes, by the number that it attends to.
  const heads = scoresOf(network).map((scores, h) => {
    const W_V = w["blocks_0/attn/W_V"].values.subarray(h * D * K, (h + 1) * D * K),
      W_O = w["blocks_0/attn/W_O"].values.subarray(h * D * K, (h + 1) * D * K);
    const written = Float64Array.from({ length: K }, (_, k) =>
      reads.reduce((sum, x, i) => sum + x * W_O[k * D + i], 0),
    );
    const direction = Float64Array.from({ length: D }, (_, i) =>
      written.reduce((sum, x, k) => sum + x * W_V[i * K + k], 0),
    );
    return { scores, read: along(network, direction) };
  });
  return Float64Array.from({ length: p * p }, (_, pair) => {
    const a = Math.floor(pair / p),
      b = pair % p;
    let sum = base;
    for (const { scores, read } of heads) {
      const [to_a, to_b, to_equals] = shares(scores, a, b);
      sum += to_a * read.first[a] + to_b * read.second[b] + to_equals * read.equals;
    }
    return Math.max(sum, 0);
  });
}

// The embedding of every number, seen along its own wave of frequency k: [number] of (along the cosine, along the sine).
function circle(network, k) {
  const { p } = network,
    { shape, values } = network.weights["embed/W_E"],
    D = shape[1];
  const [u, v] = [Math.cos, Math.sin].map((wave) => {
    const direction = new Float64Array(D);
    for (let a = 0; a < p; a++)
      for (let i = 0; i < D; i++) direction[i] += wave((2 * Math.PI * k * a) / p) * values[a * D + i];
    const norm = Math.hypot(...direction) || 1;
    return direction.map((x) => x / norm);
  });
  const projected = (a, direction) => direction.reduce((sum, x, i) => sum + x * values[a * D + i], 0);
  return Array.from({ length: p }, (_, a) => [projected(a, u), projected(a, v)]);
}

if (typeof module !== "undefined") module.exports = { unpacked, forward, attentionToFirst, neuronMap, circle };
