// The files on the left, each with what came of it.

import { byId, bytesInWords, make, percent } from "./dom.js";

/** Show the cases; the selected one is scrolled into sight. */
export function showList(cases) {
  const list = byId("list");
  list.hidden = byId("clear").hidden = cases.items.length === 0;
  byId("count").textContent = cases.items.length ? `${cases.items.length}` : "";
  list.replaceChildren(...cases.items.map((item) => make("li", {
    role: "option", id: item.id, "aria-selected": String(item === cases.selected), title: `${item.name}, ${bytesInWords(item.file.size)}`,
    class: item.state, onclick: () => cases.select(item),
  }, make("span", { class: "file-name", text: item.name }), make("span", { class: "file-state", text: stateOf(item) }))));
  list.setAttribute("aria-activedescendant", cases.selected?.id ?? "");
  byId(cases.selected?.id)?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function stateOf(item) {
  if (item.problem) return "no answer";
  const answer = item.told?.answer;
  if (!answer) return item.note ? "asking…" : "waiting";
  return answer.abstains ? "abstains" : `${answer.label} ${percent(answer.probabilities[answer.label])}`;
}
