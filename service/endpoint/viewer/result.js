// The server's answer in words, bars and scales. Every number shown is one that the server sent.

import { byId, fraction, make, number, percent } from "./dom.js";

/** One line for the live region. */
export function summaryOf(name, answer) {
  const sure = `${answer.label}, ${percent(answer.probabilities[answer.label])}${answer.calibrated ? "" : ", not calibrated"}`;
  const cautions = answer.cautions.length ? ` Cautions: ${answer.cautions.map((caution) => caution.text).join(" ")}` : "";
  return answer.abstains ? `${name}: the model abstains.${cautions}` : `${name}: ${sure}.${cautions}`;
}

/** Show an answer; `onLabel(label)` when the reader asks for another class's heatmap. */
export function showAnswer(target, answer, shownLabel, onLabel) {
  target.replaceChildren(
    verdictOf(answer),
    ...cautionsOf(answer),
    probabilitiesOf(answer, shownLabel, onLabel),
    certaintyOf(answer),
  );
}

function verdictOf(answer) {
  const share = percent(answer.probabilities[answer.label]);
  const kind = answer.calibrated ? "calibrated probability" : "score, not calibrated";
  if (!answer.abstains) {
    return make("div", { class: "verdict" },
      make("p", { class: "verdict-label", text: answer.label }),
      make("p", { class: "verdict-share" }, make("strong", { text: share }), ` ${kind}`));
  }
  return make("div", { class: "verdict abstains" },
    make("p", { class: "verdict-label", text: "The model abstains" }),
    make("p", { text: "It should not be asked about this image. Read it without the model." }),
    make("p", { class: "verdict-share", text: `For the record, its first class is ${answer.label} (${share}, ${kind}).` }));
}

const CAUTION_TITLES = {
  phantom_model: "Phantom model",
  not_calibrated: "Not calibrated",
  no_head_found: "No head found",
  out_of_distribution: "Unlike the training images",
  unsure: "Unsure",
};

function cautionsOf(answer) {
  if (!answer.cautions.length) return [];
  const items = answer.cautions.map((caution) => make("li", { class: "caution" },
    make("strong", { text: CAUTION_TITLES[caution.code] ?? caution.code.replaceAll("_", " ") }),
    make("span", { text: caution.text })));
  return [make("section", { "aria-labelledby": "cautions-title" },
    make("h3", { id: "cautions-title", text: items.length === 1 ? "1 caution" : `${items.length} cautions` }),
    make("ul", { class: "cautions" }, ...items))];
}

function probabilitiesOf(answer, shownLabel, onLabel) {
  const rows = Object.entries(answer.probabilities).map(([label, share]) => {
    const bar = make("span", { class: "bar-fill" });
    bar.style.width = `${100 * share}%`;
    const choice = make("input", {
      type: "radio", name: "heat-class", value: label, checked: label === shownLabel, onchange: () => onLabel(label),
    });
    return make("label", { class: label === answer.label ? "class-row first" : "class-row" },
      choice,
      make("span", { class: "class-name", text: label }),
      make("span", { class: "bar", "aria-hidden": "true" }, bar),
      make("span", { class: "class-share", text: percent(share) }));
  });
  return make("fieldset", { class: "classes" },
    make("legend", {}, make("span", { class: "legend-title", text: answer.calibrated ? "Calibrated probabilities" : "Scores, not calibrated" }),
      make("span", { class: "note", text: "choose whose heatmap is shown" })),
    ...rows);
}

function certaintyOf(answer) {
  return make("section", { class: "certainty", "aria-labelledby": "certainty-title" },
    make("h3", { id: "certainty-title", text: "How sure" }),
    make("dl", {},
      ...term("Calibration", answer.calibrated
        ? "Calibrated: on images like those it was checked on, the probabilities match how often it is right."
        : "Not calibrated: read the numbers as scores, not as how often it is right."),
      ...term("Uncertainty", scaleOf({ value: answer.uncertainty, low: 0, high: 1 }),
        `${fraction(answer.uncertainty)} on a scale from 0 (sure) to 1 (no idea)`),
      ...term("Cannot be ruled out", make("span", { class: "chips" },
        ...answer.prediction_set.map((label) => make("span", { class: "chip", text: label }))),
      answer.calibrated ? null : "Without calibration no class can be ruled out."),
      ...term("Likeness to the training images", ...likenessOf(answer))));
}

function likenessOf(answer) {
  const { ood_score: score, ood_threshold: threshold } = answer;
  if (score === null || threshold === null) return ["Unknown: this model has no statistics to tell."];
  const verdict = answer.out_of_distribution ? "beyond the threshold: unlike them" : "within the threshold";
  const high = Math.max(1.5 * threshold, 1.08 * score);
  return [
    scaleOf({ value: score, low: Math.min(0, score, threshold), high, threshold, bad: answer.out_of_distribution }),
    `Distance ${number(score)}, threshold ${number(threshold)}: ${verdict}`,
  ];
}

// A scale for the eye alone; the words beside it say the same.
function scaleOf({ value, low, high, threshold, bad = false }) {
  const at = (position) => `${100 * Math.min(1, Math.max(0, (position - low) / (high - low || 1)))}%`;
  const fill = make("span", { class: "scale-fill" });
  fill.style.width = at(value);
  const scale = make("span", { class: bad ? "scale bad" : "scale", "aria-hidden": "true" }, fill);
  if (threshold !== undefined) {
    const mark = make("span", { class: "scale-mark" });
    mark.style.left = at(threshold);
    scale.append(mark);
  }
  return scale;
}

function term(name, ...said) {
  const parts = said.filter((part) => part !== null);
  return [make("dt", { text: name }), make("dd", {}, ...parts.map((part) => (typeof part === "string" ? make("span", { text: part }) : part)))];
}

/** Show why there is no answer; `actions` are [text, function] pairs. */
export function showProblem(target, problem, actions) {
  target.replaceChildren(make("div", { class: "problem", role: "alert" },
    make("h3", { text: problem.title }),
    make("p", { text: problem.text }),
    problem.nextStep ? make("p", { text: problem.nextStep }) : null,
    make("div", { class: "row" }, ...actions.map(([text, action]) => make("button", { type: "button", text, onclick: action })))));
}

export function showNote(target, text) {
  target.replaceChildren(make("p", { class: "under-way" }, make("span", { class: "spinner", "aria-hidden": "true" }), text));
}

/** The text in the picture's corner: what nobody may overlook, also where the answer is scrolled out of sight. */
export function showBadge(text, isProblem = false) {
  const badge = byId("badge");
  badge.hidden = !text;
  badge.textContent = text;
  badge.classList.toggle("bad", isProblem);
}
