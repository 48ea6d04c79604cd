// Colour maps for strengths from 0 to 1, even to the eye: each is a smooth path through OKLab (Ottosson 2020) on which
// lightness only rises, walked at constant speed. Rising lightness keeps the order readable without colour vision.

const SIZE = 256;

// Stations as lightness 0..1, chroma, hue in degrees. They start above black, so that anatomy under weak heat stays visible.
const PATHS = {
  ember: { title: "Ember", stations: [[0.34, 0.14, 295], [0.48, 0.19, 338], [0.64, 0.19, 25], [0.8, 0.155, 68], [0.96, 0.09, 103]] },
  lagoon: { title: "Lagoon", stations: [[0.36, 0.14, 285], [0.5, 0.1, 245], [0.65, 0.095, 190], [0.8, 0.15, 148], [0.96, 0.16, 110]] },
};

function labOf([lightness, chroma, hue]) {
  const angle = (hue * Math.PI) / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

function rgbOf([L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((value) => {
    const clipped = Math.min(1, Math.max(0, value));
    return Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
  });
}

function curve(points, at) {
  const span = Math.min(points.length - 2, Math.floor(at));
  const t = at - span;
  const [p0, p1, p2, p3] = [-1, 0, 1, 2].map((step) => points[Math.min(points.length - 1, Math.max(0, span + step))]);
  return p1.map((_, axis) => {
    const [a, b, c, d] = [p0[axis], p1[axis], p2[axis], p3[axis]];
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  });
}

function table(stations) {
  const points = stations.map(labOf);
  const fine = Array.from({ length: 4001 }, (_, index) => curve(points, (index / 4000) * (points.length - 1)));
  const walked = [0];
  for (let index = 1; index < fine.length; index += 1) {
    walked.push(walked[index - 1] + Math.hypot(...fine[index].map((value, axis) => value - fine[index - 1][axis])));
  }
  const colours = new Uint8ClampedArray(SIZE * 3);
  let index = 0;
  for (let entry = 0; entry < SIZE; entry += 1) {
    const goal = (entry / (SIZE - 1)) * walked[walked.length - 1];
    while (index < fine.length - 1 && walked[index] < goal) index += 1;
    colours.set(rgbOf(fine[index]), entry * 3);
  }
  return colours;
}

export const COLOUR_MAPS = Object.fromEntries(
  Object.entries(PATHS).map(([name, path]) => [name, { title: path.title, colours: table(path.stations) }]),
);
