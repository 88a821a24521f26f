// Contract: `race` lets decoders of one model rank the same request and shows how: wall time as this
// browser measures it, forwards, and what each forward committed, place by place, as it streams.
// One after another unless told otherwise, so that none waits for another. Tokens stand raw, as they
// were written, or in words: names are the candidates', and once a lane is done, its strengths are
// those of its answer. What is written behind the end of a response is no output and goes.
// Not here: the request (`page`), the ranking itself (`ranking`).

import { events } from "./ask.js";
import { make, plural } from "./dom.js";

const ABOUT = { ar: "one token a step", block: "many tokens a step", verify: "many, then checked" };
export const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Lane {
  /** `cards` are the candidates as they came. */
  constructor(decoder, words, cards) {
    Object.assign(this, { decoder, words, cards, windows: [], log: [], tokens: 0, fresh: [],
      raw: false });
    const figure = (name, unit) => make("p", {}, this[name] = make("b", { text: "–" }),
      make("span", { text: unit }));
    this.canvas = make("div", { class: "canvas", role: "group", tabindex: "0",
      "aria-label": `What ${decoder} wrote` });
    this.steps = make("ol", { tabindex: "0", "aria-label": `Every forward of ${decoder}` });
    this.root = make("article", { class: "lane", "data-state": "waiting", "data-decoder": decoder },
      make("h3", {}, decoder, " ", make("small", { text: ABOUT[decoder] || "" })),
      make("div", { class: "figures" }, figure("time", "ms"), figure("count", "forwards"),
        figure("each", "tokens each")),
      make("div", { class: "pace", "aria-hidden": "true" }, this.pace = make("i")),
      this.last = make("p", { class: "last", text: "waits" }),
      this.canvas,
      make("p", { class: "end" }),
      make("details", { class: "steps" }, make("summary", {}, "Every forward",
        make("span", { class: "away", text: " of " + decoder })), this.steps));
  }

  begin() {
    this.root.dataset.state = "running";
    this.last.textContent = "reads the list";
    this.begun = performance.now();
    const tick = () => {
      if (this.root.dataset.state !== "running") return;
      this.time.textContent = Math.round(performance.now() - this.begun);
      requestAnimationFrame(tick);
    };
    if (!calm.matches) tick();
  }

  window(number) {
    while (this.windows.length <= number) {
      const box = make("div", { class: "window" });
      this.canvas.append(box);
      this.windows.push({ box, cells: [], forward: 0, shown: [] });
    }
    return this.windows[number];
  }

  text(cell) {
    const known = this.words.of(cell.dataset.token);
    cell.className = "cell " + known.kind;
    cell.textContent = this.raw ? cell.dataset.token : this.said(cell, known);
  }

  /** A token in words: what it says of its candidate. */
  said(cell, known) {
    const { cells, shown } = cell.window, kindOf = (one) => this.words.of(one.dataset.token || "");
    const name = cells.slice(0, cell.at + 1).findLast((one) => kindOf(one).kind === "item");
    const index = name && shown[kindOf(name).at], card = this.cards[index];
    if (known.kind === "item") return card?.title || known.text;
    if (known.kind === "cited") {
      return card?.evidence.find((piece) => piece.name === known.field)?.said || known.text;
    }
    return known.kind === "strength" && this.levels?.has(index)
      ? this.words.grade(this.levels.get(index)) : known.text;
  }

  /** What one forward committed; the first of a window says which candidates it shows. */
  commit({ window: number, forward, committed, compute_ms, shown }) {
    this.compute_ms = Math.max(this.compute_ms || 0, compute_ms);
    const window = this.window(number);
    window.forward = forward;
    window.shown = shown || window.shown;
    this.fresh.forEach((cell) => cell.classList.remove("new"));
    this.fresh = [];
    for (const [at, token] of committed) {
      while (window.cells.length <= at) {
        const empty = make("span", { class: "cell open", text: "·" });
        Object.assign(empty, { window, at: window.cells.length });
        window.cells.push(empty);
        window.box.append(empty);
      }
      window.cells[at].dataset.token = token;
      this.fresh.push(window.cells[at]);
      this.tokens += 1;
    }
    for (const cell of this.fresh) {  // once all are there: a name may come after what is said of it
      this.text(cell);
      cell.classList.add("new");
    }
    const forwards = this.windows.reduce((sum, one) => sum + one.forward, 0);
    this.figures(this.tokens, forwards);
    this.last.textContent = `forward ${forward}: ${plural(committed.length, "token")}`;
    const where = this.windows.length > 1 ? `list ${number + 1}, ` : "";
    const said = make("span");
    this.log.push({ said, cells: this.fresh });
    this.steps.append(make("li", {}, make("b", {
      text: `${where}forward ${forward}, ${plural(committed.length, "token")}: ` }), said));
    this.tell(this.log.slice(-1));
    if (this.fresh.length) {
      const cell = this.fresh[this.fresh.length - 1];
      const low = cell.offsetTop + cell.offsetHeight - this.canvas.clientHeight;
      if (low > this.canvas.scrollTop) this.canvas.scrollTop = low;
    }
  }

  /** What each forward committed, in the form that is shown. */
  tell(log) {
    for (const { said, cells } of log) {
      said.textContent = cells.map((cell) => cell.textContent).join("; ");
    }
  }

  figures(tokens, forwards) {
    this.forwards = forwards;
    this.count.textContent = forwards;
    this.each.textContent = forwards ? (tokens / forwards).toFixed(1) : "–";
  }

  finish(answer) {
    this.ms = performance.now() - this.begun;
    this.answer = answer;
    this.levels = new Map(answer.results.map((one) => [one.index, one.strength]));
    this.root.dataset.state = "done";
    for (const { cells } of this.windows) {
      const end = cells.findIndex((cell) => cell.dataset.token
        && this.words.of(cell.dataset.token).kind === "end");
      if (end >= 0) cells.splice(end + 1).forEach((cell) => cell.remove());
    }
    this.show(this.raw);
    this.canvas.scrollTop = 0;
    this.tokens = answer.decode.tokens;
    this.figures(answer.decode.tokens, answer.decode.forwards);
    this.time.textContent = Math.round(this.ms);
    const model = this.compute_ms === undefined ? "" : `, ${Math.round(this.compute_ms)} ms in the model`;
    this.last.textContent = plural(answer.decode.tokens, "token") + model;
  }

  /** Beside the others: how long it took of the longest, and how its answer differs from `below`'s. */
  compare(lanes, below) {
    const longest = Math.max(...lanes.map((lane) => lane.ms)), first = lanes[0];
    this.pace.style.width = 100 * this.ms / longest + "%";
    const told = [];
    if (this !== first && this.ms < first.ms) told.push(`${(first.ms / this.ms).toFixed(1)}× as fast`);
    told.push(this === below ? "the ranking below" : this.unlike(below));
    this.root.querySelector(".end").textContent = told.join(", ");
  }

  /** How this answer differs from another one. */
  unlike({ answer, levels }) {
    const grade = (level) => this.words.grade(level);
    const places = this.answer.results.filter((one, at) => one.index !== answer.results[at].index);
    const said = [...this.levels].filter(([at, level]) => grade(level) !== grade(levels.get(at)));
    return [places.length ? `${plural(places.length, "place")} unlike below` : "same order as below",
      said.length ? `${plural(said.length, "strength")} unlike below` : ""].filter(Boolean).join(", ");
  }

  show(raw) {
    this.raw = raw;
    for (const { cells } of this.windows) {
      for (const cell of cells) if (cell.dataset.token) this.text(cell);
    }
    this.tell(this.log);
  }
}

