// Ties the parts together: what is chosen, asked, drawn and told.

import { listModels, setApiKey } from "./api.js";
import { Cases } from "./cases.js";
import { COLOUR_MAPS } from "./colormap.js";
import { byId, make, number } from "./dom.js";
import { acceptDrops } from "./drops.js";
import { saveAnswer, savePicture } from "./exporter.js";
import { cellAt } from "./heatmap.js";
import { listen } from "./keys.js";
import { showList } from "./list.js";
import { showModel } from "./model.js";
import { showAnswer, showBadge, showNote, showProblem, summaryOf } from "./result.js";
import { Scene } from "./scene.js";
import { Stage } from "./stage.js";

const FRAME_PAUSE_MS = 120;
const RETRY = ["Try again", () => cases.retry()];

const cases = new Cases(onChange);
const stage = new Stage(byId("canvas"), showReadout);
let models = [];
let scene = null; // of the reading on view
let shown = { reading: null, item: null };
let wanted = null; // the reading that is about to be shown
let frameTimer = 0;

// ---- what is drawn ----

const look = () => ({
  heat: byId("heat").checked,
  smooth: byId("smooth").checked,
  box: byId("box").checked,
  map: byId("map").value,
  opacity: Number(byId("opacity").value),
  threshold: Number(byId("threshold").value),
});

function redraw(keepView = true) {
  const label = scene?.label ?? "";
  stage.show(scene, label, look(), keepView);
  for (const name of ["opacity", "threshold"]) byId(`${name}-text`).textContent = `${Math.round(100 * byId(name).value)} %`;
  drawLegend(label);
  byId("canvas").setAttribute("aria-label", describe(label));
}

function describe(label) {
  if (!scene) return "No slice yet";
  const { max, peak, rows, columns } = scene.strengthsOf(label);
  if (!look().heat) return "Slice without heatmap";
  if (max <= 0) return `Slice; nothing in it raises the score of ${label}`;
  return `Slice with the heatmap of ${label}: strongest in row ${peak.row + 1} of ${rows}, column ${peak.column + 1} of ${columns}, counted from the top left`;
}

function drawLegend(label) {
  const { threshold, map } = look();
  const context = byId("legend-bar").getContext("2d");
  const { colours } = COLOUR_MAPS[map];
  for (let x = 0; x < 256; x += 1) {
    context.fillStyle = x / 255 < threshold ? "#343d46" : `rgb(${colours[3 * x]} ${colours[3 * x + 1]} ${colours[3 * x + 2]})`;
    context.fillRect(x, 0, 1, 12);
  }
  const max = scene?.strengthsOf(label).max;
  byId("legend-text").textContent = !scene ? "Share of the class's strongest cell"
    : max > 0 ? `Share of the strongest cell of ${label} (map value ${number(max)}). Shows what raised the score, not where a lesion is.` : `Nothing raises the score of ${label}: no heat to show`;
}

function showReadout(point) {
  const heatmap = scene?.answer.heatmap;
  const cell = point && heatmap && cellAt(heatmap, point.x, point.y);
  const inside = point && scene && point.x >= 0 && point.y >= 0 && point.x < scene.width && point.y < scene.height;
  const value = cell ? scene.strengthsOf(scene.label).raw[cell.row * heatmap.shape[1] + cell.column] : null;
  byId("readout").textContent = !inside ? ""
    : `x ${Math.floor(point.x)}, y ${Math.floor(point.y)}${cell ? ` · row ${cell.row + 1}, column ${cell.column + 1} · map value ${number(value)}` : ""}`;
}

// ---- what is told ----

function onChange(item) {
  showList(cases);
  if (item === cases.selected) showSelected();
}

async function showSelected() {
  const item = cases.selected;
  byId("empty").hidden = item !== null;
  byId("zoom").hidden = !item?.reading;
  byId("canvas").classList.toggle("stale", Boolean(item && !item.reading));
  showFrames(item);
  if (item?.reading) await showReading(item);
  else showNoReading(item);
  for (const name of ["save-picture", "save-answer"]) byId(name).disabled = !item?.reading;
}

function showFrames(item) {
  byId("frames").hidden = !item || item.numFrames < 2;
  byId("frame").max = String(item?.numFrames ?? 1);
  byId("frame").value = String((item?.frame ?? 0) + 1);
  byId("frame-text").textContent = `${(item?.frame ?? 0) + 1} of ${item?.numFrames ?? 1}`;
}

function showNoReading(item) {
  const sameFile = item && item === shown.item;
  if (!sameFile || item.problem) scene = null; // another frame's slice stays up until its own comes
  shown = { reading: null, item };
  wanted = null;
  if (!scene) redraw(false);
  showBadge(item?.problem?.title ?? "", true);
  const target = byId("answer");
  if (!item) target.replaceChildren(make("p", { class: "note", text: "No file yet." }));
  else if (!item.problem) tell(target, item.note || "Waiting for its turn…");
  else showProblem(target, item.problem, item.problem.wantsKey ? [["Enter a key", () => askForKey(item.problem.text)], RETRY] : [RETRY]);
  if (item?.problem?.status === 401) askForKey(item.problem.text);
}

