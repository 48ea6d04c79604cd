// From the server's class map to coloured pixels. Grad-CAM of a class is relu(map) / max over its cells; nothing else is
// computed here, and cells lie where the answer says (`cell_pixels` from the box's corner).

const PIXELS_A_CELL = 24;
const RAMP = 0.06; // width of the soft edge at the threshold, as a share of the strongest cell

/** The map of one class: relative strengths 0..1 row by row, and where the strongest cell is. */
export function strengthsOf(heatmap, label) {
  const [rows, columns] = heatmap.shape;
  const raw = Float64Array.from(heatmap.maps[label].flat());
  let peak = 0;
  raw.forEach((value, index) => { if (value > raw[peak]) peak = index; });
  const max = raw[peak];
  const values = Float64Array.from(raw, (value) => (max > 0 ? Math.max(0, value) / max : 0));
  return { rows, columns, raw, values, max, peak: { row: Math.floor(peak / columns), column: peak % columns } };
}

/** Where the cells lie in the image's pixels. */
export function placeOf(heatmap) {
  const [rows, columns] = heatmap.shape;
  const [width, height] = heatmap.cell_pixels;
  const [left, top] = heatmap.box ?? [0, 0];
  return { left, top, cellWidth: width, cellHeight: height, width: width * columns, height: height * rows };
}

/** The cell over an image pixel, or null outside the map. */
export function cellAt(heatmap, x, y) {
  const place = placeOf(heatmap);
  const column = Math.floor((x - place.left) / place.cellWidth);
  const row = Math.floor((y - place.top) / place.cellHeight);
  const inside = row >= 0 && column >= 0 && row < heatmap.shape[0] && column < heatmap.shape[1];
  return inside ? { row, column } : null;
}

// Bilinear between cell centres; beyond the outermost centres the edge cells go on.
function between({ rows, columns, values }, column, row) {
  const x = Math.min(columns - 1, Math.max(0, column - 0.5));
  const y = Math.min(rows - 1, Math.max(0, row - 0.5));
  const [x0, y0] = [Math.floor(x), Math.floor(y)];
  const [x1, y1] = [Math.min(columns - 1, x0 + 1), Math.min(rows - 1, y0 + 1)];
  const upper = values[y0 * columns + x0] * (1 - x + x0) + values[y0 * columns + x1] * (x - x0);
  const lower = values[y1 * columns + x0] * (1 - x + x0) + values[y1 * columns + x1] * (x - x0);
  return upper * (1 - y + y0) + lower * (y - y0);
}

/** How opaque a strength is drawn, 0..1: nothing where there is no heat or too little. */
export function coverOf(strength, threshold, soft) {
  if (strength <= 0 || strength < threshold) return 0;
  return soft ? Math.min(1, (strength - threshold) / RAMP) : 1;
}

/** A canvas over all cells, transparent where the strength is below the threshold. */
export function paintHeat(strengths, { threshold, smooth, colours }) {
  const size = smooth ? PIXELS_A_CELL : 1;
  const canvas = document.createElement("canvas");
  canvas.width = strengths.columns * size;
  canvas.height = strengths.rows * size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, at = 0; y < canvas.height; y += 1) {
    for (let x = 0; x < canvas.width; x += 1, at += 4) {
      const value = between(strengths, (x + 0.5) / size, (y + 0.5) / size);
      const entry = 3 * Math.round(255 * Math.min(1, value));
      image.data[at] = colours[entry];
      image.data[at + 1] = colours[entry + 1];
      image.data[at + 2] = colours[entry + 2];
      image.data[at + 3] = Math.round(255 * coverOf(value, threshold, smooth));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
