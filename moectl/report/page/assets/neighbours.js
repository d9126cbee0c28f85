// Figures 7 and 8: what neighbouring tokens share, and tokens further apart.

const OVERLAPS = [
  ["next_token_overlap", "Experts shared"],
  ["any_overlap", "Any expert shared"],
  ["first_choice_repeat", "Same first choice"],
];

const neighboursFigure = layerFigure({
  name: "neighbours",
  label: () => `experts shared by neighbouring tokens, ${visible(domainName(state.domain))}`,
  caption: () => `${has("next_token_overlap_low") ? WHISKERS : ""}${textWords()}.`,
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
  .filter(({ key }) => has(key))
  .map(({ key }) => [key, key.match(/^(?:next_token_overlap|overlap)_lag_?(\d+)$/)])
  .filter(([, match]) => match)
  .map(([key, match]) => [Number(match[1]), key])
  .sort((a, b) => a[0] - b[0]);

const lagsFigure = {
  name: "lags",
  perDomain: true,
  label: () => `overlap by distance, ${visible(domainName(state.domain))}`,
  caption: () => `${textWords()}.`,
  keys: () => [...(has("next_token_overlap") ? [[1, "next_token_overlap"]] : []), ...lagColumns],
  points: (l) => lagsFigure.keys().map(([lag, key]) => [lag, metric(key, state.domain, l)]),
  floor: (of = "load_aware") => median(layers.map((_, l) => metric(`next_token_overlap_${of}`, state.domain, l))),
  legend: (colours) => [
    { words: "one layer", look: "line", colour: colours.soft },
    { words: "median of the layers", look: "thick", colour: colours.ink },
    { words: "by load, median", look: "dash", colour: colours.series[1] },
    { words: "even load", look: "dotted", colour: colours.soft },
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
    for (const [of, look] of [
      ["load_aware", { stroke: colours.series[1], width: 1.3, dash: "5 3" }],
      ["uniform", { stroke: colours.soft, width: 1.3, dash: "1.5 3" }],
    ])
      if (!Number.isNaN(this.floor(of)))
        line(
          lags.map((lag) => [lag, this.floor(of)]),
          look,
        );
    line(
      lags.map((lag, at) => [lag, median(curves.map((curve) => curve[at][1]))]),
      { stroke: colours.ink, width: 2.5 },
    );
  },
  parts: {
    rows: () => 1,
    columns: () => lagsFigure.keys().length,
    x: (at, box) => {
      const lags = lagsFigure.keys().map(([lag]) => Math.log2(lag));
      return box.x + (lags[at] / (lags[lags.length - 1] || 1)) * box.width;
    },
    box: ([, at], { box }) => [lagsFigure.parts.x(at, box), box.y, 1, box.height],
    at(x, y, { box }) {
      if (x < box.x - 6 || x > box.x + box.width + 6 || y < box.y || y > box.y + box.height) return null;
      const distances = lagsFigure.keys().map((_, at) => Math.abs(lagsFigure.parts.x(at, box) - x));
      return [0, distances.indexOf(Math.min(...distances))];
    },
    entries(at) {
      const key = lagsFigure.keys()[at][1],
        found = layers
          .map((_, l) => [l, metric(key, state.domain, l)])
          .filter(([, value]) => !Number.isNaN(value))
          .sort((a, b) => a[1] - b[1]);
      if (!found.length) return [["overlap", "–"]];
      const [least, most] = [found[0], found[found.length - 1]];
      const words = ([l, value]) => shown(value, "share") + intervalWords(key, l, "share");
      return [
        ["median of the layers", shown(median(found.map(([, value]) => value)), "share")],
        [`least, layer ${layers[least[0]]}`, words(least)],
        [`most, layer ${layers[most[0]]}`, words(most)],
        ["by load, median", shown(lagsFigure.floor(), "share")],
        ["even load", shown(lagsFigure.floor("uniform"), "share")],
      ];
    },
    title: (at) => (lagsFigure.keys()[at][0] === 1 ? "Neighbouring tokens" : `${lagsFigure.keys()[at][0]} tokens apart`),
    tip: ([, at]) => facts(lagsFigure.parts.title(at), lagsFigure.parts.entries(at)),
    say: ([, at]) =>
      `${lagsFigure.parts.title(at)}: ${lagsFigure.parts
        .entries(at)
        .map(([key, value]) => `${key} ${value}`)
        .join(", ")}`,
  },
  csv() {
    const keys = this.keys().map(([, key]) => key),
      baselines = ["next_token_overlap_load_aware", "next_token_overlap_uniform"].filter(has);
    const every = [...keys.flatMap((key) => [key, ...(has(`${key}_low`) ? [`${key}_low`, `${key}_high`] : [])]), ...baselines];
    return [["layer", ...every], ...layers.map((layer, l) => [layer, ...every.map((key) => metric(key, state.domain, l))])];
  },
};
