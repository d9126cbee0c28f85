// Text: numbers for people and for CSV, names that cannot harm, elements.

const number = (value, digits) => value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A value for people: three significant digits, or as its unit wants it. */
function shown(value, unit = "ratio") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (unit === "count") return number(value, 0);
  if (unit === "share") return `${number(100 * value, Math.abs(value) < 0.0995 ? 2 : 1)}\u00a0%`;
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toPrecision(2);
  return number(value, size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 || size === 0 ? 3 : 4);
}

/** Digits after the point for a column of values of one unit, so that the one in the middle has three. */
function digitsFor(values, unit) {
  const sizes = values.filter((value) => Number.isFinite(value) && value !== 0).map(Math.abs);
  if (unit === "count") return 0;
  if (!sizes.length) return unit === "share" ? 1 : 3;
  const size = Math.floor(Math.log10(sizes.sort((a, b) => a - b)[sizes.length >> 1]));
  return unit === "share" ? Math.min(3, Math.max(1, -1 - size)) : Math.min(4, Math.max(size < 3 ? 1 : 0, 2 - size));
}
const withDigits = (value, unit, digits) =>
  Number.isNaN(value) ? "–" : unit === "share" ? `${number(100 * value, digits)}\u00a0%` : number(value, digits);

const times = (value) => (Number.isNaN(value) ? "–" : `${number(value, value < 9.995 ? 2 : 1)}×`);

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A name as it can be shown anywhere: what has no look of its own, or turns text around, by its number. */
const visible = (name) => String(name).replace(UNSEEN, (c) => `⟨${c.codePointAt(0).toString(16).toUpperCase()}⟩`);

/** The same inside a drawing: in a direction of its own. */
const isolated = (name) => `\u2068${visible(name)}\u2069`;

/** A token: spaces and line ends made visible, many spaces counted. */
const tokenText = (token) =>
  visible(
    token
      .replace(/ {4,}/g, (spaces) => `␣×${spaces.length}`)
      .replace(/ /g, "␣")
      .replace(/\n/g, "⏎")
      .replace(/\t/g, "⇥"),
  );

const field = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
};

/** Rows as RFC 4180 text; numbers in full, nothing where a metric does not apply. */
const csvText = (rows) => rows.map((row) => row.map(field).join(",") + "\r\n").join("");

/** An element: `make("p", {class: "note"}, "text", child)`. Text is text, never markup. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A plain table; `rows` of cells, the first of each its header. Cells that are not strings are words, to be read from the left. */
function makeTable(head, rows, kind = "data") {
  const ofWords = (at) => rows.length && at && typeof rows[0][at] !== "string";
  const body = rows.map((row) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, row[0]),
      ...row.slice(1).map((cell) => make("td", typeof cell === "string" ? {} : { class: "words" }, cell)),
    ),
  );
  return make(
    "table",
    { class: kind },
    make("thead", {}, make("tr", {}, ...head.map((cell, at) => make("th", { scope: "col", class: ofWords(at) ? "words" : null }, cell)))),
    make("tbody", {}, ...body),
  );
}

/** Words like `all`, `3`, `4-6, 9` -> the layers of `known` that are meant; null for all, undefined if it is not such a text. */
function readLayers(text, known) {
  const wanted = text.trim().toLowerCase();
  if (wanted === "" || wanted === "all") return null;
  if (!/^\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*$/.test(wanted)) return undefined;
  const ranges = wanted.split(",").map((part) => part.split("-").map(Number));
  return known.filter((layer) => ranges.some(([first, last = first]) => layer >= first && layer <= last));
}
