// Everything is known: put the figures on the page and listen.

const textChoice = document.getElementById("text");
textChoice.append(...domains.map((d) => make("option", { value: d }, visible(domainName(d)))));
function chooseDomain(d) {
  state.domain = d;
  textChoice.value = String(d);
  // All text has no lift over itself.
  if (d === 0 && state.quantity === "lift") {
    state.quantity = "load";
    document.querySelector('input[name="quantity"][value="load"]').checked = true;
  }
  say(`Text: ${visible(domainName(d))}`);
  refreshAll();
}
textChoice.addEventListener("change", () => chooseDomain(Number(textChoice.value)));

for (const node of document.querySelectorAll('[data-part="n-domains"]')) node.textContent = String(named.length);
if (document.querySelector('[data-figure="headline"]')) putTable(headlineFigure);
put(mapFigure);
put(curvesFigure);
put(balanceFigure);
if (difference) {
  put(differenceFigure);
  put(favouritesFigure);
  putTable(specialistsFigure);
} else {
  document
    .querySelector('[data-part="domains"]')
    .replaceChildren(make("p", {}, "The text is of one domain, so there is nothing to compare."));
}
put(pairsFigure);
if (OVERLAPS.some(([key]) => has(key))) put(neighboursFigure);
else document.querySelector('[data-figure="neighbours"]').replaceChildren(make("p", {}, "No token has a neighbour in its sequence."));
if (lagColumns.length && has("next_token_overlap")) put(lagsFigure);
else document.querySelector('[data-figure="lags"]').remove();
frames.layers = new TableFrame();
if (data.left_out.length) {
  const note = document.querySelector('[data-part="left-out"]');
  note.textContent = `Left out to keep this page below 6 MB: ${data.left_out.join("; ")}. They are in the files beside it.`;
  note.hidden = false;
}
refreshAll();

const themeButton = document.getElementById("theme");
function showTheme() {
  const dark = themeName() === "dark";
  if (forced) document.documentElement.dataset.theme = forced;
  themeButton.textContent = dark ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
}
themeButton.removeAttribute("aria-pressed");
themeButton.addEventListener("click", () => {
  forced = themeName() === "dark" ? "light" : "dark";
  showTheme();
  refreshAll();
});
prefersDark.addEventListener("change", () => {
  showTheme();
  refreshAll();
});
showTheme();

let width = document.body.clientWidth;
new ResizeObserver(() => {
  if (printing || document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  refreshAll();
}).observe(document.body);

// Paper is light, as wide as A4, and cannot be opened further.
const folded = new Set();
window.addEventListener("beforeprint", () => {
  printing = true;
  for (const details of document.querySelectorAll("details.definitions:not([open])")) {
    folded.add(details);
    details.open = true;
  }
  refreshAll();
});
window.addEventListener("afterprint", () => {
  printing = false;
  for (const details of folded) details.open = false;
  folded.clear();
  refreshAll();
});
window.addEventListener(
  "scroll",
  () => {
    if (pointed) placeTip();
  },
  { passive: true, capture: true },
);
