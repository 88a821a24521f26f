// Contract: errors and warnings stand beside the field that they are about, in the server's words;
// what is about no field stands beside the button. A field is an element with `data-field` (names
// that the server may blame, blank between) and holds a `.wrong` slot, which its control names in
// `aria-describedby`. Not here: what went wrong (`ask`).

const areas = () => [...document.querySelectorAll("[data-field]")];
const names = (area) => area.dataset.field.split(" ");

function areaOf(param) {
  const first = (param || "").split(/[.[]/)[0];
  return areas().find((area) => names(area).includes(first)) || null;
}

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
  const area = areaOf(problem.param);
  put(area, problem.message);
  if (!area) return;
  const entries = [...area.querySelectorAll("[data-entry]")];
  const at = problem.indices.length ? problem.indices
    : [...problem.message.matchAll(/\[(\d+)\]/g)].map((found) => Number(found[1]));
  const bad = at.map((index) => entries[index]).filter(Boolean);
  const control = area.querySelector("input, select, textarea");
  for (const node of bad.length ? bad : [control]) node?.setAttribute("aria-invalid", "true");
  bad[0]?.scrollIntoView({ block: "nearest" });
}

/** What the server passed over: each line begins with the field that it is about. */
export function warn(lines) {
  for (const line of lines) {
    const area = areaOf(/^[a-z_]+/.exec(line)?.[0]);
    put(area, line + ".");
    if (!area) continue;
    const entries = area.querySelectorAll("[data-entry]"), at = /^\w+\[(\d+)\]/.exec(line)?.[1];
    if (at) entries[at]?.setAttribute("aria-invalid", "true");
    const feature = /^features\.([^:]+):/.exec(line)?.[1];
    for (const node of feature ? area.querySelectorAll("[data-feature]") : []) {
      if (node.dataset.feature === feature && node.value) node.setAttribute("aria-invalid", "true");
    }
  }
}
