// Figure 3: balance by layer.

const balanceFigure = layerFigure({
  name: "balance",
  label: () => `MaxVio by layer, ${visible(domainName(state.domain))}`,
  caption: () => `${has("max_vio_low") ? WHISKERS : ""}${textWords()}.`,
  panels: () => [
    {
      title: "",
      y: "MaxVio",
      unit: "ratio",
      log: logAxis.balance,
      series: [
        ofMetric("max_vio_noise_floor", "band", { words: "chance, all tokens" }),
        ofMetric("max_vio", "thin", { words: "all tokens" }),
        ofMetric("max_vio_batch", "thin", { words: "micro-batch", colour: 1, mark: "square" }),
        ofMetric("max_vio_sequence", "thin", { words: "sequence", colour: 2, mark: "triangle" }),
      ].filter((series) => has(series.key)),
    },
  ],
});

balanceFigure.controls = [
  axisChoice("balance", has("max_vio") ? layers.flatMap((_, l) => ["max_vio", "max_vio_sequence"].map((key) => metric(key, 0, l))) : []),
];
