// The frame of a figure: its controls, its downloads, what pointer and keys tell about a part of it, and the same as a table.
//
// A figure says: name, label(), size(width) -> layout with width and height, draw(surface, layout, colours), csv() -> rows, and may say
// caption(), controls, beside() and `parts`: {rows, columns, box(part, layout), at(x, y, layout), tip(part), say(part)} of its parts
// [row, column].

const tip = document.getElementById("tip");
const live = document.getElementById("live");
const PRINT_WIDTH = 680;

const say = (text) => {
  live.textContent = text;
};

/** The frame whose part the tip is about. */
let pointed = null;

function showTip(content, frame) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  pointed = frame;
  placeTip();
}
function placeTip() {
  const near = pointed.cursor.getBoundingClientRect();
  const width = tip.offsetWidth,
    height = tip.offsetHeight,
    gap = 12;
  const x = near.right + gap + width < innerWidth ? near.right + gap : Math.max(8, near.left - gap - width);
  // Scrolled out of sight, and what it is about with it.
  tip.style.visibility = near.bottom < 0 || near.top > innerHeight ? "hidden" : "visible";
  tip.style.left = `${Math.max(8, Math.min(x, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(near.top - 10, innerHeight - height - 8))}px`;
}
const hideTip = () => {
  tip.hidden = true;
  pointed = null;
};

/** Content of a tip: a heading and pairs of name and value. */
function facts(heading, entries, ...rest) {
  const rows = entries.map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", {}, value)));
  return [make("b", {}, heading), make("table", {}, ...rows), ...rest];
}

