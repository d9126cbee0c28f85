// The data block, unpacked: what was measured, and what follows from it by one division.
// Shapes: D domains ("all" first), L MoE layers by position, E experts of a layer.

const data = JSON.parse(document.getElementById("data").textContent);

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

/** A packed array; null stays null. */
function unpack(packed) {
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  return packed.type === "f2" ? halves(bytes) : new ARRAYS[packed.type](bytes.buffer);
}

/** float16, which not every browser knows, as float32. */
function halves(bytes) {
  return Float32Array.from(new Uint16Array(bytes.buffer), (bits) => {
    const sign = bits >> 15 ? -1 : 1,
      exponent = (bits >> 10) & 31,
      fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  });
}

const layers = data.layers;
const L = layers.length;
const nExperts = data.n_experts;
const widest = Math.max(0, ...nExperts);
const offsets = nExperts.map((_, l) => nExperts.slice(0, l).reduce((sum, n) => sum + n, 0));
const perDomain = nExperts.reduce((sum, n) => sum + n, 0);

const tokens_DLE = unpack(data.experts.tokens);
const weights_DLE = unpack(data.weights && data.weights.mean);
const shareLow_DLE = unpack(data.intervals && data.intervals.share_low);
const shareHigh_DLE = unpack(data.intervals && data.intervals.share_high);
const metrics = Object.fromEntries(Object.entries(data.metrics).map(([key, packed]) => [key, unpack(packed)]));
const columns = data.columns.map(([key, label, unit, group, text]) => ({ key, label, unit, group, text }));
const column = (key) => columns.find((one) => one.key === key);

/** A metric's value, NaN where it does not apply or was not measured. */
const metric = (key, d, l) => (metrics[key] ? metrics[key][d * L + l] : NaN);
/** ` (0.41 – 0.48)`, the 95 % interval of a metric; nothing where it has none. */
const intervalWords = (key, l, unit) => {
  const [low, high] = [`${key}_low`, `${key}_high`].map((end) => metric(end, state.domain, l));
  return Number.isNaN(low) ? "" : ` (${shown(low, unit)} – ${shown(high, unit)})`;
};
const has = (key) => Boolean(metrics[key]) && layers.some((_, l) => !Number.isNaN(metric(key, 0, l)));

/** Domains of which any token counts, by their place in `data.domains`; 0 is all text. */
const domains = data.domains.map((_, d) => d).filter((d) => d === 0 || layers.some((_, l) => metric("tokens", d, l) > 0));
const named = domains.slice(1);
const domainName = (d) => (d === 0 ? "all text" : data.domains[d]);

const textWords = () => (state.domain === 0 ? "All text" : `Domain “${visible(domainName(state.domain))}”`);

const place = (d, l, e) => d * perDomain + offsets[l] + e;
const slots_DL = data.domains.map((_, d) =>
  nExperts.map((n, l) => {
    let sum = 0;
    for (let e = 0; e < n; e++) sum += tokens_DLE[place(d, l, e)];
    return sum;
  }),
);
const tokensOf = (d, l, e) => tokens_DLE[place(d, l, e)];
const share = (d, l, e) => (slots_DL[d][l] ? tokensOf(d, l, e) / slots_DL[d][l] : NaN);
const relativeLoad = (d, l, e) => (slots_DL[d][l] ? (tokensOf(d, l, e) * nExperts[l]) / slots_DL[d][l] : NaN);
const lift = (d, l, e) => (tokensOf(0, l, e) ? share(d, l, e) / share(0, l, e) : NaN);
const meanWeight = (d, l, e) => (weights_DLE ? weights_DLE[place(d, l, e)] : NaN);

/** Standard deviations between the tokens of an expert and what is expected of it: an even share, or its share of all text. */
function beyondEven(d, l, e) {
  const expected = slots_DL[d][l] / nExperts[l];
  return (tokensOf(d, l, e) - expected) / Math.sqrt(Math.max(expected * (1 - data.top_k[l] / nExperts[l]), 1e-9));
}
function beyondAll(d, l, e) {
  const expected = share(0, l, e) * slots_DL[d][l];
  return (tokensOf(d, l, e) - expected) / Math.sqrt(Math.max(expected, 1));
}

const remembered = (make) => {
  const known = new Map();
  return (d, l) => {
    if (!known.has(d * L + l)) known.set(d * L + l, make(d, l));
    return known.get(d * L + l);
  };
};
/** The experts of a layer by load, the busiest first, ties by id; and their relative loads. */
const byLoad = remembered((d, l) =>
  Array.from({ length: nExperts[l] }, (_, e) => e).sort((a, b) => tokensOf(d, l, b) - tokensOf(d, l, a) || a - b),
);
const descending = remembered((d, l) => byLoad(d, l).map((e) => relativeLoad(d, l, e)));

/** Top tokens of an expert, by kind: [["input", ["the", ...]], ...]. */
const vocabulary = data.vocabulary && Object.entries(data.vocabulary.kinds).map(([kind, packed]) => [kind, unpack(packed)]);
function topTokens(l, e) {
  if (!vocabulary) return [];
  const { most, words } = data.vocabulary;
  return vocabulary
    .map(([kind, table]) => [
      kind,
      Array.from(table.subarray((offsets[l] + e) * most, (offsets[l] + e + 1) * most))
        .filter((at) => at)
        .map((at) => words[at - 1]),
    ])
    .filter(([, found]) => found.length);
}
const KINDS = { input: "tokens it reads", next: "tokens that follow", predicted: "tokens predicted" };
const kindWords = (kind) => KINDS[kind] || `tokens, ${visible(kind)}`;
const tokenSpans = (found) => found.flatMap((token) => [make("span", { class: "token" }, tokenText(token)), " "]);

/** The lift of every pair of a layer, as kept: a byte for i < j in row order; null where the matrix was left out. */
const pairOffsets = {};
const pairBytes = unpack(data.coactivation && data.coactivation.lifts);
if (data.coactivation) {
  let at = 0;
  for (const l of data.coactivation.layers) {
    pairOffsets[l] = at;
    at += (nExperts[l] * (nExperts[l] - 1)) / 2;
  }
}
/** 0 if the two never met, NaN if one never ran. */
function pairLift(l, i, j) {
  if (i > j) return pairLift(l, j, i);
  const byte = pairBytes[pairOffsets[l] + (i * (2 * nExperts[l] - i - 1)) / 2 + (j - i - 1)];
  if (byte === 255) return NaN;
  return byte === 0 ? 0 : 2 ** ((byte - data.coactivation.one) / data.coactivation.steps);
}

const median = (values) => {
  const known = values.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  const middle = known.length >> 1;
  return known.length ? (known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2) : NaN;
};

/** What the reader has chosen; every figure draws from it. */
const state = { domain: 0, quantity: "load", sorted: false, faded: false, chosen: null };

/** The figures on the page, by name; each can `refresh()`. */
const frames = {};