function tell(target, note) {
  showNote(target, note);
  byId("live").textContent = note;
}

async function showReading(item) {
  const { reading } = item;
  wanted = reading;
  if (reading === shown.reading) return;
  const slice = reading.slice ? await createImageBitmap(reading.slice) : null;
  if (reading !== wanted) return; // the reader has moved on
  const sameFile = item === shown.item;
  shown = { reading, item };
  scene = new Scene(reading.answer, slice, reading.label);
  redraw(sameFile);
  showBadge(reading.answer.abstains ? "The model abstains" : "");
  const hadFocus = byId("answer").contains(document.activeElement);
  showAnswer(byId("answer"), reading.answer, reading.label, showClass);
  if (hadFocus) byId("result").focus();
  showModel(reading.answer.model, models);
  if (!models.some((model) => model.digest === reading.answer.model.digest)) learnModels(); // another was loaded since
  const frame = item.numFrames > 1 ? ` frame ${item.frame + 1}` : "";
  byId("live").textContent = summaryOf(`${item.name}${frame}`, reading.answer);
}

function showClass(label) {
  shown.reading.label = scene.label = label;
  const choice = document.querySelector(`input[name=heat-class][value="${CSS.escape(label)}"]`);
  if (choice) choice.checked = true;
  redraw();
}

// ---- what the reader does ----

function open(files) {
  if (!files.length) return;
  const left = cases.add(files);
  byId("canvas").focus({ preventScroll: true });
  if (left > 0) byId("live").textContent = `The list is full: ${left} files were left out. Clear it first.`;
}

function askForKey(why) {
  if (byId("key").open) return;
  byId("key-why").textContent = `The server says: ${why}`;
  byId("key-text").value = "";
  byId("key").showModal();
}

async function learnModels() {
  try {
    models = await listModels();
  } catch (problem) {
    if (problem.status === 401) askForKey(problem.text);
    if (!shown.reading) byId("model").replaceChildren(make("p", { class: "note", text: `${problem.title}: ${problem.text}` }));
    return;
  }
  const model = shown.reading?.answer.model ?? models[0];
  if (model) showModel(model, models);
  else byId("model").replaceChildren(make("p", { class: "note", text: "The server has no model ready yet." }));
}

function slide(name, direction) {
  const slider = byId(name);
  slider.value = String(Number(slider.value) + direction * Number(slider.step));
  redraw();
}

function toggle(name) {
  byId(name).checked = !byId(name).checked;
  redraw();
}

function nextClass() {
  if (!shown.reading) return;
  const labels = Object.keys(shown.reading.answer.probabilities);
  showClass(labels[(labels.indexOf(shown.reading.label) + 1) % labels.length]);
  byId("live").textContent = describe(shown.reading.label);
}

function nextMap() {
  const names = Object.keys(COLOUR_MAPS);
  byId("map").value = names[(names.indexOf(byId("map").value) + 1) % names.length];
  redraw();
}

const actions = {
  open: () => byId("chooser").click(),
  step: (by) => cases.items.length > 1 && cases.step(by),
  frame: (by) => cases.selected?.numFrames > 1 && cases.showFrame(cases.selected.frame + by),
  heat: () => toggle("heat"),
  smooth: () => toggle("smooth"),
  box: () => toggle("box"),
  opacity: (by) => slide("opacity", by),
  threshold: (by) => slide("threshold", by),
  nextClass,
  map: nextMap,
  zoom: (by) => stage.zoomStep(by),
  fit: () => stage.fit(),
  pan: (right, down) => stage.panStep(right, down),
  savePicture: () => shown.reading && savePicture(shown.item, scene, look()),
  saveAnswer: () => shown.reading && saveAnswer(shown.item),
  help: () => byId("help").showModal(),
};

function wire() {
  byId("map").append(...Object.entries(COLOUR_MAPS).map(([name, map]) => make("option", { value: name, text: map.title })));
  const click = {
    open: actions.open, "open-here": actions.open, clear: () => cases.clear(), "open-help": actions.help,
    "zoom-in": () => actions.zoom(1), "zoom-out": () => actions.zoom(-1), "zoom-fit": actions.fit,
    "save-picture": actions.savePicture, "save-answer": actions.saveAnswer,
  };
  for (const [id, action] of Object.entries(click)) byId(id).addEventListener("click", action);
  for (const id of ["heat", "smooth", "box", "map", "opacity", "threshold"]) byId(id).addEventListener("input", () => redraw());
  byId("chooser").addEventListener("change", (event) => { open([...event.target.files]); event.target.value = ""; });
  byId("frame").addEventListener("input", (event) => {
    clearTimeout(frameTimer);
    byId("frame-text").textContent = `${event.target.value} of ${event.target.max}`;
    frameTimer = setTimeout(() => cases.showFrame(Number(event.target.value) - 1), FRAME_PAUSE_MS);
  });
  byId("key").addEventListener("close", () => {
    if (byId("key").returnValue !== "use") return;
    setApiKey(byId("key-text").value.trim());
    byId("key-text").value = "";
    learnModels();
    cases.retry((item) => item.problem.wantsKey);
  });
  listen(actions);
  acceptDrops(open);
}

wire();
redraw(false);
learnModels();