function saveAs(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = (figure, ending) =>
  `${figure.name}${figure.perDomain && state.domain ? `-${data.domains[state.domain].replace(/[^\p{L}\p{N}_-]+/gu, "_")}` : ""}.${ending}`;
const EXPORT_WIDTH = 1080;

/** A figure on a surface of its own, light: `back` makes the surface. */
function drawn(figure, back) {
  const layout = figure.size(EXPORT_WIDTH, THEMES.light);
  const surface = back(layout);
  surface.rect(0, 0, layout.width, layout.height, THEMES.light.paper);
  figure.draw(surface, layout, THEMES.light);
  return surface.node;
}

const exports = {
  CSV: (figure) => saveAs(fileName(figure, "csv"), new Blob([csvText(figure.csv())], { type: "text/csv" })),
  SVG: (figure) => {
    const node = drawn(figure, ({ width, height }) => new SvgSurface(width, height));
    saveAs(fileName(figure, "svg"), new Blob([new XMLSerializer().serializeToString(node)], { type: "image/svg+xml" }));
  },
  PNG: (figure) =>
    drawn(figure, ({ width, height }) => new CanvasSurface(width, height, 3)).toBlob((blob) => saveAs(fileName(figure, "png"), blob)),
};

function saveButtons(figure) {
  const kinds = Object.keys(exports).filter((kind) => kind === "CSV" || figure.draw);
  const buttons = kinds.map((kind) =>
    make("button", { type: "button", "aria-label": `Save ${figure.label()} as ${kind}`, onclick: () => exports[kind](figure) }, kind),
  );
  return make("div", { class: "save" }, ...buttons);
}

/** One of several: `options` [[value, words], ...]. */
function choice(legend, name, options, chosen, change) {
  const boxes = options.map(([value, words]) =>
    make(
      "label",
      {},
      make("input", { type: "radio", name, value, checked: value === chosen, onchange: () => change(value) }),
      make("span", {}, words),
    ),
  );
  return make("fieldset", { class: "choice" }, make("legend", {}, legend), ...boxes);
}
const WHISKERS = "Whiskers are 95\u00a0% intervals. ";
const PALE = " Pale cells are within four standard deviations of chance.";
const check = (words, change, checked = false) =>
  make("label", { class: "check" }, make("input", { type: "checkbox", checked, onchange: (event) => change(event.target.checked) }), words);

/** Linear or logarithmic, by name of the figure; logarithmic at first where the values go far apart. */
const logAxis = {};
function axisChoice(name, values) {
  logAxis[name] = Math.max(...values.filter(Number.isFinite)) > 8 * Math.max(1, median(values));
  return choice(
    "Axis",
    `${name}-axis`,
    [
      ["linear", "linear"],
      ["log", "log"],
    ],
    logAxis[name] ? "log" : "linear",
    (value) => {
      logAxis[name] = value === "log";
      frames[name].refresh();
    },
  );
}

class Frame {
  constructor(figure) {
    this.figure = figure;
    this.home = document.querySelector(`[data-figure="${figure.name}"]`);
    this.cursor = make("div", { class: "cursor", hidden: true });
    this.plot = make("div", { class: `plot ${figure.canvas ? "cells" : "lines"}` });
    this.beside = figure.beside ? make("div") : null;
    const area = make("div", { class: "scroll" }, this.plot);
    const body = this.beside ? make("div", { class: "beside" }, area, this.beside) : area;
    this.area = area;
    this.home.append(make("div", { class: "tools" }, ...(figure.controls || []), saveButtons(figure)), body, this.alternative());
    if (figure.parts) this.listen();
  }

  alternative() {
    const space = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table of ${this.figure.label()}` });
    const details = make("details", { class: "alternative" }, make("summary", {}, "The same as a table"), space);
    this.fill = () => {
      if (!details.open) return space.replaceChildren();
      const { figure } = this,
        [head, ...rows] = figure.table ? figure.table() : figure.csv();
      const cell = (value) =>
        typeof value === "number" ? (Number.isInteger(value) ? number(value, 0) : shown(value)) : visible(value ?? "–");
      space.replaceChildren(
        makeTable(
          head.map(visible),
          rows.map((row) => row.map(cell)),
        ),
      );
    };
    details.addEventListener("toggle", this.fill);
    return details;
  }

  room() {
    if (printing) return this.beside ? PRINT_WIDTH * 0.6 : PRINT_WIDTH;
    return this.home.clientWidth;
  }

  refresh() {
    const { figure } = this,
      colours = theme();
    const layout = figure.size(this.room(), colours);
    this.layout = layout;
    const surface = figure.canvas
      ? new CanvasSurface(layout.width, layout.height, printing ? 3 : devicePixelRatio || 1)
      : new SvgSurface(layout.width, layout.height);
    figure.draw(surface, layout, colours);
    surface.node.setAttribute("aria-hidden", "true");
    this.plot.replaceChildren(surface.node, this.cursor);
    this.cursor.hidden = true;
    if (figure.parts) {
      this.plot.setAttribute("tabindex", "0");
      this.plot.setAttribute("role", "application");
      this.plot.setAttribute("aria-roledescription", figure.canvas ? "heat map" : "chart");
      this.plot.setAttribute("aria-label", `${figure.label()}. Arrow keys move; a table follows.`);
    } else {
      this.plot.setAttribute("role", "img");
      this.plot.setAttribute("aria-label", `${figure.label()}. A table follows.`);
    }
    const caption = this.home.querySelector('[data-part="caption"]');
    if (figure.caption) caption.textContent = figure.caption();
    if (this.beside) this.beside.replaceChildren(...figure.beside());
    this.fill();
  }

  listen() {
    const { plot, figure } = this,
      { parts } = figure;
    plot.addEventListener("pointermove", (event) => {
      const frame = plot.firstChild.getBoundingClientRect();
      const part = parts.at(event.clientX - frame.left, event.clientY - frame.top, this.layout);
      if (part) this.point(part);
      else this.leave();
    });
    plot.addEventListener("pointerleave", () => {
      if (document.activeElement !== plot) this.leave();
      else hideTip();
    });
    plot.addEventListener("focus", () => {
      if (plot.matches(":focus-visible")) this.point(this.part || [0, 0], true);
    });
    plot.addEventListener("blur", () => this.leave());
    plot.addEventListener("keydown", (event) => {
      const [row, column] = this.part || [0, 0];
      const rows = parts.rows(),
        last = parts.columns(row) - 1;
      const target = {
        ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1],
        ArrowUp: [row - 1, column],
        ArrowDown: [row + 1, column],
        Home: event.ctrlKey ? [0, 0] : [row, 0],
        End: event.ctrlKey ? [rows - 1, Infinity] : [row, last],
        PageUp: rows > 1 ? [row - 8, column] : [row, column - 8],
        PageDown: rows > 1 ? [row + 8, column] : [row, column + 8],
      }[event.key];
      if (event.key === "Escape") this.leave();
      if (!target || event.altKey || event.metaKey) return;
      event.preventDefault();
      const to = Math.max(0, Math.min(target[0], rows - 1));
      this.point([to, Math.max(0, Math.min(target[1], parts.columns(to) - 1))], true);
    });
  }

  point(part, aloud = false) {
    const [x, y, width, height] = this.figure.parts.box(part, this.layout);
    this.part = part;
    Object.assign(this.cursor.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
    this.cursor.hidden = false;
    if (aloud) {
      this.cursor.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
      say(this.figure.parts.say(part));
    }
    showTip(this.figure.parts.tip(part), this);
  }

  leave() {
    this.cursor.hidden = true;
    hideTip();
  }
}

/** Put a figure on the page. */
const put = (figure) => {
  frames[figure.name] = new Frame(figure);
};

/** Put a table on the page that no choice changes; or save buttons to one that stands there. */
function putTable(figure) {
  const home = document.querySelector(`[data-figure="${figure.name}"]`),
    area = home.querySelector(".scroll");
  const tools = make("div", { class: "tools" }, saveButtons(figure));
  if (area) area.before(tools);
  else home.append(tools, make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": figure.label() }, figure.content()));
}

/** The figures of the model, as written in the page. */
const headlineFigure = {
  name: "headline",
  label: () => "the model in figures",
  csv: () =>
    [...document.querySelectorAll('[data-figure="headline"] tr')].map((row) =>
      [...row.cells].map((cell) => cell.textContent.replace(/\u00a0/g, " ")),
    ),
};
const refreshAll = () => Object.values(frames).forEach((frame) => frame.refresh());
