// Line and dot charts: axes, legends, and the chart that has a layer for every place on its x axis.

/** Round ticks from 0 or `low` to at least `high`. */
function ticksFor(low, high, about = 5) {
  const span = Math.max(high - low, 1e-9),
    raw = span / about,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.floor(low / step + 1e-9) * step; tick < high + step * 0.999; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

/** A tick with the digits it needs. */
function tickText(value, unit) {
  const factor = unit === "share" ? 100 : 1;
  return `${(value * factor).toLocaleString("en-GB", { maximumSignificantDigits: 4 })}${unit === "share" ? " %" : ""}`;
}

/** A y scale over `values`: linear from 0 (or `from`), or logarithmic, where what is not above 0 falls on the bottom line. */
function yScale(values, { log = false, least = 0, from = 0, unit } = {}) {
  const known = values.filter((value) => Number.isFinite(value));
  const high = Math.max(least, ...known);
  if (!log) {
    const low = Math.min(from, ...known),
      ticks = ticksFor(low, high || 1).filter((tick) => unit !== "share" || tick <= 1 || high > 1);
    const [first, last] = [ticks[0], ticks[ticks.length - 1]];
    return { ticks, at: (value) => (value - first) / (last - first) };
  }
  const above = known.filter((value) => value > 0);
  const low = Math.max(Math.min(...above, high / 2), high / 1e4);
  const first = Math.floor(Math.log10(low) * 3) / 3,
    last = Math.log10(high * 1.08);
  const ticks = [];
  for (let power = Math.floor(first); power <= last; power++)
    for (const digit of [1, 2, 5]) {
      const tick = Number((digit * 10 ** power).toPrecision(6));
      if (Math.log10(tick) >= first && Math.log10(tick) <= last) ticks.push(tick);
    }
  return { ticks, at: (value) => (value > 0 ? Math.max(0, (Math.log10(value) - first) / (last - first)) : 0) };
}

/** Grid lines, ticks and titles of a box {x, y, width, height}. */
function drawAxes(surface, box, colours, { scale, unit, xTicks, xTitle, yTitle }) {
  const look = { fill: colours.soft, size: 11 };
  for (const tick of scale.ticks) {
    const y = box.y + box.height * (1 - scale.at(tick));
    surface.line(box.x, y, box.x + box.width, y, { stroke: colours.rule });
    surface.text(box.x - 8, y + 4, tickText(tick, unit), { ...look, anchor: "end" });
  }
  for (const [x, words] of xTicks) surface.text(x, box.y + box.height + 17, words, { ...look, anchor: "middle" });
  surface.text(box.x + box.width, box.y + box.height + 34, xTitle, { ...look, anchor: "end" });
  if (yTitle) surface.text(box.x - 46, box.y - 11, yTitle, { fill: colours.ink, size: 12 });
}

/** Where the entries of a legend go in lines of `width`: [[x, line, entry], ...] and how many lines. */
function legendPlaces(entries, width) {
  let x = 0,
    line = 0;
  const places = entries.map((entry) => {
    const needed = 26 + textWidth(entry.words) + 18;
    if (x && x + needed > width) [x, line] = [0, line + 1];
    const place = [x, line, entry];
    x += needed;
    return place;
  });
  return { places, lines: entries.length ? line + 1 : 0 };
}

function drawLegendLines(surface, x, y, places, colours) {
  for (const [dx, line, { words, look, colour, mark }] of places) {
    const at = x + dx,
      middle = y + line * 19;
    if (look === "band") surface.rect(at, middle - 5, 18, 10, colour);
    else
      surface.line(at, middle, at + 18, middle, {
        stroke: colour,
        width: look === "thick" ? 2.5 : look === "dots" ? 0.01 : 1.3,
        dash: { dash: "5 3", dotted: "1.5 3" }[look],
      });
    if (mark) surface.mark(mark, at + 9, middle, 3.6, colour);
    surface.text(at + 25, middle + 4, words, { fill: colours.ink });
  }
}

/** Layers to label on an axis, far enough apart. */
function layerTicks(xOf, least = 26) {
  const every = [1, 2, 5, 10, 20, 50].find((step) => L / step <= 1 || (step * (xOf(L - 1) - xOf(0))) / Math.max(L - 1, 1) >= least) || 50;
  return layers
    .map((layer, l) => [xOf(l), String(layer), layer])
    .filter(([, , layer], l) => every === 1 || (L > 8 ? layer % every === 0 : l % every === 0));
}

/**
 * A figure with one place per layer. `panels()`: [{title, unit, series, log, from}], side by side where there is room. A series has words,
 * value(l), and may have low(l), high(l), a mark, a look: thin (dots on a line), dots (beside those of the other series), band (shaded from
 * 0), dash, dotted; tag(l), words for a dot; and a colour: a place in the series colours, or soft.
 */
function layerFigure({ name, label, caption, panels, perDomain = true, controls }) {
  const colourOf = (series, colours) =>
    series.look === "band"
      ? colours.band
      : series.colour === "soft"
        ? colours.soft
        : colours.series[(series.colour || 0) % colours.series.length];
  const words = ({ unit }, value) => shown(value, unit);
  const entries = ([p, l]) => {
    const panel = panels()[p];
    return panel.series.map((series) => [
      series.words,
      words(panel, series.value(l)) +
        (series.low && !Number.isNaN(series.low(l)) ? ` (${words(panel, series.low(l))} – ${words(panel, series.high(l))})` : ""),
    ]);
  };
  const heading = ([p, l]) => `Layer ${layers[l]}${panels().length > 1 ? `, ${panels()[p].title.toLowerCase()}` : ""}`;
  return {
    name,
    label,
    caption,
    perDomain,
    controls,
    size(room) {
      // A few layers need no wide chart.
      const width = Math.min(room, Math.max(1, panels().length) * (420 + 60 * L));
      const drawnPanels = panels(),
        abreast = room >= 620 ? Math.min(drawnPanels.length, 3) : 1;
      const left = 46,
        between = 26,
        height = abreast > 1 ? onPaper(210, 140) : width < 500 ? 210 : onPaper(270, 175);
      const each = (width - between * (abreast - 1)) / abreast - left - 8;
      let y = 0,
        tallest = 0;
      const boxes = drawnPanels.map((panel, i) => {
        const column = i % abreast;
        const { places, lines } = legendPlaces(
          panel.series.map((series) => ({ ...series })),
          each + left,
        );
        const top = (panel.title ? 24 : 4) + lines * 19 + (panel.y ? 34 : 26);
        const box = { x: column * (each + left + between + 8) + left, y: y + top, width: each, height, places, head: y + 14 };
        tallest = Math.max(tallest, top + height + 46);
        if (column === abreast - 1) [y, tallest] = [y + tallest + 8, 0];
        return box;
      });
      if (abreast > 1)
        for (const box of boxes) box.y = Math.max(...boxes.filter((other) => other.head === box.head).map((other) => other.y));
      const first = layers[0],
        span = Math.max(layers[L - 1] - first, 1);
      // Dots stand beside each other, and need half a layer's room at the ends.
      const inset = (box) => (abreastDots(drawnPanels) > 1 ? Math.max(10, box.width / (2 * L)) : 10);
      const xOf = (box, l) => box.x + inset(box) + (L > 1 ? (layers[l] - first) / span : 0.5) * (box.width - 2 * inset(box));
      return { width, height: Math.max(...boxes.map((box) => box.y + box.height)) + 42, boxes, xOf };
    },
    draw(surface, layout, colours) {
      panels().forEach((panel, i) => {
        const box = layout.boxes[i],
          xs = layers.map((_, l) => layout.xOf(box, l));
        const all = panel.series.flatMap((series) =>
          layers.flatMap((_, l) => [series.value(l), ...(series.low ? [series.low(l), series.high(l)] : [])]),
        );
        const scale = yScale(all, { log: panel.log, unit: panel.unit, from: panel.from });
        const yOf = (value) => box.y + box.height * (1 - scale.at(value));
        if (panel.title) surface.text(box.x - 46, box.head, panel.title, { fill: colours.ink, size: 13, weight: 620 });
        drawLegendLines(
          surface,
          box.x - 46,
          box.head + (panel.title ? 20 : 0),
          box.places.map(([dx, line, series]) => [
            dx,
            line,
            {
              ...series,
              colour: colourOf(series, colours),
              mark: series.look === "thin" || series.look === "dots" ? series.mark || "circle" : null,
            },
          ]),
          colours,
        );
        const bands = panel.series.filter((series) => series.look === "band");
        for (const series of bands) {
          const points = xs.map((x, l) => [x, series.value(l)]).filter(([, value]) => !Number.isNaN(value));
          const wide = L > 1 ? 0 : 10;
          if (points.length) {
            surface.polygon(
              [
                [points[0][0] - wide, yOf(0)],
                ...points.map(([x, value], at) => [x + (at ? wide : -wide), yOf(value)]),
                ...(wide ? [[points[0][0] + wide, yOf(points[0][1])]] : []),
                [points[points.length - 1][0] + wide, yOf(0)],
              ],
              colours.band,
            );
            // A floor close to 0 has an edge to be seen by.
            const edge = points.length > 1 ? points : [-10, 10].map((dx) => [points[0][0] + dx, points[0][1]]);
            surface.polyline(
              edge.map(([x, value]) => [x, yOf(value)]),
              { stroke: colours.soft, width: 1, dash: "1.5 3" },
            );
          }
        }
        drawAxes(surface, box, colours, { scale, unit: panel.unit, xTicks: layerTicks((l) => xs[l]), xTitle: "layer", yTitle: panel.y });
        if (abreastDots([panel]) > 1 && box.width / L > 24)
          for (let l = 1; l < L; l++)
            surface.line((xs[l - 1] + xs[l]) / 2, box.y, (xs[l - 1] + xs[l]) / 2, box.y + box.height, { stroke: colours.rule });
        for (const series of panel.series.filter((one) => one.look !== "band")) {
          const colour = colourOf(series, colours);
          if (series.look !== "dots") {
            for (const run of runsOf(xs.map((x, l) => [x, series.value(l)]))) {
              // Alone, what has marks shows as one; a baseline needs some length.
              const alone = run.length === 1 ? (series.look === "thin" ? 0 : Math.min(10, box.width / (2 * L))) : 0;
              const ends = alone ? [-alone, alone].map((dx) => [run[0][0] + dx, run[0][1]]) : run;
              surface.polyline(
                ends.map(([x, value]) => [x, yOf(value)]),
                {
                  stroke: colour,
                  width: 1.3,
                  dash: { dash: "5 3", dotted: "1.5 3" }[series.look],
                  opacity: series.look === "thin" ? 0.55 : 1,
                },
              );
            }
          }
          const spacing = box.width / L,
            radius = Math.min(3.2, Math.max(1.5, 0.32 * spacing)),
            cap = Math.min(2.5, 0.3 * spacing);
          const abreast = panel.series.filter((one) => one.look === "dots"),
            step = Math.min(24, (0.7 * spacing) / Math.max(abreast.length, 1));
          const aside = series.look === "dots" ? (abreast.indexOf(series) - (abreast.length - 1) / 2) * step : 0;
          const tagged = series.tag && step >= 14;
          xs.forEach((layerX, l) => {
            const value = series.value(l),
              x = layerX + aside;
            if (Number.isNaN(value)) return;
            if (tagged) surface.text(x, yOf(value) - 7, series.tag(l), { fill: colours.soft, size: 10, anchor: "middle" });
            if (series.low && !Number.isNaN(series.low(l))) {
              const [low, high] = [yOf(series.low(l)), yOf(series.high(l))];
              surface.line(x, low, x, high, { stroke: colour, width: 1.2 });
              for (const y of [low, high]) surface.line(x - cap, y, x + cap, y, { stroke: colour, width: 1.2 });
            }
            if (series.look === "thin" || series.look === "dots")
              surface.mark(series.mark || "circle", x, yOf(value), radius, colour, spacing > 8 ? colours.paper : null);
          });
        }
      });
    },
    parts: {
      rows: () => panels().length,
      columns: () => L,
      box: ([p, l], layout) => [layout.xOf(layout.boxes[p], l), layout.boxes[p].y, 1, layout.boxes[p].height],
      at(x, y, layout) {
        const p = layout.boxes.findIndex(
          (one) => x >= one.x - 6 && x <= one.x + one.width + 6 && y >= one.y && y <= one.y + one.height,
        );
        if (p < 0) return null;
        const distances = layers.map((_, l) => Math.abs(layout.xOf(layout.boxes[p], l) - x));
        return [p, distances.indexOf(Math.min(...distances))];
      },
      tip: (part) => facts(heading(part), entries(part)),
      say: (part) =>
        `${heading(part)}: ${entries(part)
          .map(([key, value]) => `${key} ${value}`)
          .join(", ")}`,
    },
    csv() {
      const series = panels().flatMap((panel) => panel.series);
      const head = ["layer", ...series.flatMap((one) => [one.key, ...(one.low ? [`${one.key}_low`, `${one.key}_high`] : [])])];
      return [
        head,
        ...layers.map((layer, l) => [layer, ...series.flatMap((one) => [one.value(l), ...(one.low ? [one.low(l), one.high(l)] : [])])]),
      ];
    },
  };
}

/** How many dots stand beside each other in a layer. */
const abreastDots = (panels) => Math.max(0, ...panels.map(({ series }) => series.filter((one) => one.look === "dots").length));

/** The stretches of points without gaps, a point by itself among them. */
function runsOf(points) {
  const runs = [[]];
  for (const point of points) {
    if (Number.isNaN(point[1])) runs.push([]);
    else runs[runs.length - 1].push(point);
  }
  return runs.filter((run) => run.length);
}

/** A series out of a metric, with its interval if there is one. */
const ofMetric = (key, look, more = {}) => ({
  key,
  look,
  words: column(key) ? column(key).label : key,
  value: (l) => metric(key, state.domain, l),
  ...(has(`${key}_low`) && has(`${key}_high`)
    ? { low: (l) => metric(`${key}_low`, state.domain, l), high: (l) => metric(`${key}_high`, state.domain, l) }
    : {}),
  ...more,
});
