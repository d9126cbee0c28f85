// Figures by layer: balance, domains, neighbours; and the overlap over a distance.

const balanceFigure = layerFigure({
  name: "balance",
  label: () => `MaxVio by layer, ${visible(domainName(state.domain))}`,
  caption: () => `${has("max_vio_low") ? "Whiskers are 95 % intervals. " : ""}${textWords()}.`,
  panels: () => [
    {
      title: "",
      y: "MaxVio",
      unit: "ratio",
      log: logAxis.balance,
      series: [
        ofMetric("max_vio_noise_floor", "band", { words: "chance, all tokens" }),
        ofMetric("max_vio", "thin", { words: "all tokens" }),
        ofMetric("max_vio_batch", "thin", { words: "micro-batch", colour: 1, mark: "square" }),
        ofMetric("max_vio_sequence", "thin", { words: "sequence", colour: 2, mark: "triangle" }),
      ].filter((series) => has(series.key)),
    },
  ],
});

balanceFigure.controls = [
  axisChoice("balance", has("max_vio") ? layers.flatMap((_, l) => ["max_vio", "max_vio_sequence"].map((key) => metric(key, 0, l))) : []),
];

const difference = data.domain_difference && {
  difference: unpack(data.domain_difference.difference),
  chance: unpack(data.domain_difference.chance),
};

/** Chance alone, where another column says so. */
const floorOf = (key) => [`${key}_noise_floor`, `${key}_floor`, `${key}_chance`].find(has);

const differenceFigure = layerFigure({
  name: "difference",
  perDomain: false,
  label: () => "difference of the domains by layer",
  caption() {
    const bits = has("domain_information_bits")
      ? ` Information is what one pick of an expert tells about the domain it was made in, at most log₂ ${named.length} = ${shown(Math.log2(named.length))} bits.`
      : "";
    return `Distance is the part of a domain’s picks that would have to move to spread like all text, mean over the domains.${bits}`;
  },
  panels: () => [
    ...(has("domain_information_bits")
      ? [
          {
            title: "Information",
            y: "bits",
            unit: "bits",
            series: [
              ...(floorOf("domain_information_bits") ? [ofMetric(floorOf("domain_information_bits"), "band", { words: "chance" })] : []),
              { ...ofMetric("domain_information_bits", "thin"), ...fixedDomain("domain_information_bits") },
            ],
          },
        ]
      : []),
    {
      title: "Distance",
      unit: "share",
      series: [
        { key: "difference_by_chance", words: "chance", look: "band", value: (l) => difference.chance[l] },
        { key: "difference", words: "domain against all text", look: "thin", colour: 1, value: (l) => difference.difference[l] },
      ],
    },
  ],
});

/** Metrics between domains stand in the rows of all text. */
function fixedDomain(key) {
  const fixed = { value: (l) => metric(key, 0, l) };
  return has(`${key}_low`) ? { ...fixed, low: (l) => metric(`${key}_low`, 0, l), high: (l) => metric(`${key}_high`, 0, l) } : fixed;
}

const favouriteOf = (name) =>
  new Map((data.favourites[name] || []).map(([layer, expert, part, gain]) => [layer, { layer, expert, share: part, lift: gain }]));
const favourites = Object.fromEntries(Object.keys(data.favourites).map((name) => [name, favouriteOf(name)]));
const MOST_SPECIALISTS = 3;

const favouritesFigure = layerFigure({
  name: "favourites",
  perDomain: false,
  label: () => "lift of the expert each domain favours, by layer",
  caption: () => `Below, the ${MOST_SPECIALISTS} of each domain with the largest lift.`,
  panels: () => [
    {
      title: "",
      y: "lift",
      unit: "ratio",
      series: Object.entries(favourites).map(([name, found], at) => ({
        key: name,
        words: isolated(name),
        look: "dots",
        colour: at,
        mark: MARK_NAMES[at % MARK_NAMES.length],
        value: (l) => (found.has(layers[l]) ? found.get(layers[l]).lift : NaN),
      })),
    },
  ],
});
// Which expert it is, is the point.
favouritesFigure.parts.tip = ([, l]) =>
  facts(
    `Layer ${layers[l]}`,
    Object.entries(favourites).map(([name, found]) => [make("bdi", {}, visible(name)), favouriteWords(found.get(layers[l]))]),
  );
favouritesFigure.parts.say = ([, l]) =>
  `Layer ${layers[l]}: ${Object.entries(favourites)
    .map(([name, found]) => `${visible(name)} ${favouriteWords(found.get(layers[l]))}`)
    .join(", ")}`;
const favouriteWords = (one) => (one ? `expert ${one.expert}: ${shown(one.share, "share")}, ${times(one.lift)}` : "none beyond chance");
favouritesFigure.csv = () => [
  ["domain", "layer", "expert", "share", "lift"],
  ...Object.entries(favourites).flatMap(([name, found]) =>
    [...found.values()].map((one) => [name, one.layer, one.expert, one.share, one.lift]),
  ),
];

