// The files that the reader chose, and what the server said of each. All of it lives in this page's memory and goes with
// it. One request at a time, the file on view first: a reader's screen should not crowd out the ward next door.

import { predict, Problem } from "./api.js";

const MAX_FILES = 500;
const MAX_KEPT = 200; // answers about further frames, with their slices
const MAX_RETRIES = 5;
const MAX_WAIT_S = 30;

let nextId = 1;

const pngOf = (base64) => new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });

/** One frame's answer as the server gave it, its slice apart. */
class Reading {
  constructor({ slice_png: slice, ...answer }) {
    this.answer = answer;
    this.slice = slice ? pngOf(slice) : null;
    this.label = answer.label; // whose heatmap is shown
  }

  /** The answer, once its slice is known to be a picture; pictures are decoded again when they are shown. */
  static async of(answer) {
    const reading = new Reading(answer);
    if (reading.slice) (await createImageBitmap(reading.slice)).close();
    return reading;
  }
}

export class Case {
  constructor(file) {
    this.id = `case-${nextId++}`;
    this.file = file;
    this.frame = null; // until the server has said which one it takes first
    this.numFrames = 1;
    this.readings = new Map(); // by frame, the first that was read first
    this.problem = null;
    this.note = ""; // what is under way, in words
  }

  get name() { return this.file.name || "pasted image"; }

  get reading() { return this.readings.get(this.frame) ?? null; }

  /** What the list tells: of the frame on view, else of the first that was read. */
  get told() { return this.reading ?? this.readings.values().next().value ?? null; }

  get state() {
    if (this.problem) return "problem";
    return this.reading ? "answered" : "waiting";
  }
}

/** The list and its one worker. `onChange(case)` is called whenever something about a case changed. */
export class Cases {
  constructor(onChange) {
    this.items = [];
    this.selected = null;
    this.onChange = onChange;
    this.busy = false;
    this.abort = null;
    this.underWay = null;
  }

  /** Add files and select the first of them; returns how many were left out because the list is full. */
  add(files) {
    const fits = [...files].slice(0, MAX_FILES - this.items.length);
    const added = fits.map((file) => new Case(file));
    this.items.push(...added);
    if (added.length) this.select(added[0]);
    return files.length - fits.length;
  }

  select(item) {
    this.selected = item;
    this.onChange(item);
    this.work();
  }

  step(by) {
    const at = this.items.indexOf(this.selected) + by;
    if (at >= 0 && at < this.items.length) this.select(this.items[at]);
  }

  showFrame(frame) {
    const item = this.selected;
    if (!item || frame < 0 || frame >= item.numFrames || frame === item.frame) return;
    item.frame = frame;
    item.problem = null;
    if (this.underWay === item) this.abort.abort(); // the reader has moved on from that frame
    this.select(item);
  }

  clear() {
    this.abort?.abort();
    this.items = [];
    this.selected = null;
    this.onChange(null);
  }

  retry(wanted = (item) => item === this.selected) {
    for (const item of this.items.filter((candidate) => candidate.problem && wanted(candidate))) {
      item.problem = null;
      this.onChange(item);
    }
    this.work();
  }

  next() {
    const open = (item) => item && item.state === "waiting";
    if (open(this.selected)) return this.selected;
    const from = Math.max(0, this.items.indexOf(this.selected));
    return [...this.items.slice(from), ...this.items.slice(0, from)].find((item) => item.frame === null && open(item));
  }

  async work() {
    if (this.busy) return;
    this.busy = true;
    for (let item = this.next(); item; item = this.next()) await this.read(item);
    this.busy = false;
  }

  async read(item) {
    const frame = item.frame;
    const { signal } = this.abort = new AbortController();
    this.underWay = item;
    try {
      const reading = await Reading.of(await this.ask(item, frame, signal));
      const { frame: seen, num_frames: numFrames } = reading.answer.image;
      item.readings.set(frame ?? seen, reading);
      item.numFrames = numFrames;
      item.frame ??= seen;
      this.forgetOldest();
    } catch (error) {
      if (signal.aborted) return; // whatever came of it, nobody waits for it
      item.problem = error instanceof Problem ? error : new Problem(0, `This page could not show the answer: ${error.message}`);
    } finally {
      item.note = "";
      this.underWay = null;
    }
    this.onChange(item);
  }

  async ask(item, frame, signal) {
    for (let attempt = 1; ; attempt += 1) {
      item.note = "Asking the model…";
      this.onChange(item);
      try {
        return await predict(item.file, frame, signal);
      } catch (error) {
        if (!error.isBusy || attempt > MAX_RETRIES) throw error;
        await this.wait(item, Math.min(MAX_WAIT_S, Math.max(1, error.waitSeconds)), attempt, signal);
      }
    }
  }

  async wait(item, seconds, attempt, signal) {
    item.note = `The server is busy. Trying again in ${Math.ceil(seconds)} s (${attempt} of ${MAX_RETRIES}).`;
    this.onChange(item);
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, seconds * 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    });
  }

  // Slices are large; a long series would fill the memory. What is forgotten is asked for again when it is shown.
  forgetOldest() {
    const later = this.items.flatMap((item) => [...item.readings.keys()].slice(1).filter((frame) => frame !== item.frame)
      .map((frame) => ({ item, frame })));
    for (const { item, frame } of later.slice(0, Math.max(0, later.length - MAX_KEPT))) item.readings.delete(frame);
  }
}
