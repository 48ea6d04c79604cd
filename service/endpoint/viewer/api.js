// Talks to the server that served this page, and to no other. Addresses are relative to this file, so that a prefix in
// front of the endpoint changes nothing.

import { bytesInWords } from "./dom.js";

const ROOT = new URL("../", import.meta.url);
const PREDICT = new URL("v1/predict", ROOT);
const MODELS = new URL("v1/models", ROOT);
const DICOM_MAGIC_AT = 128;
const DEFAULT_WAIT_S = 2;

let apiKey = ""; // in memory only: gone when the page is closed

export const setApiKey = (key) => { apiKey = key; };

const TITLES = {
  400: "The file cannot be read",
  401: "The server asks for an API key",
  403: "The server refuses this key",
  404: "The server does not offer this",
  408: "The upload took too long",
  413: "The file is too large",
  415: "This is not an image that the model reads",
  422: "The file cannot be read",
  429: "Too many wrong keys",
  503: "The server is busy",
  504: "The server took too long",
};
const NEXT_STEPS = {
  413: "Send a single slice, or ask who runs the server to raise its limit.",
  415: "Choose a JPEG, PNG or DICOM file.",
  408: "Try again; check the connection if it happens again.",
  504: "Try again in a while.",
};

/** Why there is no answer: `status` 0 where no server was reached; `title` and `text` in words; `waitSeconds` if told. */
export class Problem extends Error {
  constructor(status, text, waitSeconds = null) {
    super(text);
    this.status = status;
    this.title = TITLES[status] ?? (status === 0 ? "No answer from the server" : `The server failed (${status})`);
    this.text = text;
    this.nextStep = NEXT_STEPS[status] ?? "";
    this.waitSeconds = waitSeconds;
  }

  get isBusy() { return this.status === 503; }

  get wantsKey() { return [401, 403, 429].includes(this.status); }
}

async function call(address, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey) headers.set("Authorization", `Bearer ${apiKey}`);
  let response;
  try {
    response = await fetch(address, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, `It could not be reached, or it cut the connection${sizeOf(options.body)}. Check that it is running, then try again.`);
  }
  if (!response.ok) throw await problemOf(response);
  try {
    return await response.json();
  } catch {
    throw new Problem(response.status, "Its answer is not JSON; something between this page and the server changed it.");
  }
}

// A server that refuses an upload for its size may close the connection before the browser has read why.
const sizeOf = (body) => (body ? `, as it may for a file that is too large (this one has ${bytesInWords(body.size)})` : "");

async function problemOf(response) {
  let said = "";
  try {
    const body = await response.json();
    said = typeof body.error === "string" ? body.error : "";
  } catch { /* not the server's own words: a proxy's page */ }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Problem(response.status, said || "It gave no reason.", Number.isFinite(seconds) ? seconds : DEFAULT_WAIT_S);
}

async function typeOf(file) {
  const start = new Uint8Array(await file.slice(0, DICOM_MAGIC_AT + 4).arrayBuffer());
  const starts = (...bytes) => bytes.every((byte, index) => start[index] === byte);
  if (starts(0xff, 0xd8, 0xff)) return "image/jpeg";
  if (starts(0x89, 0x50, 0x4e, 0x47)) return "image/png";
  const magic = String.fromCharCode(...start.slice(DICOM_MAGIC_AT));
  return magic === "DICM" ? "application/dicom" : "application/octet-stream";
}

/** The server's answer about a frame of a file; null lets the server choose. The body is the bare file: its name never leaves this page. */
export async function predict(file, frame, signal) {
  const address = new URL(PREDICT);
  address.searchParams.set("slice", "true");
  if (frame !== null) address.searchParams.set("frame", String(frame));
  let type;
  try {
    type = await typeOf(file);
  } catch {
    throw new Problem(0, "The file could not be read from this computer. It may have been moved, or it is a folder.");
  }
  return call(address, { method: "POST", body: file, headers: { "Content-Type": type }, signal });
}

/** The models that the server holds, as a list. */
export async function listModels() {
  const said = await call(MODELS);
  return Array.isArray(said) ? said : said.models ?? [];
}
