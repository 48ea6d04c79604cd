// Shortcuts: one table, which both the keyboard and the help dialog read.

import { byId, make } from "./dom.js";

/** Listen for keys. actions: name -> function; one that returns false leaves the key to the browser. Single keys can be switched off in the help (WCAG 2.1.4). */
export function listen(actions) {
  const table = [
    ["o", "O", "Open files", actions.open],
    ["arrowup", "↑", "Previous file", () => actions.step(-1)],
    ["arrowdown", "↓", "Next file", () => actions.step(1)],
    ["arrowleft", "←", "Previous frame", () => actions.frame(-1)],
    ["arrowright", "→", "Next frame", () => actions.frame(1)],
    ["h", "H", "Heatmap on or off", actions.heat],
    ["c", "C", "Heatmap of the next class", actions.nextClass],
    ["[", "[", "Heatmap fainter", () => actions.opacity(-1)],
    ["]", "]", "Heatmap stronger", () => actions.opacity(1)],
    [",", ",", "Lower the threshold", () => actions.threshold(-1)],
    [".", ".", "Raise the threshold", () => actions.threshold(1)],
    ["s", "S", "Smooth or cells", actions.smooth],
    ["m", "M", "Other colour map", actions.map],
    ["b", "B", "Crop box on or off", actions.box],
    ["+", "+", "Zoom in", () => actions.zoom(1)],
    ["=", null, "Zoom in", () => actions.zoom(1)],
    ["-", "−", "Zoom out", () => actions.zoom(-1)],
    ["0", "0", "Whole image", actions.fit],
    ["shift+arrowup", "Shift + arrows", "Move the zoomed image", () => actions.pan(0, -1)],
    ["shift+arrowdown", null, "", () => actions.pan(0, 1)],
    ["shift+arrowleft", null, "", () => actions.pan(-1, 0)],
    ["shift+arrowright", null, "", () => actions.pan(1, 0)],
    ["p", "P", "Save the picture", actions.savePicture],
    ["j", "J", "Save the answer as JSON", actions.saveAnswer],
    ["?", "?", "This list", actions.help],
  ];
  const byKey = new Map(table.map(([key, , , action]) => [key, action]));
  byId("shortcuts").replaceChildren(...table.filter(([, shown]) => shown).map(([, shown, meaning]) => make("tr", {},
    make("th", { scope: "row" }, make("kbd", { text: shown })), make("td", { text: meaning }))));
  window.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const name = event.key.toLowerCase();
    if (isTakenBy(event.target, name)) return;
    const key = event.shiftKey && name.startsWith("arrow") ? `shift+${name}` : name;
    if (!byKey.has(key) || (name.length === 1 && !byId("single-keys").checked)) return;
    if (byKey.get(key)() !== false) event.preventDefault();
  });
}

// Keys that the focused control needs for itself.
function isTakenBy(target, key) {
  if (target.matches("select, input[type=password], input[type=text], textarea")) return true;
  return key.startsWith("arrow") && target.matches("input[type=range], input[type=radio]");
}
