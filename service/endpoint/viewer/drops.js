// Files dropped anywhere on the page, or pasted into it.

import { byId } from "./dom.js";

/** Hand dropped and pasted files to `open`. */
export function acceptDrops(open) {
  let depth = 0; // dragenter and dragleave come for every element that is crossed
  const over = (by) => { depth = Math.max(0, depth + by); byId("drop").hidden = depth === 0; };
  window.addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  window.addEventListener("dragleave", () => over(-1));
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => { event.preventDefault(); over(-depth); open([...event.dataTransfer.files]); });
  window.addEventListener("paste", (event) => open([...(event.clipboardData?.files ?? [])]));
}
