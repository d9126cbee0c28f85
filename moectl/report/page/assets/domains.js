// Figures 4 and 5, table 2: how far the domains part, the expert that each favours, and its specialists with their tokens.

const difference = data.domain_difference && {
  difference: unpack(data.domain_difference.difference),
  chance: unpack(data.domain_difference.chance),
};

/** Chance alone, where another column says so. */
const floorOf = (key) => [`${key}_noise_floor`, `${key}_floor`, `${key}_chance`].find(has);

const differenceFigure = layerFigure({
  name: "difference",
  perDomain: false,
  label: () => "difference of the domains by layer",
  caption() {
    const bits = has("domain_information_bits")
      ? ` Information is what one pick of an expert tells about the domain it was made in, at most log₂ ${named.length} = ${shown(Math.log2(named.length))} bits.`
      : "";
    return `Distance is the part of a domain’s picks that would have to move to spread like all text, mean over the domains.${bits}${has("domain_information_bits_low") ? ` ${WHISKERS}` : ""}`;
  },
  panels: () => [
    ...(has("domain_information_bits")
      ? [
          {
            title: "Information",
            y: "bits",
            unit: "bits",
            series: [
              ...(floorOf("domain_information_bits") ? [ofMetric(floorOf("domain_information_bits"), "band", { words: "chance" })] : []),
              { ...ofMetric("domain_information_bits", "thin"), ...fixedDomain("domain_information_bits") },
            ],
          },
        ]
      : []),
    {
      title: "Distance",
      unit: "share",
      series: [
        { key: "difference_by_chance", words: "chance", look: "band", value: (l) => difference.chance[l] },
        { key: "difference", words: "domain against all text", look: "thin", colour: 1, value: (l) => difference.difference[l] },
      ],
    },
  ],
});

/** Metrics between domains stand in the rows of all text. */
function fixedDomain(key) {
  const fixed = { value: (l) => metric(key, 0, l) };
  return has(`${key}_low`) ? { ...fixed, low: (l) => metric(`${key}_low`, 0, l), high: (l) => metric(`${key}_high`, 0, l) } : fixed;
}

const favouriteOf = (name) =>
  new Map((data.favourites[name] || []).map(([layer, expert, part, gain]) => [layer, { layer, expert, share: part, lift: gain }]));
const favourites = Object.fromEntries(Object.keys(data.favourites).map((name) => [name, favouriteOf(name)]));
const favouritesFigure = layerFigure({
  name: "favourites",
  perDomain: false,
  label: () => "lift of the expert each domain favours, by layer",
  caption: () => (L <= 12 ? "Where there is room, a small number says which expert." : ""),
  panels: () => [
    {
      title: "",
      y: "lift",
      unit: "ratio",
      from: 1,
      series: Object.entries(favourites).map(([name, found], at) => ({
        key: name,
        words: isolated(name),
        look: "dots",
        colour: at,
        mark: MARK_NAMES[at % MARK_NAMES.length],
        value: (l) => (found.has(layers[l]) ? found.get(layers[l]).lift : NaN),
        tag: L <= 12 ? (l) => String(found.get(layers[l]).expert) : null,
      })),
    },
  ],
});
// Which expert it is, is the point.
favouritesFigure.parts.tip = ([, l]) =>
  facts(
    `Layer ${layers[l]}`,
    Object.entries(favourites).map(([name, found]) => [make("bdi", {}, visible(name)), favouriteWords(found.get(layers[l]))]),
  );
favouritesFigure.parts.say = ([, l]) =>
  `Layer ${layers[l]}: ${Object.entries(favourites)
    .map(([name, found]) => `${visible(name)} ${favouriteWords(found.get(layers[l]))}`)
    .join(", ")}`;
const favouriteWords = (one) => (one ? `expert ${one.expert}: ${shown(one.share, "share")}, ${times(one.lift)}` : "none beyond chance");
favouritesFigure.csv = () => [
  ["domain", "layer", "expert", "share", "lift"],
  ...Object.entries(favourites).flatMap(([name, found]) =>
    [...found.values()].map((one) => [name, one.layer, one.expert, one.share, one.lift]),
  ),
];

const SPECIALIST_KEYS = ["layer", "expert", "share", "lift", "share_low", "share_high", "share_of_all_text", "tokens"];
const specialists = Object.entries(data.specialists).flatMap(([name, rows]) =>
  rows.map((row, at) => ({ name, at, ...Object.fromEntries(row.map((value, i) => [SPECIALIST_KEYS[i], value])) })),
);

/** The specialists, domain by domain. */
const specialistsFigure = {
  name: "specialists",
  label: () => "the specialists of each domain",
  content() {
    if (!specialists.length) return make("p", { class: "note" }, "No domain picks an expert beyond chance.");
    const bounded = specialists.some((one) => one.share_low !== null),
      spelled = specialists.some((one) => one.tokens.length);
    const interval = (one) => (one.share_low === null ? "–" : `${shown(one.share_low, "share")} – ${shown(one.share_high, "share")}`);
    const rows = specialists.map((one) => [
      one.at ? "" : make("bdi", {}, visible(one.name)),
      String(one.layer),
      String(one.expert),
      ...(spelled ? [make("span", {}, ...tokenSpans(one.tokens))] : []),
      shown(one.share, "share"),
      ...(bounded ? [interval(one)] : []),
      shown(one.share_of_all_text, "share"),
      times(one.lift),
    ]);
    const head = ["domain", "layer", "expert", ...(spelled ? ["its tokens of the domain"] : []), "share of the domain"];
    return makeTable([...head, ...(bounded ? ["95\u00a0% interval"] : []), "share of all text", "lift"], rows, "small");
  },
  csv: () => [
    ["domain", ...SPECIALIST_KEYS],
    ...specialists.map((one) => [one.name, ...SPECIALIST_KEYS.map((key) => (key === "tokens" ? one.tokens.join(" | ") : one[key]))]),
  ],
};
