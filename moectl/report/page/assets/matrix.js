// Heat maps: cells on whole device pixels, a legend, the axes.

/** Cells as wide and tall as `width` allows, between limits; `left` and `top` are for labels. */
function matrixLayout({
  width,
  rows,
  columns,
  widestCell,
  tallestCell,
  leastCell = 3,
  height,
  square = false,
  left = 46,
  top = 26,
  bottom = 76,
}) {
  const scale = printing ? 3 : devicePixelRatio || 1;
  const fit = (room, n, most, least) => Math.min(most, Math.max(least, Math.floor((room / n) * scale) / scale));
  let cellWidth = fit(width - left - 2, columns, widestCell, printing ? 1 : leastCell);
  let cellHeight = fit(height, rows, tallestCell, printing ? 1 : leastCell);
  if (square) cellWidth = cellHeight = Math.min(cellWidth, cellHeight);
  const gap = Math.min(cellWidth, cellHeight) >= 9 ? 1 : 0;
  return {
    left,
    top,
    cellWidth,
    cellHeight,
    gap,
    rows,
    columns,
    width: Math.max(left + columns * cellWidth + 2, 300),
    height: top + rows * cellHeight + bottom,
  };
}

const cellBox = ({ left, top, cellWidth, cellHeight }, row, column) => [
  left + column * cellWidth,
  top + row * cellHeight,
  cellWidth,
  cellHeight,
];

function cellAt({ left, top, cellWidth, cellHeight, rows, columns }, x, y) {
  const row = Math.floor((y - top) / cellHeight),
    column = Math.floor((x - left) / cellWidth);
  return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null;
}

/** Steps between labels so that they stand at least `least` pixels apart: 1, 2, 4, 8, ... or 1, 5, 10, 20, ... */
const labelStep = (size, least, steps) => steps.find((step) => step * size >= least) || steps[steps.length - 1];
const BINARY = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const DECIMAL = [1, 5, 10, 20, 50, 100];

/** `colour(row, column)`: a colour, null for nothing there, "dead" for an expert that never ran. */
function drawMatrix(surface, layout, colours, { colour, rowLabel, columnLabel, rowTitle, columnTitle, rowStep = rowLabel }) {
  const { left, top, cellWidth, cellHeight, gap, rows, columns } = layout;
  const boxes = new Map(),
    dead = [];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const found = colour(row, column);
      if (found === null) continue;
      const fill = found === "dead" ? colours.ink : found;
      const [x, y] = cellBox(layout, row, column);
      if (!boxes.has(fill)) boxes.set(fill, []);
      boxes.get(fill).push([x, y, cellWidth - gap, cellHeight - gap]);
      if (found === "dead") dead.push([x, y]);
    }
  }
  surface.boxes(boxes);
  if (Math.min(cellWidth, cellHeight) >= 8) for (const [x, y] of dead) deadCross(surface, x, y, cellWidth - gap, cellHeight - gap, colours);
  const look = { fill: colours.soft, size: 11 };
  const everyRow = labelStep(cellHeight, 12, DECIMAL),
    everyColumn = labelStep(cellWidth, 26, BINARY);
  for (let row = 0; row < rows; row++) {
    if (Number(rowStep(row)) % everyRow === 0)
      surface.text(left - 6, top + (row + 0.5) * cellHeight + 4, rowLabel(row), { ...look, anchor: "end" });
  }
  for (let column = 0; column < columns; column += everyColumn)
    surface.text(left + (column + 0.5) * cellWidth - gap / 2, top - 6, columnLabel(column), { ...look, anchor: "middle" });
  surface.text(left, top + rows * cellHeight + 15, columnTitle, look);
  surface.text(10, top, rowTitle, { ...look, anchor: "end", turned: true });
}

function deadCross(surface, x, y, width, height, colours) {
  const look = { stroke: colours.paper, width: 1 };
  surface.line(x + 2, y + 2, x + width - 2, y + height - 2, look);
  surface.line(x + 2, y + height - 2, x + width - 2, y + 2, look);
}

/** A bar of colours with ticks [[at, words], ...], `at` from 0 to 1; then `extras` [[colour or "dead", words], ...]. */
function drawLegend(surface, layout, colours, { stops, ticks, title, extras = [] }) {
  const y = layout.height - 30,
    x = layout.left,
    width = Math.min(330, layout.width - x - 4),
    n = 65;
  surface.text(x, layout.height - 37, title, { fill: colours.ink, size: 11 });
  const boxes = new Map(Array.from({ length: n }, (_, i) => [along(stops, i / (n - 1)), []]));
  for (let i = 0; i < n; i++) {
    const from = Math.round((i * width) / n),
      to = Math.round(((i + 1) * width) / n);
    boxes.get(along(stops, i / (n - 1))).push([x + from, y, to - from, 10]);
  }
  surface.boxes(boxes);
  ticks.forEach(([at, words], i) =>
    surface.text(x + at * width, y + 23, words, {
      fill: colours.soft,
      size: 11,
      anchor: i === 0 ? "start" : i === ticks.length - 1 ? "end" : "middle",
    }),
  );
  let next = x + width + 22;
  for (const [colour, words] of extras) {
    if (next + 20 + textWidth(words, 11) > layout.width) break;
    surface.rect(next, y, 12, 10, colour === "dead" ? colours.ink : colours[colour]);
    if (colour === "dead") deadCross(surface, next, y, 12, 10, colours);
    surface.text(next + 17, y + 9, words, { fill: colours.soft, size: 11 });
    next += 34 + textWidth(words, 11);
  }
}

/** A scale of quotients around 1 in powers of two: how far the values of `list` go, from 2 to 16 times. */
function quotientScale(list) {
  const sizes = list
    .filter((value) => value > 0 && Number.isFinite(value))
    .map((value) => Math.abs(Math.log2(value)))
    .sort((a, b) => a - b);
  const reach = Math.min(4, Math.max(1, Math.ceil(sizes.length ? sizes[Math.floor(0.97 * (sizes.length - 1))] : 1)));
  const ticks = [];
  for (let power = -reach; power <= reach; power += reach > 3 ? 2 : 1) {
    const words = power < 0 ? `1/${2 ** -power}` : `${2 ** power}`;
    ticks.push([(power + reach) / (2 * reach), power === -reach ? `≤ ${words}` : power === reach ? `≥ ${words}` : words]);
  }
  return { at: (value) => (value > 0 ? (Math.log2(value) + reach) / (2 * reach) : 0), ticks };
}
