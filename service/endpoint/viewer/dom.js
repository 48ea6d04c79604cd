// The few things this page asks of the DOM. Text is always set as text: nothing a server or a file says becomes markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (undefined and false are left out; `text` is its text) and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false || value === null) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A share as text. Rounding never makes certainty of what is not certain. */
export function percent(share) {
  if (share < 1 && share >= 0.9995) return "> 99.9\u00a0%";
  if (share > 0 && share < 0.0005) return "< 0.1\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

export const number = (value, digits = 3) => Number(value).toLocaleString("en-GB", { maximumSignificantDigits: digits, useGrouping: false });

/** A number from 0 to 1 that is no percentage; tiny is not told as a row of noughts. */
export const fraction = (value) => (value > 0 && value < 0.001 ? "below 0.001" : number(value));

export function bytesInWords(size) {
  if (size < 1024) return `${size} bytes`;
  return size < 1024 ** 2 ? `${(size / 1024).toFixed(0)} KiB` : `${(size / 1024 ** 2).toFixed(1)} MiB`;
}

/** Hand a blob to the browser's downloads. */
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = make("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