/** The lanes, run; `bodyOf(decoder)` is its request, `shown` the decoder of the ranking below. */
export async function race(root, decoders, bodyOf, { words, cards, shown, together, raw, signal }) {
  const lanes = decoders.map((decoder) => new Lane(decoder, words, cards));
  root.replaceChildren(...lanes.map((lane) => lane.root));
  root.dataset.lanes = lanes.length;
  lanes.forEach((lane) => lane.show(raw));
  const run = async (lane) => {
    lane.begin();
    const asked = { body: { ...bodyOf(lane.decoder), stream: true }, signal };
    try {
      for await (const [name, data] of events("/v1/rerank", asked)) {
        if (name === "results") lane.finish(data);
        else if (name === "reasoning.delta") lane.commit(data);
      }
    } finally {
      if (lane.root.dataset.state === "running") lane.root.dataset.state = "broken";
    }
  };
  if (together) await Promise.all(lanes.map(run));
  else for (const lane of lanes) await run(lane);
  const below = lanes.find((lane) => lane.decoder === shown);
  if (lanes.length > 1) lanes.forEach((lane) => lane.compare(lanes, below));
  return lanes;
}

/** The race in a sentence, for whoever does not see it. */
export const told = (lanes) => lanes.map((lane) =>
  `${lane.decoder}: ${Math.round(lane.ms)} ms, ${plural(lane.forwards, "forward")}`).join("; ") + ".";
