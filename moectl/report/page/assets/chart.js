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

/** A y scale over `values`: linear from 0, or logarithmic, where what is not above 0 falls on the bottom line. */
function yScale(values, { log = false, least = 0, unit } = {}) {
  const known = values.filter((value) => Number.isFinite(value));
  const high = Math.max(least, ...known);
  if (!log) {
    const low = Math.min(0, ...known),
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
  if (yTitle) surface.text(box.x - 46, box.y - 12, yTitle, { fill: colours.ink, size: 12 });
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
 * A figure with one place per layer. `panels()`: [{title, unit, series, log}], side by side where there is room. A series has words, value(l),
 * and may have low(l), high(l), a mark, a look: thin (dots on a line), dots, band (shaded from 0), dash, dotted; and a colour: a place in
 * the series colours, or soft.
 */
function layerFigure({ name, label, caption, panels, perDomain = true, controls, lines }) {
  const colourOf = (series, colours) =>
    series.look === "band"
      ? colours.band
      : series.colour === "soft"
        ? colours.soft
        : colours.series[(series.colour || 0) % colours.series.length];
  const words = ({ unit }, value) => shown(value, unit);
  const entries = (l) =>
    panels().flatMap((panel) =>
      panel.series.map((series) => [
        panels().length > 1 ? `${panel.title}: ${series.words}` : series.words,
        words(panel, series.value(l)) +
          (series.low && !Number.isNaN(series.low(l)) ? ` (${words(panel, series.low(l))} – ${words(panel, series.high(l))})` : ""),
      ]),
    );
  return {
    name,
    label,
    caption,
    perDomain,
    controls,
    size(room) {
      // A few layers need no wide chart.
      const width = Math.min(room, Math.max(1, panels().length) * (300 + 40 * L));
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
        const top = (panel.title ? 24 : 4) + lines * 19 + 26;
        const box = { x: column * (each + left + between + 8) + left, y: y + top, width: each, height, places, head: y + 14 };
        tallest = Math.max(tallest, top + height + 46);
        if (column === abreast - 1) [y, tallest] = [y + tallest + 8, 0];
        return box;
      });
      if (abreast > 1)
        for (const box of boxes) box.y = Math.max(...boxes.filter((other) => other.head === box.head).map((other) => other.y));
      const first = layers[0],
        span = Math.max(layers[L - 1] - first, 1);
      const xOf = (box, l) => box.x + 10 + (L > 1 ? (layers[l] - first) / span : 0.5) * (box.width - 20);
      return { width, height: Math.max(...boxes.map((box) => box.y + box.height)) + 42, boxes, xOf };
    },
    draw(surface, layout, colours) {
      panels().forEach((panel, i) => {
        const box = layout.boxes[i],
          xs = layers.map((_, l) => layout.xOf(box, l));
        const all = panel.series.flatMap((series) =>
          layers.flatMap((_, l) => [series.value(l), ...(series.low ? [series.low(l), series.high(l)] : [])]),
        );
        const scale = yScale(all, { log: panel.log, unit: panel.unit });
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
          if (points.length)
            surface.polygon(
              [
                [points[0][0] - wide, yOf(0)],
                ...points.map(([x, value], at) => [x + (at ? wide : -wide), yOf(value)]),
                ...(wide ? [[points[0][0] + wide, yOf(points[0][1])]] : []),
                [points[points.length - 1][0] + wide, yOf(0)],
              ],
              colours.band,
            );
        }
        drawAxes(surface, box, colours, { scale, unit: panel.unit, xTicks: layerTicks((l) => xs[l]), xTitle: "layer", yTitle: panel.y });
        for (const series of panel.series.filter((one) => one.look !== "band")) {
          const colour = colourOf(series, colours);
          if (series.look !== "dots") {
            for (const run of runsOf(xs.map((x, l) => [x, series.value(l)]))) {
              surface.polyline(
                run.map(([x, value]) => [x, yOf(value)]),
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
          xs.forEach((x, l) => {
            const value = series.value(l);
            if (Number.isNaN(value)) return;
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
      rows: () => 1,
      columns: () => L,
      box: ([, l], layout) => [layout.xOf(layout.boxes[0], l), layout.boxes[0].y, 1, layout.boxes[0].height],
      at(x, y, layout) {
        const box = layout.boxes.find((one) => x >= one.x - 6 && x <= one.x + one.width + 6 && y >= one.y && y <= one.y + one.height);
        if (!box) return null;
        const distances = layers.map((_, l) => Math.abs(layout.xOf(box, l) - x));
        return [0, distances.indexOf(Math.min(...distances))];
      },
      tip: ([, l]) => facts(`Layer ${layers[l]}`, entries(l), ...(lines ? lines(l) : [])),
      say: ([, l]) =>
        `Layer ${layers[l]}: ${entries(l)
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

/** The stretches of points without gaps. */
function runsOf(points) {
  const runs = [[]];
  for (const point of points) {
    if (Number.isNaN(point[1])) runs.push([]);
    else runs[runs.length - 1].push(point);
  }
  return runs.filter((run) => run.length > 1);
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
