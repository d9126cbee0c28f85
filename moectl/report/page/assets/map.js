// Figure 1: the load of every expert, by layer and expert.

const QUANTITIES = [
  ["load", "Relative load"],
  ["lift", "Lift"],
  ["weight", "Mean weight"],
].filter(([name]) => (name !== "lift" || named.length > 1) && (name !== "weight" || weights_DLE));

/** The expert at a place of the order shown. */
const expertAt = (l, at) => (state.sorted ? byLoad(state.domain, l)[at] : at);

function mapScale(colours) {
  const all = [],
    value = { load: relativeLoad, lift, weight: meanWeight }[state.quantity];
  for (let l = 0; l < L; l++) for (let e = 0; e < nExperts[l]; e++) all.push(value(state.domain, l, e));
  if (state.quantity === "weight") {
    const known = all.filter((one) => !Number.isNaN(one)).sort((a, b) => a - b);
    const low = known[0] ?? 0,
      high = known[known.length - 1] ?? 1;
    return {
      value,
      stops: colours.rising,
      at: (one) => (high > low ? (one - low) / (high - low) : 0.5),
      ticks: [
        [0, shown(low)],
        [0.5, shown((low + high) / 2)],
        [1, shown(high)],
      ],
      title: "mean weight of a token that runs it",
    };
  }
  return {
    value,
    stops: colours.diverging,
    ...quotientScale(all),
    title:
      state.quantity === "load"
        ? "relative load: 1 is an even share"
        : `lift: share of ${isolated(domainName(state.domain))} over share of all text`,
  };
}

function expertFacts(l, e) {
  const d = state.domain,
    entries = [["tokens", `${shown(tokensOf(d, l, e), "count")} of ${shown(metric("tokens", d, l), "count")}`]];
  const low = shareLow_DLE ? shareLow_DLE[place(d, l, e)] : NaN;
  entries.push(["share of picks", shown(share(d, l, e), "share")]);
  if (!Number.isNaN(low)) entries.push(["95 % interval", `${shown(low, "share")} – ${shown(shareHigh_DLE[place(d, l, e)], "share")}`]);
  entries.push(["relative load", times(relativeLoad(d, l, e))]);
  if (weights_DLE) entries.push(["mean weight", shown(meanWeight(d, l, e))]);
  return entries;
}

const MOST_LIFTS = 8;

