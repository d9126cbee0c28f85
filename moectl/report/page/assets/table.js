// Table 1: every metric of every layer; sorted by its headers, narrowed by words.

const FIRST = [
  "max_vio",
  "max_vio_noise_floor",
  "max_vio_sequence",
  "max_vio_batch",
  "dead_experts",
  "cold_experts",
  "effective_experts",
  "cv",
  "gini",
  "next_token_overlap",
  "next_token_overlap_load_aware",
  "domain_information_bits",
];
const GROUPS = ["Layer", "Balance", "Spread", "Losses", "Confidence", "Neighbours", "Domains", "Vocabulary", "Other"].filter(
  (group) => columns.some((one) => one.group === group && has(one.key)),
);
const marked = new Map(data.attention.map(([layer, ...reasons]) => [layer, reasons.join("; ")]));
const tableState = { groups: new Set(["Main"]), unread: false, intervals: false, sort: null, descending: false, keep: () => true };

function tableColumns() {
  const main = tableState.groups.has("Main") ? FIRST.filter(has).map(column) : [];
  const chosen = [...main, ...columns.filter((one) => has(one.key) && tableState.groups.has(one.group) && !main.includes(one))];
  return chosen.filter(({ key }) => layers.some((_, l) => !Number.isNaN(metric(key, state.domain, l))));
}

/** `3`, `4-9`, `max_vio > 0.5`, several of them between commas -> whether a layer is kept; null if it cannot be read. */
function readFilter(text) {
  const parts = text
      .split(/[,;&]/)
      .map((part) => part.trim())
      .filter(Boolean),
    ranges = [],
    conditions = [];
  for (const part of parts) {
    const range = part.match(/^(?:layers?\s*)?(\d+)(?:\s*-\s*(\d+))?$/i),
      condition = part.match(/^(.+?)\s*(<=|>=|<|>|=)\s*(-?[\d.]+)\s*(%?)$/);
    if (range) ranges.push([Number(range[1]), Number(range[2] || range[1])]);
    else if (part === "!") conditions.push((l) => marked.has(layers[l]));
    else if (condition) {
      const name = condition[1].toLowerCase(),
        found = columns.find(({ key, label }) => key === name || label.toLowerCase() === name);
      if (!found) return null;
      // A share is shown as per cent: no limit above 1 can mean anything else.
      const perCent = condition[4] || (found.unit === "share" && Math.abs(Number(condition[3])) > 1);
      const limit = Number(condition[3]) / (perCent ? 100 : 1);
      const holds = {
        "<": (value) => value < limit,
        ">": (value) => value > limit,
        "<=": (value) => value <= limit,
        ">=": (value) => value >= limit,
        "=": (value) => value === limit,
      }[condition[2]];
      conditions.push((l) => holds(metric(found.key, state.domain, l)));
    } else return null;
  }
  return (l) =>
    (!ranges.length || ranges.some(([first, last]) => layers[l] >= first && layers[l] <= last)) && conditions.every((holds) => holds(l));
}

function tableLayers() {
  const found = layers.map((_, l) => l).filter(tableState.keep);
  if (tableState.sort === null) return tableState.descending ? found.reverse() : found;
  const value = (l) => metric(tableState.sort, state.domain, l),
    sign = tableState.descending ? -1 : 1;
  // What does not apply comes last either way.
  return found.sort((a, b) => Number.isNaN(value(a)) - Number.isNaN(value(b)) || sign * (value(a) - value(b)) || a - b);
}

const help = make("p", { class: "help", id: "column-help" });
const explain = (one) =>
  help.replaceChildren(
    make("b", {}, one ? one.label : "Columns"),
    one
      ? ` (${one.key}${one.unit === "ratio" ? "" : `, ${one.unit === "share" ? "%" : one.unit}`}): ${one.text}.`
      : ": point at a header for what it means, press it to sort.",
  );
const count = make("span", { class: "note", role: "status" });

function header(one) {
  const key = one && one.key,
    sorted = tableState.sort === (key || null) && (key || tableState.descending !== null);
  const press = () => {
    tableState.descending = sorted ? !tableState.descending : Boolean(key);
    tableState.sort = key || null;
    frames.layers.refresh();
    frames.layers.home.querySelector(`[data-key="${key || "layer"}"] button`).focus();
  };
  // Chromium leaves buttons out where a header is repeated on the next sheet.
  if (printing) return make("th", { scope: "col" }, one ? one.label : "layer");
  const title = one ? `${one.key}: ${one.text}` : "the decoder layer's own index";
  const show = () => explain(one);
  return make(
    "th",
    {
      scope: "col",
      "data-key": key || "layer",
      title,
      "aria-sort": sorted ? (tableState.descending ? "descending" : "ascending") : null,
      onpointerenter: show,
      onpointerleave: () => explain(null),
    },
    make(
      "button",
      { type: "button", onclick: press, onfocus: show, onblur: () => explain(null), "aria-describedby": "column-help" },
      one ? one.label : "layer",
    ),
  );
}

