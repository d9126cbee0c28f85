// Figure 6: which experts of a layer run together.

const pairState = { layer: data.coactivation ? data.coactivation.layers[0] : 0, order: "similar", faded: true };
const matrixKept = (l) => pairOffsets[l] !== undefined;

/** Tokens that would run both experts if picks were independent. */
const apart = (l, i, j) => (tokensOf(0, l, i) * tokensOf(0, l, j)) / metric("tokens", 0, l);

/** Whether a pair is beyond chance: four standard deviations, and more than the rounding of the lifts. */
function beyondChance(l, i, j) {
  const expected = apart(l, i, j);
  return Math.abs((pairLift(l, i, j) - 1) * expected) > Math.max(4 * Math.sqrt(Math.max(expected, 1)), 0.02 * expected);
}

/** Experts so that those that run together stand together: clusters joined by their mean log lift, ends that fit put side by side. */
function similarOrder(l) {
  const n = nExperts[l],
    size = new Array(n).fill(1),
    members = Array.from({ length: n }, (_, e) => [e]);
  // Four tokens more on both sides, so that experts that hardly run are close to nobody; those without a token go last.
  const closeness = (i, j) => Math.log2((pairLift(l, i, j) * apart(l, i, j) + 4) / (apart(l, i, j) + 4));
  const mean = members.map((_, i) => Float64Array.from({ length: n }, (_, j) => (i === j ? -Infinity : closeness(i, j))));
  const alive = members.map((_, e) => e).filter((e) => tokensOf(0, l, e) > 0);
  const idle = members.map((_, e) => e).filter((e) => tokensOf(0, l, e) === 0);
  while (alive.length > 1) {
    let [best, a, b] = [-Infinity, alive[0], alive[1]];
    for (let i = 0; i < alive.length; i++)
      for (let j = 0; j < i; j++) if (mean[alive[i]][alive[j]] > best) [best, a, b] = [mean[alive[i]][alive[j]], alive[j], alive[i]];
    const ends = ([x, y]) => closeness(x[x.length - 1], y[0]);
    const [front, back] = [members[a], members[b]],
      turned = front.slice().reverse(),
      around = back.slice().reverse();
    const pairs = [
      [front, back],
      [front, around],
      [turned, back],
      [turned, around],
    ];
    members[a] = pairs.reduce((x, y) => (ends(y) > ends(x) ? y : x)).flat();
    for (const other of alive)
      mean[a][other] = mean[other][a] =
        other === a ? -Infinity : (mean[a][other] * size[a] + mean[b][other] * size[b]) / (size[a] + size[b]);
    size[a] += size[b];
    alive.splice(alive.indexOf(b), 1);
  }
  return [...(alive.length ? members[alive[0]] : []), ...idle];
}
const similar = new Map();
function pairOrder() {
  const l = pairState.layer;
  if (pairState.order === "load") return byLoad(0, l);
  if (pairState.order === "id")
    return byLoad(0, l)
      .slice()
      .sort((a, b) => a - b);
  if (!similar.has(l)) similar.set(l, similarOrder(l));
  return similar.get(l);
}

const strongest = (l) =>
  (data.pairs ? data.pairs.layers[l] : []).map(([i, j, count]) => ({
    i,
    j,
    count,
    lift: (count * metric("tokens", 0, l)) / (tokensOf(0, l, i) * tokensOf(0, l, j)),
  }));

