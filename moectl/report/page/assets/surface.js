// A drawing surface in CSS pixels, with two backs: SVG elements, and a canvas at any scale. Figures draw on either.

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif';
const measuring = document.createElement("canvas").getContext("2d");
function textWidth(text, size = 12) {
  measuring.font = `${size}px ${FONT}`;
  return measuring.measureText(text).width;
}

const MARKS = {
  circle: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  square: (x, y, r) => `M${x - r * 0.9} ${y - r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  triangle: (x, y, r) => `M${x} ${y - r * 1.15}l${r * 1.1} ${r * 1.95}h${-r * 2.2}z`,
  inverted: (x, y, r) => `M${x} ${y + r * 1.15}l${r * 1.1} ${-r * 1.95}h${-r * 2.2}z`,
  diamond: (x, y, r) => `M${x} ${y - r * 1.25}l${r * 1.25} ${r * 1.25}l${-r * 1.25} ${r * 1.25}l${-r * 1.25} ${-r * 1.25}z`,
  cross: (x, y, r) =>
    `M${x - r * 0.4} ${y - r * 1.1}h${r * 0.8}v${r * 0.7}h${r * 0.7}v${r * 0.8}h${-r * 0.7}v${r * 0.7}h${-r * 0.8}v${-r * 0.7}h${-r * 0.7}v${-r * 0.8}h${r * 0.7}z`,
};
const MARK_NAMES = Object.keys(MARKS);
const joined = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");

/** What both backs share: everything is a path or a text. */
class Surface {
  rect(x, y, width, height, fill) {
    this.path(`M${x} ${y}h${width}v${height}h${-width}z`, { fill });
  }
  line(x1, y1, x2, y2, look) {
    this.path(`M${x1} ${y1}L${x2} ${y2}`, look);
  }
  polyline(points, look) {
    if (points.length) this.path(joined(points), look);
  }
  polygon(points, fill) {
    if (points.length) this.path(`${joined(points)}z`, { fill });
  }
  mark(name, x, y, radius, fill, edge) {
    this.path(MARKS[name](x, y, radius), { fill, stroke: edge, width: edge ? 1 : 0 });
  }
}

class SvgSurface extends Surface {
  constructor(width, height) {
    super();
    this.node = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT, "font-size": 12 }))
      this.node.setAttribute(key, value);
  }
  add(tag, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== null) node.setAttribute(key, value);
    return this.node.appendChild(node);
  }
  /** Boxes [x, y, width, height] by colour, one path for each. */
  boxes(byColour) {
    for (const [fill, boxes] of byColour)
      this.path(boxes.map(([x, y, width, height]) => `M${x} ${y}h${width}v${height}h${-width}z`).join(""), { fill });
  }
  path(d, { fill = "none", stroke, width = 1, dash, opacity } = {}) {
    this.add("path", {
      d,
      fill,
      stroke,
      "stroke-width": stroke ? width : null,
      "stroke-dasharray": dash,
      opacity,
      "stroke-linejoin": stroke ? "round" : null,
    });
  }
  text(x, y, text, { anchor = "start", size = 12, fill, weight, turned } = {}) {
    this.add("text", {
      x,
      y,
      fill,
      "text-anchor": anchor,
      "font-size": size === 12 ? null : size,
      "font-weight": weight,
      transform: turned ? `rotate(-90 ${x} ${y})` : null,
    }).textContent = text;
  }
}

class CanvasSurface extends Surface {
  constructor(width, height, scale) {
    super();
    this.node = document.createElement("canvas");
    this.node.width = Math.round(width * scale);
    this.node.height = Math.round(height * scale);
    this.node.style.width = `${width}px`;
    this.node.style.height = `${height}px`;
    this.context = this.node.getContext("2d");
    this.context.scale(scale, scale);
  }
  rect(x, y, width, height, fill) {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, width, height);
  }
  boxes(byColour) {
    for (const [fill, boxes] of byColour) for (const [x, y, width, height] of boxes) this.rect(x, y, width, height, fill);
  }
  path(d, { fill, stroke, width = 1, dash, opacity = 1 } = {}) {
    const { context } = this,
      shape = new Path2D(d);
    context.globalAlpha = opacity;
    if (fill && fill !== "none") {
      context.fillStyle = fill;
      context.fill(shape);
    }
    if (stroke) {
      context.strokeStyle = stroke;
      context.lineWidth = width;
      context.lineJoin = "round";
      context.setLineDash(dash ? dash.split(" ").map(Number) : []);
      context.stroke(shape);
    }
    context.globalAlpha = 1;
  }
  text(x, y, text, { anchor = "start", size = 12, fill, weight = 400, turned } = {}) {
    const { context } = this;
    context.save();
    context.font = `${weight} ${size}px ${FONT}`;
    context.fillStyle = fill;
    context.textAlign = { start: "left", middle: "center", end: "right" }[anchor];
    context.translate(x, y);
    if (turned) context.rotate(-Math.PI / 2);
    context.fillText(text, 0, 0);
    context.restore();
  }
}
