// Nothing on the page needs this. It makes the charts' words appear at once, and reachable with the arrow keys.
"use strict";
const tip = document.getElementById("tip");

function show(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (y - box.height - 12 < 8 ? y + 18 : y - box.height - 12) + "px";
  const cursor = target.closest("svg").querySelector(".cursor");
  if (cursor) {
    cursor.setAttribute("transform", `translate(${target.dataset.x} 0)`);
    cursor.setAttribute("visibility", "visible");
  }
}

function hide(svg) {
  tip.hidden = true;
  const cursor = svg.querySelector(".cursor");
  if (cursor) cursor.setAttribute("visibility", "hidden");
}

for (const svg of document.querySelectorAll("svg")) {
  const targets = [...svg.querySelectorAll("[data-tip]")];
  if (!targets.length) continue;
  for (const title of svg.querySelectorAll("[data-tip] > title")) title.remove();
  svg.addEventListener("pointermove", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target) show(target, event.clientX, event.clientY);
    else hide(svg);
  });
  svg.addEventListener("pointerleave", () => hide(svg));
  svg.addEventListener("blur", () => hide(svg));
  let at = -1;
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide(svg);
    if (!step) return;
    event.preventDefault();
    at = Math.max(0, Math.min(targets.length - 1, at + step));
    const box = targets[at].getBoundingClientRect();
    show(targets[at], box.left + box.width / 2, box.top + 30);
  });
}