const pairsFigure = {
  name: "pairs",
  canvas: true,
  label: () => `co-activation of the experts of layer ${layers[pairState.layer]}`,
  caption() {
    const l = pairState.layer,
      k = data.top_k[l],
      n = nExperts[l],
      even = k > 1 && n > 1 ? ` An even router that picks at random gives ${shown(((k - 1) * n) / (k * (n - 1)))}.` : "";
    const steps = data.coactivation ? " Lifts in the matrix are kept to within 1.8 %; the counts are in coactivation.safetensors." : "";
    return `Layer ${layers[l]}.${even}${pairState.faded ? PALE : ""}${steps}${matrixKept(pairState.layer) ? "" : " The matrix of this layer was left out to keep the page small."}`;
  },
  size(width) {
    const n = matrixKept(pairState.layer) ? nExperts[pairState.layer] : 0;
    const room = width >= 760 && !printing ? width - 330 : width;
    return matrixLayout({
      width: Math.min(room, printing ? width : 660),
      rows: n,
      columns: n,
      widestCell: 26,
      tallestCell: 26,
      leastCell: 1,
      height: 620,
      square: true,
    });
  },
  draw(surface, layout, colours) {
    const l = pairState.layer,
      order = pairOrder(),
      lifts = [];
    if (!layout.rows) return;
    for (let i = 0; i < nExperts[l]; i++) for (let j = 0; j < i; j++) if (beyondChance(l, i, j)) lifts.push(pairLift(l, i, j));
    const scale = quotientScale(lifts);
    drawMatrix(surface, layout, colours, {
      colour(row, column) {
        if (row === column) return null;
        const value = pairLift(l, order[row], order[column]);
        if (Number.isNaN(value)) return "dead";
        const colour = along(colours.diverging, scale.at(value));
        return pairState.faded && !beyondChance(l, order[row], order[column]) ? faint(colour, colours) : colour;
      },
      rowLabel: (at) => String(order[at]),
      rowStep: (at) => at,
      columnLabel: (at) => String(order[at]),
      rowTitle: "expert",
      columnTitle: { id: "expert", load: "expert, the busiest first", similar: "expert, those that run together side by side" }[
        pairState.order
      ],
    });
    drawLegend(surface, layout, colours, {
      ...scale,
      stops: colours.diverging,
      title: "lift of the pair: 1 is independent",
      extras: order.some((e) => !tokensOf(0, l, e)) ? [["dead", "no token"]] : [],
    });
  },
  parts: {
    rows: () => (matrixKept(pairState.layer) ? nExperts[pairState.layer] : 1),
    columns: () => (matrixKept(pairState.layer) ? nExperts[pairState.layer] : 1),
    box: ([row, column], layout) => cellBox(layout, row, column),
    at: (x, y, layout) => cellAt(layout, x, y),
    entries([row, column]) {
      const l = pairState.layer;
      if (!matrixKept(l)) return [];
      const [i, j] = [pairOrder()[row], pairOrder()[column]];
      const own = [[`tokens of ${i}`, shown(tokensOf(0, l, i), "count")]];
      if (i === j) return own;
      const value = pairLift(l, i, j),
        together = (value * tokensOf(0, l, i) * tokensOf(0, l, j)) / metric("tokens", 0, l);
      return [
        ["lift", value === 0 ? "never together" : times(value)],
        ["tokens of both, about", shown(Math.round(together), "count")],
        ...own,
        [`tokens of ${j}`, shown(tokensOf(0, l, j), "count")],
      ];
    },
    title: ([row, column]) => (row === column ? `Expert ${pairOrder()[row]}` : `Experts ${pairOrder()[row]} and ${pairOrder()[column]}`),
    tip(part) {
      return facts(this.title(part), this.entries(part));
    },
    say(part) {
      return `${this.title(part)}: ${this.entries(part)
        .map(([key, value]) => `${key} ${value}`)
        .join(", ")}`;
    },
  },
  beside() {
    const l = pairState.layer,
      found = strongest(l).slice(0, printing ? 12 : 20),
      least = data.pairs ? data.pairs.least_tokens[l] : 0;
    if (!found.length)
      return [
        make("h3", {}, "Strongest pairs"),
        make(
          "p",
          { class: "note" },
          data.pairs
            ? `None met on ${shown(least, "count")} tokens or more, so there is none to tell from chance.`
            : "Left out to keep the page small.",
        ),
      ];
    const rows = found.map(({ i, j, count, lift: value }) => [`${i}, ${j}`, times(value), shown(count, "count")]);
    return [
      make("h3", {}, "Strongest pairs"),
      makeTable(["experts", "lift", "tokens of both"], rows, "small"),
      make("p", { class: "note" }, `Of those that met on at least ${shown(least, "count")} tokens.`),
    ];
  },
  csv() {
    const head = ["layer", "first", "second", "lift", "tokens_of_both"],
      l = pairState.layer;
    const exact = new Map(strongest(l).map((one) => [`${one.i},${one.j}`, one])),
      rows = [head];
    if (!matrixKept(l)) return [head, ...[...exact.values()].map((one) => [layers[l], one.i, one.j, one.lift, one.count])];
    for (let i = 0; i < nExperts[l]; i++)
      for (let j = i + 1; j < nExperts[l]; j++) {
        const one = exact.get(`${i},${j}`);
        rows.push([layers[l], i, j, one ? one.lift : Number(pairLift(l, i, j).toPrecision(3)), one ? one.count : ""]);
      }
    return rows;
  },
  table: () => [
    ["experts", "lift", "tokens of both"],
    ...strongest(pairState.layer).map(({ i, j, count, lift: value }) => [`${i}, ${j}`, times(value), shown(count, "count")]),
  ],
};
const pairLayerChoice = make(
  "select",
  {
    id: "pair-layer",
    onchange(event) {
      pairState.layer = Number(event.target.value);
      frames.pairs.refresh();
    },
  },
  ...layers.map((layer, l) => make("option", { value: l, selected: l === pairState.layer }, String(layer))),
);
pairsFigure.controls = [
  make("label", {}, "Layer ", pairLayerChoice),
  choice(
    "Order",
    "pair-order",
    [
      ["similar", "clustered"],
      ["id", "by id"],
      ["load", "by load"],
    ],
    "similar",
    (value) => {
      pairState.order = value;
      frames.pairs.refresh();
    },
  ),
  check(
    "fade what chance explains",
    (on) => {
      pairState.faded = on;
      frames.pairs.refresh();
    },
    true,
  ),
];
