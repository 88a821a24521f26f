// Contract: small hands for making and finding elements; text is only ever text, never markup.
// Not here: anything that knows what the page is about.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (or properties, where a value is no text) and children. */
export function make(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** "a, b and c". */
export function listed(words) {
  const last = words[words.length - 1];
  return words.length > 1 ? words.slice(0, -1).join(", ") + " and " + last : last || "";
}

export const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

/** 1st, 2nd, 3rd, 4th … */
export function ordinal(n) {
  const tens = n % 100 > 10 && n % 100 < 14;
  return n + (tens ? "th" : { 1: "st", 2: "nd", 3: "rd" }[n % 10] || "th");
}

/** Copy text and say so in `told`; where the clipboard is closed, select what is shown instead. */
export async function copy(text, told, shown) {
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "Copied.";
  } catch {
    if (shown) getSelection().selectAllChildren(shown);
    told.textContent = shown ? "Selected: press Ctrl+C." : "The browser lets nothing be copied here.";
  }
}
