// Who answered: the model's identity, what it was trained on, and its figures.

import { byId, make, number, percent } from "./dom.js";

const DATA_KINDS = { phantom: "phantoms drawn by a program", mri: "MRI slices" };
const SHORT = 12;

/** Show the identity that came with an answer or a list of models; `models` may hold its figures. */
export function showModel(model, models) {
  const listed = models.find((entry) => entry.digest === model.digest) ?? {};
  byId("model-name").textContent = `${model.name} ${model.version}`;
  byId("phantom").hidden = model.data_kind !== "phantom";
  byId("model").replaceChildren(
    make("dl", { class: "identity" },
      ...entry("Name", model.name),
      ...entry("Version", model.version),
      ...entry("Digest", digestOf(model.digest)),
      ...entry("Signed by", model.signer ?? make("span", { class: "warn", text: "nobody: not signed" })),
      ...entry("Precision", model.precision),
      ...entry("Trained on", DATA_KINDS[model.data_kind] ?? model.data_kind),
      ...entry("Classes", model.labels.join(", "))),
    figuresOf(listed.metrics),
    ...useOf(listed));
}

// What the model was made for and where it ends, in the bundle's own words.
function useOf({ intended_use: use, limits }) {
  if (!use && !limits?.length) return [];
  return [make("details", {},
    make("summary", { text: "Intended use and limits" }),
    use ? make("p", { text: use }) : null,
    make("ul", { class: "limits" }, ...(limits ?? []).map((text) => make("li", { text }))))];
}

const entry = (name, said) => [make("dt", { text: name }), make("dd", {}, said)];

function digestOf(digest) {
  const button = make("button", { type: "button", class: "small", text: "Copy", "aria-label": "Copy the whole digest" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(digest);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed: hover for the text";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return make("span", { class: "digest" }, make("code", { title: digest, text: digest.slice(0, SHORT) }), button);
}

const VIEWS = { as_published: "as published", deduplicated: "without near-copies" };

// The test figures of the bundle, as `metrics.json` has them: one group for each view of the test data.
function figuresOf(metrics) {
  const views = Object.entries(metrics?.test ?? {}).filter(([, figures]) => figures && typeof figures.accuracy === "number");
  if (!views.length) return make("p", { class: "note", text: "This server gives no figures of the model." });
  const row = (title, tell) => make("tr", {}, make("th", { scope: "row", text: title }), ...views.map(([, figures]) => make("td", { text: tell(figures) })));
  const interval = ({ accuracy_interval: ends }) => (ends ? `${(100 * ends[0]).toFixed(1)}–${percent(ends[1])}` : "–");
  return make("table", {},
    make("caption", { text: "On its test images" }),
    make("thead", {}, make("tr", {}, make("td"), ...views.map(([name]) => make("th", { scope: "col", text: VIEWS[name] ?? name.replaceAll("_", " ") })))),
    make("tbody", {},
      row("Images", (figures) => number(figures.num_examples ?? 0, 9)),
      row("Accuracy", (figures) => percent(figures.accuracy)),
      row("95\u00a0% interval", interval),
      row("Macro F1", (figures) => (typeof figures.macro_f1 === "number" ? figures.macro_f1.toFixed(3) : "–")),
      row("Calibration error", (figures) => (typeof figures.calibration_error === "number" ? figures.calibration_error.toFixed(3) : "–"))));
}