/** The specialists with the largest lift, domain by domain. */
function specialistTable() {
  const best = Object.entries(favourites).flatMap(([name, found]) =>
    [...found.values()]
      .sort((a, b) => b.lift - a.lift || a.layer - b.layer)
      .slice(0, MOST_SPECIALISTS)
      .map((one, at) => ({ ...one, name, at })),
  );
  if (!best.length) return make("p", { class: "note" }, "No domain picks an expert beyond chance.");
  const words = (one, kind) =>
    make(
      "span",
      {},
      ...tokenSpans((topTokens(layers.indexOf(one.layer), one.expert).find(([name]) => name === kind) || [kind, []])[1].slice(0, 5)),
    );
  const rows = best.map((one) => [
    one.at ? "" : make("bdi", {}, visible(one.name)),
    String(one.layer),
    String(one.expert),
    shown(one.share, "share"),
    times(one.lift),
    ...(vocabulary || []).map(([kind]) => words(one, kind)),
  ]);
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Specialists" },
    makeTable(
      ["domain", "layer", "expert", "share of its picks", "lift", ...(vocabulary || []).map(([kind]) => `top ${kindWords(kind)}`)],
      rows,
      "small",
    ),
  );
}

const OVERLAPS = [
  ["next_token_overlap", "Experts shared"],
  ["any_overlap", "Any expert shared"],
  ["first_choice_repeat", "Same first choice"],
];

const neighboursFigure = layerFigure({
  name: "neighbours",
  label: () => `experts shared by neighbouring tokens, ${visible(domainName(state.domain))}`,
  caption: () => `${textWords()}.`,
  panels: () =>
    OVERLAPS.filter(([key]) => has(key)).map(([key, title]) => ({
      title,
      unit: "share",
      series: [
        ofMetric(key, "thin", { words: "measured" }),
        ofMetric(`${key}_load_aware`, "dash", { words: "by load", colour: 1 }),
        ofMetric(`${key}_uniform`, "dotted", { words: "even load", colour: "soft" }),
      ].filter((series) => has(series.key)),
    })),
});

/** Columns that tell the same of tokens further apart: [[lag, key], ...] in order. */
const lagColumns = columns
  .map(({ key }) => [key, key.match(/^(?:next_token_overlap|overlap)_lag_?(\d+)$/)])
  .filter(([, match]) => match)
  .map(([key, match]) => [Number(match[1]), key])
  .sort((a, b) => a[0] - b[0]);

const lagsFigure = {
  name: "lags",
  perDomain: true,
  label: () => `overlap by distance, ${visible(domainName(state.domain))}`,
  caption: () => `${textWords()}.`,
  points: (l) => [
    ...(lagColumns[0][0] === 1 || !has("next_token_overlap") ? [] : [[1, metric("next_token_overlap", state.domain, l)]]),
    ...lagColumns.map(([lag, key]) => [lag, metric(key, state.domain, l)]),
  ],
  floor: () => median(layers.map((_, l) => metric("next_token_overlap_load_aware", state.domain, l))),
  legend: (colours) => [
    { words: "one layer", look: "line", colour: colours.soft },
    { words: "median of the layers", look: "thick", colour: colours.ink },
    { words: "by load, median", look: "dash", colour: colours.series[1] },
  ],
  size(room, colours) {
    const width = Math.min(room, 820),
      { places, lines } = legendPlaces(this.legend(colours), width),
      height = onPaper(238, 158);
    return { width, height: 26 + lines * 19 + height + 42, places, box: { x: 46, y: 26 + lines * 19, width: width - 66, height } };
  },
  draw(surface, { box, places }, colours) {
    const curves = layers.map((_, l) => this.points(l)),
      lags = curves[0].map(([lag]) => lag),
      most = Math.log2(lags[lags.length - 1]);
    const scale = yScale([...curves.flat().map(([, value]) => value), this.floor()], { unit: "share" });
    const xOf = (lag) => box.x + (Math.log2(lag) / (most || 1)) * box.width,
      yOf = (value) => box.y + box.height * (1 - scale.at(value));
    drawLegendLines(surface, box.x - 46, 12, places, colours);
    drawAxes(surface, box, colours, {
      scale,
      unit: "share",
      xTicks: lags.map((lag) => [xOf(lag), String(lag)]),
      xTitle: "tokens apart",
      yTitle: "",
    });
    const line = (curve, look) =>
      surface.polyline(
        curve.filter(([, value]) => !Number.isNaN(value)).map(([lag, value]) => [xOf(lag), yOf(value)]),
        look,
      );
    curves.forEach((curve) => line(curve, { stroke: colours.soft, width: 0.9, opacity: 0.5 }));
    if (!Number.isNaN(this.floor()))
      line(
        lags.map((lag) => [lag, this.floor()]),
        { stroke: colours.series[1], width: 1.3, dash: "5 3" },
      );
    line(
      lags.map((lag, at) => [lag, median(curves.map((curve) => curve[at][1]))]),
      { stroke: colours.ink, width: 2.5 },
    );
  },
  csv() {
    return [
      ["layer", ...this.points(0).map(([lag]) => `lag_${lag}`)],
      ...layers.map((layer, l) => [layer, ...this.points(l).map(([, value]) => value)]),
    ];
  },
};
