// Colours of the figures, for light and dark. Both scales go from blue over neutral to orange, which colour-blind readers tell apart,
// and grow evenly in contrast to the paper; an expert that never ran has the colour of ink.

const THEMES = {
  light: {
    paper: "#ffffff",
    ink: "#1a1d21",
    soft: "#565f6b",
    rule: "#dfe3e8",
    band: "#d9dde2",
    series: ["#0b67b2", "#c8500a", "#0a7d5c", "#93479a", "#7a6400", "#2b93c2", "#b3305f", "#4d5864"],
    diverging: ["#123f86", "#4b86c6", "#aecbe6", "#f4f3ef", "#f5c191", "#dd7a30", "#963700"],
    rising: ["#f3f2ec", "#a9d0c6", "#4f9c99", "#0d5a66", "#052f3f"],
  },
  dark: {
    paper: "#14171b",
    ink: "#e7e9ec",
    soft: "#a3adb8",
    rule: "#2c333b",
    band: "#363e47",
    series: ["#62b5f0", "#f2964f", "#3fc79a", "#d99ae0", "#dcc452", "#9fd8f2", "#f58aae", "#b8c2cc"],
    diverging: ["#86bdf7", "#5796d6", "#2c5586", "#262a2f", "#7c4517", "#cd7a33", "#f8ab68"],
    rising: ["#23282d", "#1f5257", "#2d8286", "#6dbfb0", "#cdf2e2"],
  },
};

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
let forced = null;
let printing = false;
/** A size on the screen, and on paper. */
const onPaper = (screen, paper) => (printing ? paper : screen);
const themeName = () => (printing ? "light" : forced || (prefersDark.matches ? "dark" : "light"));
const theme = () => THEMES[themeName()];

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** A colour at 0..1 along `stops`, in 64 steps, so that a drawing holds few different ones. */
const scales = new Map();
function along(stops, at) {
  if (!scales.has(stops)) {
    scales.set(
      stops,
      Array.from({ length: 65 }, (_, step) => {
        const where = (step / 64) * (stops.length - 1);
        const first = Math.min(Math.floor(where), stops.length - 2);
        const [a, b] = [channels(stops[first]), channels(stops[first + 1])];
        return (
          "#" +
          a
            .map((value, i) =>
              Math.round(value + (b[i] - value) * (where - first))
                .toString(16)
                .padStart(2, "0"),
            )
            .join("")
        );
      }),
    );
  }
  return scales.get(stops)[Math.round(64 * Math.min(1, Math.max(0, at)))];
}

/** `colour` over paper, faint. */
function faint(colour, colours) {
  const [a, b] = [channels(colour), channels(colours.paper)];
  return (
    "#" +
    a
      .map((value, i) =>
        Math.round(value * 0.16 + b[i] * 0.84)
          .toString(16)
          .padStart(2, "0"),
      )
      .join("")
  );
}
