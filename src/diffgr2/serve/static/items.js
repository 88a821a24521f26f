// Contract: `Picker` searches the catalogue while one types and hands over what was chosen: an id,
// or the words as they were typed. Arrow keys, Enter and Escape work as in every combo box, and
// what there is to choose from is told to screen readers. `chips` and `rows` show what was chosen,
// each with a button that takes it away. Not here: what is done with it.

import { askJson } from "./ask.js";
import { make } from "./dom.js";

const PAUSE_MS = 180;  // of typing, before the catalogue is searched
const NEWEST = 5;  // purchases that are shown at once

export class Picker {
  /** Fills `root`, which errors called `name` are about; `model` says whose catalogue. */
  constructor(root, { name, label, model, chosen, failed }) {
    const list = `l-${name}`, id = `q-${name}`;
    this.input = make("input", { id, role: "combobox", "aria-expanded": "false",
      "aria-autocomplete": "list", "aria-controls": list, "aria-describedby": `${name}-wrong`,
      autocomplete: "off", spellcheck: "false", placeholder: "words, brand, kind or id" });
    this.list = make("ul", { id: list, role: "listbox", "aria-label": "Items found", hidden: true });
    this.status = make("span", { class: "away", role: "status" });
    root.append(make("label", { for: id, text: label }), this.input, this.list, this.status);
    Object.assign(this, { model, chosen, failed, at: -1, options: [], asked: 0 });
    this.input.addEventListener("input", () => this.soon());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => setTimeout(() => this.close(), 150));
    // A press on an option must not take the focus away before the click arrives.
    this.list.addEventListener("pointerdown", (event) => event.preventDefault());
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.search().catch(this.failed), PAUSE_MS);
  }

  async search() {
    const mine = ++this.asked, words = this.input.value.trim();
    if (!words) return this.close();
    const query = new URLSearchParams({ q: words });
    if (this.model()) query.set("model", this.model());
    const { items } = await askJson("/page/items?" + query);
    if (mine !== this.asked || document.activeElement !== this.input) return;
    const known = items.map((card) => ({ value: card.id, title: card.title,
      more: [card.id, card.brand, card.category].filter(Boolean).join(" · ") }));
    this.show([...known, { value: words, title: `“${words}”`, more: "as it is typed: an id or words" }],
      items.length);
  }

  show(options, found) {
    this.options = options;
    this.list.replaceChildren(...options.map((option, n) => make("li", {
      role: "option", id: `${this.list.id}-${n}`, "aria-selected": "false",
      onclick: () => this.take(n),
    }, make("span", { text: option.title }), make("small", { text: option.more }))));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.status.textContent = found ? `${found} found` : "nothing in the catalogue";
    this.mark(found ? 0 : options.length - 1);
  }

  mark(at) {
    const nodes = [...this.list.children];
    this.at = (at + nodes.length) % nodes.length;
    nodes.forEach((node, n) => node.setAttribute("aria-selected", String(n === this.at)));
    nodes[this.at].scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", nodes[this.at].id);
  }

  async key(event) {
    const open = !this.list.hidden;
    if (event.key === "Enter") {
      event.preventDefault();
      if (open) this.take(this.at);
      else if (this.input.value.trim()) await this.search().catch(this.failed);
    } else if (open && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      this.mark(this.at + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Escape") this.close();
  }

  take(n) {
    const option = this.options[n];
    this.input.value = "";
    this.close();
    if (option) this.chosen(option.value);
  }

  close() {
    this.asked += 1;
    clearTimeout(this.timer);
    this.list.hidden = true;
    this.list.replaceChildren();
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.status.textContent = "";
  }
}

/** What an item is asked by: its id where the catalogue has it, else its own words. */
export const nameOf = (card) => card.id || card.title;

function away(card, what, remove) {
  return make("button", { type: "button", class: "away-with", onclick: remove,
    "aria-label": `Remove ${card.title} from ${what}` }, "×");
}

/** The purchases, newest first; `older` is what holds those that are not shown at once. */
export function chips(list, older, cards, remove) {
  const nodes = cards.map((card, at) => make("li", { "data-entry": String(at) },
    make("span", { text: card.title }), away(card, "the history", () => remove(at)))).reverse();
  const most = nodes.length > NEWEST + 1 ? NEWEST : nodes.length;  // one more needs no door
  list.replaceChildren(...nodes.slice(0, most));
  older.hidden = most === nodes.length;
  older.querySelector("summary").textContent = `${nodes.length - most} older purchases`;
  older.querySelector("ol").replaceChildren(...nodes.slice(most));
  if (!cards.length) list.append(make("li", { class: "none", text: "nothing yet" }));
}

/** The candidates in the shop's order, each with the shop's own features where there are some. */
export function rows(list, cards, { features, given, remove, changed }) {
  list.replaceChildren(...cards.map((card, at) => make("li", { "data-entry": String(at) },
    make("span", { text: card.title }), away(card, "the candidates", () => remove(at)),
    features.length ? featureFields(card, at, features, given[at] || {}, changed) : null)));
}

function featureFields(card, at, features, given, changed) {
  const box = make("details", { class: "features" }, make("summary", { text: "Its features" }));
  if (Object.keys(given).length) box.open = true;
  for (const feature of features) {
    const id = `feature-${at}-${feature.name}`, value = given[feature.name];
    const field = control(feature, id, value === undefined ? "" : String(value));
    field.dataset.feature = feature.name;
    field.setAttribute("aria-label", `${feature.name} of ${card.title}`);
    field.addEventListener("change", () => changed(at, feature, field.value));
    box.append(make("label", { for: id, text: feature.name }), field);
  }
  return box;
}

function control(feature, id, value) {
  if (feature.kind === "number") return make("input", { id, value, inputmode: "decimal" });
  const words = feature.kind === "flag" ? ["true", "false"] : feature.words;
  const all = value && !words.includes(value) ? [value, ...words] : words;
  const options = [["", "not known"], ...all.map((word) => [word, word])];
  const field = make("select", { id }, ...options.map(([key, text]) =>
    make("option", { value: key, text, selected: key === value })));
  return field;
}

/** A feature's value as the API takes it; what is no such value goes as it is, for it to say so. */
export function valueOf(feature, text) {
  if (text.trim() === "") return undefined;
  if (feature.kind === "flag") return text === "true" ? true : text === "false" ? false : text;
  return feature.kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
}