const tableFigure = {
  name: "layers",
  perDomain: true,
  label: () => `the layer table, ${visible(domainName(state.domain))}`,
  csv() {
    const keys = tableColumns().flatMap(({ key }) => [key, ...(tableState.intervals && has(`${key}_low`) ? [`${key}_low`, `${key}_high`] : [])]);
    return [["layer", ...keys], ...tableLayers().map((l) => [layers[l], ...keys.map((key) => metric(key, state.domain, l))])];
  },
};

/** A value and, below it if wanted, its interval; both with the digits of their column. */
function tableCell({ key, unit }, l, digits) {
  const [value, low, high] = [key, `${key}_low`, `${key}_high`].map((one) => metric(one, state.domain, l));
  const between = Number.isNaN(low) ? null : `${withDigits(low, unit, digits)} – ${withDigits(high, unit, digits)}`;
  return make(
    "td",
    { title: between && `95\u00a0% interval ${between}` },
    withDigits(value, unit, digits),
    between && tableState.intervals ? make("small", {}, between) : null,
  );
}

/** The table in the place of a figure's frame. */
class TableFrame {
  constructor() {
    this.home = document.querySelector('[data-figure="layers"]');
    this.space = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Layer table" });
    const filter = make("input", {
      type: "text",
      id: "filter",
      size: 22,
      placeholder: "4-9, max_vio > 0.5",
      "aria-describedby": "filter-help",
      oninput(event) {
        const keep = readFilter(event.target.value);
        event.target.setAttribute("aria-invalid", keep === null);
        tableState.unread = keep === null;
        if (keep) tableState.keep = keep;
        frames.layers.refresh();
      },
    });
    const groups = ["Main", ...GROUPS].map((group) =>
      make(
        "label",
        {},
        make("input", {
          type: "checkbox",
          name: "group",
          value: group,
          checked: tableState.groups.has(group),
          onchange(event) {
            tableState.groups[event.target.checked ? "add" : "delete"](group);
            frames.layers.refresh();
          },
        }),
        make("span", {}, group),
      ),
    );
    const intervals = columns.some(({ group }) => group === "Intervals")
      ? check("95\u00a0% intervals", (on) => {
          tableState.intervals = on;
          frames.layers.refresh();
        })
      : "";
    const meanings = columns
      .filter(({ key, group }) => has(key) && group !== "Intervals")
      .map((one) => make("div", {}, make("dt", {}, one.label), make("dd", {}, make("code", {}, one.key), ` ${one.text}`)));
    this.home.append(
      make("div", { class: "tools" }, make("label", {}, "Keep ", filter), count, saveButtons(tableFigure)),
      make("div", { class: "tools" }, make("fieldset", { class: "choice" }, make("legend", {}, "Columns"), ...groups), intervals),
      make(
        "p",
        { class: "unseen", id: "filter-help" },
        "Layers such as 4-9, conditions such as max_vio > 0.5, or an exclamation mark for layers to look at; commas between them.",
      ),
      help,
      this.space,
      make("details", { class: "definitions" }, make("summary", {}, "What the columns mean"), make("dl", {}, ...meanings)),
    );
    explain(null);
  }
  refresh() {
    const shownColumns = tableColumns(),
      kept = tableLayers();
    const digits = shownColumns.map(({ key, unit }) =>
      digitsFor(
        layers.map((_, l) => metric(key, state.domain, l)),
        unit,
      ),
    );
    const rows = kept.map((l) =>
      make(
        "tr",
        {},
        make("th", { scope: "row", title: marked.get(layers[l]) }, marked.has(layers[l]) ? `! ${layers[l]}` : String(layers[l])),
        ...shownColumns.map((one, at) => tableCell(one, l, digits[at])),
      ),
    );
    const table = make(
      "table",
      { class: "data" },
      make("caption", { class: "unseen" }, "Metrics by layer; ! marks layers to look at"),
      make("thead", {}, make("tr", {}, header(null), ...shownColumns.map(header))),
      make("tbody", {}, ...rows),
    );
    this.space.replaceChildren(table);
    const found = kept.length === L ? `${L} ${L === 1 ? "layer" : "layers"}` : `${kept.length} of ${L} layers`;
    count.textContent = tableState.unread ? "cannot read this filter" : found;
    this.home.querySelector('[data-part="caption"]').textContent = `A layer with an exclamation mark is one to look at. ${textWords()}.`;
  }
}
