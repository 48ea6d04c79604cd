// What is drawn, on the screen and in the exported picture alike: slice, heat, crop box.

import { COLOUR_MAPS } from "./colormap.js";
import { paintHeat, placeOf, strengthsOf } from "./heatmap.js";

/** One answer ready to be drawn. Positions are the image's pixels. */
export class Scene {
  constructor(answer, slice, label) {
    this.answer = answer;
    this.label = label; // whose heat is shown
    this.slice = slice; // ImageBitmap or null
    [this.width, this.height] = answer.image_size;
    this.strengths = new Map();
    this.heat = { key: "", canvas: null };
  }

  strengthsOf(label) {
    if (!this.strengths.has(label)) this.strengths.set(label, strengthsOf(this.answer.heatmap, label));
    return this.strengths.get(label);
  }

  /** The painted heat of a class, painted again only when something about it changed. */
  heatOf(label, { threshold, smooth, map }) {
    const key = [label, threshold, smooth, map].join("|");
    if (this.heat.key !== key) {
      const canvas = paintHeat(this.strengthsOf(label), { threshold, smooth, colours: COLOUR_MAPS[map].colours });
      this.heat = { key, canvas };
    }
    return this.heat.canvas;
  }

  /** Draw with the image's corner at (x, y) and `scale` canvas pixels an image pixel. */
  draw(context, { x, y, scale, lineWidth }, label, look) {
    context.save();
    context.translate(x, y);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    if (this.slice) context.drawImage(this.slice, 0, 0, this.width * scale, this.height * scale);
    if (look.heat) this.drawHeat(context, scale, label, look);
    if (look.box && this.answer.box) drawBox(context, this.answer.box.map((edge) => edge * scale), lineWidth);
    context.restore();
  }

  drawHeat(context, scale, label, look) {
    const place = placeOf(this.answer.heatmap);
    const [left, top, right, bottom] = this.answer.heatmap.box ?? [0, 0, this.width, this.height];
    context.save();
    context.beginPath();
    context.rect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
    context.clip();
    context.globalAlpha = look.opacity;
    context.imageSmoothingEnabled = look.smooth;
    context.drawImage(this.heatOf(label, look), place.left * scale, place.top * scale, place.width * scale, place.height * scale);
    context.restore();
  }
}

function drawBox(context, [left, top, right, bottom], lineWidth) {
  for (const [colour, width, dash] of [["#000c", 3 * lineWidth, []], ["#7fd4ff", lineWidth, [6 * lineWidth, 4 * lineWidth]]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.strokeRect(left, top, right - left, bottom - top);
  }
}
