// Figure 2: the loads of a layer in order, beside what chance gives.

const isEven = new Set(nExperts).size === 1 && new Set(data.top_k).size === 1;

/** By place in the order: what a perfectly even router gives by chance on the tokens of the layer that has the fewest. */
function chanceBand(d) {
  if (!isEven || data.top_k[0] >= widest) return null;
  const { low, high } = data.chance[widest],
    fewest = Math.min(...layers.map((_, l) => metric("tokens", d, l)));
  const spread = Math.sqrt((widest / data.top_k[0] - 1) / fewest);
  return {
    low: Array.from(unpack(low), (z) => Math.max(0, 1 + z * spread)),
    high: Array.from(unpack(high), (z) => Math.max(0, 1 + z * spread)),
  };
}
const medianCurve = (d) =>
  Array.from({ length: widest }, (_, at) => median(layers.map((_, l) => (at < nExperts[l] ? descending(d, l)[at] : NaN))));

const curvesFigure = {
  name: "curves",
  perDomain: true,
  label: () => `load curves, ${visible(domainName(state.domain))}`,
  caption() {
    const band = chanceBand(state.domain);
    return band
      ? `The band, from ${shown(band.low[widest - 1])}× to ${shown(band.high[0])}× at its ends, is where about 95\u00a0% of the loads of a perfectly even router would lie on as many independent tokens; inside it there is nothing to explain. ${textWords()}.`
      : `${textWords()}.`;
  },
  chosen: () => (state.chosen === null ? [] : state.chosen.map((layer) => layers.indexOf(layer))),
  size(width) {
    const chosen = this.chosen(),
      entries = [
        { words: "one layer", look: "line", colour: "soft" },
        ...(isEven ? [{ words: "median of the layers", look: "thick", colour: "ink" }] : []),
        ...(chanceBand(state.domain) ? [{ words: "chance", look: "band", colour: "band" }] : []),
        { words: "even load", look: "dotted", colour: "soft" },
        ...chosen.slice(0, 8).map((l, i) => ({ words: `layer ${layers[l]}`, look: "thick", colour: i })),
      ];
    const { places, lines } = legendPlaces(entries, width);
    const box = {
      x: 46,
      y: lines * 19 + 38,
      width: Math.min(width - 60, 300 + 40 * widest),
      height: width < 500 ? 230 : onPaper(320, 180),
    };
    return { width: box.x + box.width + 14, height: box.y + box.height + 42, box, places };
  },
  draw(surface, { box, places }, colours) {
    const d = state.domain,
      chosen = this.chosen(),
      curves = layers.map((_, l) => descending(d, l)),
      band = chanceBand(d);
    const scale = yScale([...curves.flat(), ...(band ? band.high : [])], { log: logAxis.curves, least: 1 });
    const yOf = (value) => box.y + box.height * (1 - scale.at(value));
    const xOf = (at, n) => box.x + (n > 1 ? at / (n - 1) : 0.5) * box.width;
    const colour = (name) => (typeof name === "number" ? colours.series[name % 8] : colours[name]);
    drawLegendLines(
      surface,
      box.x - 46,
      12,
      places.map(([x, line, entry]) => [x, line, { ...entry, colour: colour(entry.colour) }]),
      colours,
    );
    if (band)
      surface.polygon(
        [
          ...band.high.map((value, at) => [xOf(at, widest), yOf(value)]),
          ...band.low.map((value, at) => [xOf(at, widest), yOf(value)]).reverse(),
        ],
        colours.band,
      );
    const every = labelStep(box.width / widest, 40, BINARY);
    const xTicks = Array.from({ length: widest }, (_, at) => at)
      .filter((at) => at === 0 || ((at + 1) % every === 0 && at + 1 >= every))
      .map((at) => [xOf(at, widest), String(at + 1)]);
    drawAxes(surface, box, colours, { scale, unit: "ratio", xTicks, xTitle: "expert by load, the busiest first", yTitle: "relative load" });
    surface.line(box.x, yOf(1), box.x + box.width, yOf(1), { stroke: colours.soft, width: 1.3, dash: "1.5 3" });
    const line = (curve, look) =>
      surface.polyline(
        curve.map((value, at) => [xOf(at, curve.length), yOf(value)]).filter(([, y]) => !Number.isNaN(y)),
        look,
      );
    curves.forEach((curve) => line(curve, { stroke: colours.soft, width: 0.9, opacity: chosen.length ? 0.18 : L > 30 ? 0.35 : 0.5 }));
    if (isEven) line(medianCurve(d), { stroke: colours.ink, width: 2.5, opacity: chosen.length ? 0.5 : 1 });
    chosen.forEach((l, i) => line(curves[l], { stroke: colours.series[i % 8], width: 2.2 }));
  },
  parts: {
    rows: () => 1,
    columns: () => widest,
    box: ([, at], { box }) => [box.x + (widest > 1 ? at / (widest - 1) : 0.5) * box.width, box.y, 1, box.height],
    at(x, y, { box }) {
      if (x < box.x - 6 || x > box.x + box.width + 6 || y < box.y || y > box.y + box.height) return null;
      return [0, Math.max(0, Math.min(widest - 1, Math.round(((x - box.x) / box.width) * (widest - 1))))];
    },
    entries(at) {
      const d = state.domain,
        found = layers
          .map((_, l) => [l, at < nExperts[l] ? descending(d, l)[at] : NaN])
          .filter(([, value]) => !Number.isNaN(value))
          .sort((a, b) => a[1] - b[1]);
      if (!found.length) return [];
      const [least, most] = [found[0], found[found.length - 1]],
        band = chanceBand(d);
      return [
        ["median of the layers", times(median(found.map(([, value]) => value)))],
        [`least, layer ${layers[least[0]]}`, times(least[1])],
        [`most, layer ${layers[most[0]]}`, times(most[1])],
        ...(band ? [["chance", `${shown(band.low[at])}× – ${shown(band.high[at])}×`]] : []),
        ...curvesFigure.chosen().map((l) => [`layer ${layers[l]}`, times(descending(d, l)[at] ?? NaN)]),
      ];
    },
    tip: ([, at]) => facts(`Place ${at + 1} of ${widest}`, curvesFigure.parts.entries(at)),
    say: ([, at]) =>
      `Place ${at + 1}: ${curvesFigure.parts
        .entries(at)
        .map(([key, value]) => `${key} ${value}`)
        .join(", ")}`,
  },
  csv() {
    const d = state.domain,
      band = chanceBand(d),
      middle = isEven ? medianCurve(d) : null,
      chosen = state.chosen === null ? layers.map((_, l) => l) : this.chosen();
    const curves = chosen.map((l) => descending(d, l));
    const head = [
      "place",
      ...(middle ? ["median"] : []),
      ...(band ? ["chance_low", "chance_high"] : []),
      ...chosen.map((l) => `layer_${layers[l]}`),
    ];
    return [
      head,
      ...Array.from({ length: widest }, (_, at) => [
        at + 1,
        ...(middle ? [middle[at]] : []),
        ...(band ? [band.low[at], band.high[at]] : []),
        ...curves.map((curve) => curve[at]),
      ]),
    ];
  },
};
const curvesWhich = make("input", {
  type: "text",
  id: "which",
  size: 12,
  placeholder: "e.g. 1, 4-6",
  oninput(event) {
    const read = readLayers(event.target.value, layers);
    event.target.setAttribute("aria-invalid", read === undefined);
    if (read === undefined) return;
    state.chosen = read;
    frames.curves.refresh();
  },
});
curvesFigure.controls = [
  make("label", {}, "Pick out layers ", curvesWhich),
  axisChoice(
    "curves",
    layers.flatMap((_, l) => descending(0, l)),
  ),
];
