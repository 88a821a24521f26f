// Contract: errors and warnings stand beside the field that they are about, in the page's words;
// what is about no field stands beside the button. A field is an element with `data-field` (names
// that the server may blame, blank between) and holds a `.wrong` slot, which its control names in
// `aria-describedby`. Its entries are elements with `data-entry`, their number, whose first child is
// their name. Not here: what went wrong (`ask`), its words (`plainly`).

import { plainly, told } from "./plainly.js";

const areas = () => [...document.querySelectorAll("[data-field]")];
const names = (area) => area.dataset.field.split(" ");
const having = (name) => areas().find((area) => names(area).includes(name));

/** The field that a message or, if it names none, the server blames. */
function areaOf(message, param) {
  const first = (text) => (text || "").split(/[.[:]/)[0];
  const head = /^[\w.]+/.exec(message)?.[0];
  return having(head) || having(first(head)) || having(first(param)) || null;
}

const entryOf = (area, at) => area?.querySelector(`[data-entry="${at}"]`);

/** The name that the page shows of an entry of a list. */
const named = (field, at) => entryOf(having(field), at)?.firstElementChild.textContent.trim() || "";

/** A Problem in the page's words. */
export const worded = (problem) => told(problem, named);

export function clear() {
  for (const slot of document.querySelectorAll("[data-field] .wrong, #trouble")) {
    slot.textContent = "";
  }
  for (const node of document.querySelectorAll("[aria-invalid]")) {
    node.removeAttribute("aria-invalid");
  }
}

/** Opens whatever hides a node. */
function reveal(node) {
  for (let up = node; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
}

function put(area, text) {
  const slot = area ? area.querySelector(".wrong") : document.getElementById("trouble");
  slot.textContent = slot.textContent ? slot.textContent + " " + text : text;
  if (area) reveal(area);
}

/** A Problem at its field; entries of a list that it names are marked, too. */
export function show(problem) {
  const area = areaOf(problem.message, problem.param);
  put(area, worded(problem));
  if (!area) return;
  const at = problem.indices.length ? problem.indices
    : [...problem.message.matchAll(/\[(\d+)\]/g)].map((found) => Number(found[1]));
  const bad = at.map((index) => entryOf(area, index)).filter(Boolean);
  const control = area.querySelector("input, select, textarea");
  for (const node of bad.length ? bad : [control]) node?.setAttribute("aria-invalid", "true");
  bad.forEach(reveal);
  bad[0]?.scrollIntoView({ block: "nearest" });
}

/** What the server passed over: each line begins with the field that it is about. */
export function warn(lines) {
  for (const line of lines) {
    const area = areaOf(line);
    put(area, plainly(line, named));
    if (!area) continue;
    const at = /^\w+\[(\d+)\]/.exec(line)?.[1], bad = at && entryOf(area, at);
    bad?.setAttribute("aria-invalid", "true");
    reveal(bad);
    const feature = /^features\.([^:]+):/.exec(line)?.[1];
    for (const node of feature ? area.querySelectorAll("[data-feature]") : []) {
      if (node.dataset.feature === feature && node.value) node.setAttribute("aria-invalid", "true");
    }
  }
}
