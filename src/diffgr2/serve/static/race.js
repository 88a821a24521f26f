// Contract: `race` lets decoders of one model rank the same request and shows how: wall time as this
// browser measures it, forwards, and what each forward committed, place by place, as it streams.
// One after another unless told otherwise, so that none waits for another. Tokens stand in words or
// raw. What is written behind the end of a response is no output and goes. Not here: the request
// (`page`), the ranking itself (`ranking`).

import { events } from "./ask.js";
import { make, plural } from "./dom.js";

const ABOUT = { ar: "one token a step", block: "many tokens a step", verify: "many, then checked" };
export const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Lane {
  constructor(decoder, words, titles) {
    Object.assign(this, { decoder, words, titles, windows: [], log: [], tokens: 0, fresh: [],
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
      this.windows.push({ box, cells: [], forward: 0 });
    }
    return this.windows[number];
  }

  text(cell) {
    const { kind, text } = this.words.of(cell.dataset.token, cell.number ? null : this.titles);
    cell.className = `cell ${kind}`;
    cell.textContent = this.raw ? cell.dataset.token : text;
  }

  /** What one forward committed. */
  commit({ window: number, forward, committed, compute_ms }) {
    this.compute_ms = Math.max(this.compute_ms || 0, compute_ms);
    const window = this.window(number);
    window.forward = forward;
    this.fresh.forEach((cell) => cell.classList.remove("new"));
    this.fresh = [];
    for (const [at, token] of committed) {
      while (window.cells.length <= at) {
        const empty = make("span", { class: "cell open", text: "·" });
        window.cells.push(empty);
        window.box.append(empty);
      }
      const cell = window.cells[at];
      cell.number = number;
      cell.dataset.token = token;
      this.text(cell);
      cell.classList.add("new");
      this.fresh.push(cell);
      this.tokens += 1;
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
    this.root.dataset.state = "done";
    for (const { cells } of this.windows) {
      const end = cells.findIndex((cell) => cell.dataset.token
        && this.words.of(cell.dataset.token).kind === "end");
      if (end >= 0) cells.splice(end + 1).forEach((cell) => cell.remove());
    }
    this.fresh.forEach((cell) => cell.classList.remove("new"));
    this.canvas.scrollTop = 0;
    this.tokens = answer.decode.tokens;
    this.figures(answer.decode.tokens, answer.decode.forwards);
    this.time.textContent = Math.round(this.ms);
    const model = this.compute_ms === undefined ? "" : `, ${Math.round(this.compute_ms)} ms in the model`;
    this.last.textContent = plural(answer.decode.tokens, "token") + model;
  }

  /** Beside the others: how long it took of the longest, and whether its order is the first's. */
  compare(lanes) {
    const longest = Math.max(...lanes.map((lane) => lane.ms)), first = lanes[0];
    this.pace.style.width = 100 * this.ms / longest + "%";
    const order = (lane) => lane.answer.results.map((result) => result.index);
    const differ = order(this).filter((index, at) => index !== order(first)[at]).length;
    const told = [];
    if (this !== first && this.ms < first.ms) told.push(`${(first.ms / this.ms).toFixed(1)}× as fast`);
    if (this !== first) {
      told.push(differ ? `${plural(differ, "place")} unlike ${first.decoder}`
        : `same order as ${first.decoder}`);
    }
    this.root.querySelector(".end").textContent = told.join(", ");
  }

  show(raw) {
    this.raw = raw;
    for (const { cells } of this.windows) {
      for (const cell of cells) if (cell.dataset.token) this.text(cell);
    }
    this.tell(this.log);
  }
}

/** The lanes, run; `bodyOf(decoder)` is its request. */
export async function race(root, decoders, bodyOf, { words, titles, together, raw, signal }) {
  const lanes = decoders.map((decoder) => new Lane(decoder, words, titles));
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
  if (lanes.length > 1) lanes.forEach((lane) => lane.compare(lanes));
  return lanes;
}

/** The race in a sentence, for whoever does not see it. */
export const told = (lanes) => lanes.map((lane) =>
  `${lane.decoder}: ${Math.round(lane.ms)} ms, ${plural(lane.forwards, "forward")}`).join("; ") + ".";