const mapFigure = {
  name: "map",
  canvas: true,
  perDomain: true,
  label: () =>
    `heat map of ${QUANTITIES.find(([name]) => name === state.quantity)[1].toLowerCase()} by layer and expert, ${visible(domainName(state.domain))}`,
  caption() {
    const what = {
      load: "Relative load of each expert: its share of the layer’s picks times the number of experts.",
      lift: "Lift of each expert: its share of the domain’s picks over its share of all text’s.",
      weight: "Mean weight that a token gives to an expert it runs.",
    }[state.quantity];
    const dead = layers.reduce(
      (sum, _, l) => sum + byLoad(state.domain, l).filter((e) => slots_DL[state.domain][l] && tokensOf(state.domain, l, e) === 0).length,
      0,
    );
    return `${what} ${textWords()}, ${shown(Math.max(...layers.map((_, l) => metric("tokens", state.domain, l))), "count")} tokens. ${dead ? `${shown(dead, "count")} ${dead === 1 ? "expert" : "experts"} without a token.` : "No expert is without a token."}${state.faded && state.quantity !== "weight" ? PALE : ""}`;
  },
  size: (width) =>
    matrixLayout({
      width,
      rows: L,
      columns: widest,
      widestCell: 62,
      tallestCell: 34,
      height: onPaper(Math.max(420, Math.min(640, 9 * L)), 340),
    }),
  draw(surface, layout, colours) {
    const scale = mapScale(colours),
      d = state.domain;
    drawMatrix(surface, layout, colours, {
      colour(l, at) {
        if (at >= nExperts[l] || !slots_DL[d][l]) return null;
        const e = expertAt(l, at);
        if (tokensOf(d, l, e) === 0) return "dead";
        const colour = along(scale.stops, scale.at(scale.value(d, l, e)));
        const chance =
          state.faded && state.quantity !== "weight" && Math.abs(state.quantity === "lift" ? beyondAll(d, l, e) : beyondEven(d, l, e)) < 4;
        return chance ? faint(colour, colours) : colour;
      },
      rowLabel: (l) => String(layers[l]),
      columnLabel: (at) => String(state.sorted ? at + 1 : at),
      rowTitle: "layer",
      columnTitle: state.sorted ? "experts of each layer by load, the busiest first" : "expert",
    });
    const idle = layers.some((_, l) => slots_DL[d][l] && byLoad(d, l).some((e) => tokensOf(d, l, e) === 0));
    drawLegend(surface, layout, colours, { ...scale, extras: idle ? [["dead", "no token"]] : [] });
  },
  parts: {
    rows: () => L,
    columns: (l) => nExperts[l],
    box: ([l, at], layout) => cellBox(layout, l, at),
    at(x, y, layout) {
      const part = cellAt(layout, x, y);
      return part && part[1] < nExperts[part[0]] ? part : null;
    },
    tip([l, at]) {
      const e = expertAt(l, at),
        rest = [];
      if (named.length > 1) {
        const ordered = named
          .slice()
          .sort((a, b) => lift(b, l, e) - lift(a, l, e))
          .slice(0, MOST_LIFTS);
        rest.push(
          make("p", {}, "Lift by domain"),
          make(
            "table",
            {},
            ...ordered.map((d) =>
              make("tr", {}, make("th", {}, make("bdi", {}, visible(domainName(d)))), make("td", {}, times(lift(d, l, e)))),
            ),
          ),
        );
      }
      for (const [kind, found] of topTokens(l, e)) rest.push(make("p", {}, `Top ${kindWords(kind)}: `, ...tokenSpans(found)));
      return facts(`Layer ${layers[l]}, expert ${e}`, expertFacts(l, e), ...rest);
    },
    say([l, at]) {
      const e = expertAt(l, at),
        d = state.domain;
      const lifts = state.domain ? `, lift ${times(lift(d, l, e))}` : "";
      return `Layer ${layers[l]}, expert ${e}: ${expertFacts(l, e)
        .map(([key, value]) => `${key} ${value}`)
        .join(", ")}${lifts}`;
    },
  },
  csv() {
    const d = state.domain,
      rows = [
        [
          "domain",
          "layer",
          "expert",
          "tokens",
          "share",
          "relative_load",
          "lift",
          "mean_weight",
          ...(shareLow_DLE ? ["share_low", "share_high"] : []),
        ],
      ];
    layers.forEach((layer, l) => {
      for (let e = 0; e < nExperts[l]; e++)
        rows.push([
          data.domains[d],
          layer,
          e,
          tokensOf(d, l, e),
          share(d, l, e),
          relativeLoad(d, l, e),
          lift(d, l, e),
          meanWeight(d, l, e),
          ...(shareLow_DLE ? [shareLow_DLE, shareHigh_DLE].map((ends) => Number(ends[place(d, l, e)].toPrecision(4))) : []),
        ]);
    });
    return rows;
  },
  table() {
    const value = { load: relativeLoad, lift, weight: meanWeight }[state.quantity];
    const head = ["layer", ...Array.from({ length: widest }, (_, e) => `expert ${e}`)];
    return [
      head,
      ...layers.map((layer, l) => [
        String(layer),
        ...Array.from({ length: widest }, (_, e) => (e < nExperts[l] ? shown(value(state.domain, l, e)) : "")),
      ]),
    ];
  },
};
mapFigure.controls = [
  choice("Show", "quantity", QUANTITIES, "load", (value) => {
    state.quantity = value;
    // All text has no lift over itself.
    if (value === "lift" && state.domain === 0) return chooseDomain(named[0]);
    return frames.map.refresh();
  }),
  choice(
    "Order",
    "sorted",
    [
      ["id", "by id"],
      ["load", "by load"],
    ],
    "id",
    (value) => {
      state.sorted = value === "load";
      frames.map.refresh();
    },
  ),
  check("fade what chance explains", (on) => {
    state.faded = on;
    frames.map.refresh();
  }),
];
