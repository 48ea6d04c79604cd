// What can be taken away: the picture as it is seen, with its caption burned in, and the answer as the server gave it.

import { fraction, percent, save } from "./dom.js";

const MIN_SIDE = 1024;
const MAX_SCALE = 8;

const stemOf = (name) => name.replace(/\.[^.]*$/, "") || "slice";
const framePart = (item) => (item.numFrames > 1 ? `_frame${item.frame + 1}` : "");

/** Save the answer's JSON, all but the slice that came with it. */
export function saveAnswer(item) {
  const text = JSON.stringify(item.reading.answer, null, 2);
  save(new Blob([text], { type: "application/json" }), `${stemOf(item.name)}${framePart(item)}_gliofed.json`);
}

/** Save the whole slice with what is drawn over it now, and who says so. */
export async function savePicture(item, scene, look) {
  const { label } = item.reading;
  const scale = Math.min(MAX_SCALE, Math.max(1, Math.ceil(MIN_SIDE / Math.max(scene.width, scene.height))));
  const lines = captionOf(item.reading.answer, label, look);
  const [width, height] = [Math.max(640, Math.round(scene.width * scale)), Math.round(scene.height * scale)];
  const size = Math.round(width / 44);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height + Math.round(size * (1.5 * lines.length + 1));
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  scene.draw(context, { x: (width - scene.width * scale) / 2, y: 0, scale, lineWidth: 2 }, label, look);
  lines.forEach(({ text, colour }, index) => {
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = colour;
    context.fillText(text, size, height + size * (1.5 * index + 1.6), width - 2 * size);
  });
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  save(blob, `${stemOf(item.name)}${framePart(item)}_gliofed_${label}.png`);
}

function captionOf(answer, label, look) {
  const { model } = answer;
  const share = `${answer.label} ${percent(answer.probabilities[answer.label])}${answer.calibrated ? "" : " (score, not calibrated)"}`;
  const heat = look.heat ? `Heatmap of ${label}, opacity ${percent(look.opacity)}, from ${percent(look.threshold)} of its strongest cell` : "Heatmap off";
  const loud = [];
  if (model.data_kind === "phantom") loud.push("PHANTOM MODEL: trained on drawings, says nothing about patients");
  if (answer.abstains) loud.push("THE MODEL ABSTAINS");
  return [
    ...loud.map((text) => ({ text, colour: "#ffd23f" })),
    { text: answer.abstains ? `For the record: ${share}` : share, colour: "#fff" },
    { text: `${heat}; uncertainty ${fraction(answer.uncertainty)}`, colour: "#ccd3da" },
    { text: `${model.name} ${model.version}, ${model.precision}, digest ${model.digest.slice(0, 16)}`, colour: "#ccd3da" },
    { text: "Research use only. Not a medical device.", colour: "#ffb0a8" },
  ];
}
