// Contract: the page at `/`: one state (see `link`), whose example is ranked on load and anew after
// every change; the address follows the state, so a copied link shows the same. What is wrong stands
// beside its field. Not here: the pieces (`items`, `ranking`, `race`, `fields`), the server's words.

import { ask, askJson, hasKey, Problem, useKey } from "./ask.js";
import { $, copy, listed, make, plural } from "./dom.js";
import * as fields from "./fields.js";
import { chips, nameOf, Picker, rows, valueOf } from "./items.js";
import * as link from "./link.js";
import { race, told } from "./race.js";
import { judged, showRanking, summary, telling } from "./ranking.js";
import { Words } from "./words.js";

const DECODERS = {
  ar: ["Token by token (ar)", "Each step of the model writes one token: the plain way, and the slowest."],
  block: ["Block diffusion (block)",
    "Each step fills many places and keeps those that it is sure of."],
  verify: ["Verified blocks (verify)",
    "A step drafts many places, the next one checks them: the text is that of ar."],
};
const VIEWS = [
  [1, "Once", "It sees the list in the shop's order."],
  [3, "Three times", "Three orders, strengths averaged: the place in the list matters less."],
  [5, "Five times", "The same with five orders, at five times the work."],
];

let state = link.read(location.hash), facts = null, words = null, shown = null, busy = null;
let examples = [];  // shoppers, of whom one is to be shown: the first whose list changes
const seen = new Map();  // cards of items, by the name by which they are asked for

// Not `disabled`, which would take the focus away from whoever has just pressed it.
const ready = (yes) => $("run").setAttribute("aria-disabled", String(!yes));
const say = (text) => { $("say").textContent = text; };
const writer = () => state.decoder || facts.recommended;
const shopper = () => facts.shoppers.find((one) => one.user === state.user);
const ofModel = (pairs) => {
  if (state.model) pairs.push(["model", state.model]);
  return "?" + new URLSearchParams(pairs);
};

function fail(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401 || (error.status === 403 && !hasKey())) {
    $("keyform").hidden = false;
    $("key-wrong").textContent = error.message;
    if (error.status === 401) $("summary").textContent = "Nothing is shown without a key.";
  } else fields.show(error);
  say("");
}

/** What the page knows of the served model, and the state completed by it. */
async function load() {
  const missed = [];
  const about = () => askJson("/page/shoppers" + ofModel(state.user === null ? []
    : [["user", state.user]]));
  try {
    facts = await about();
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 404 || !state.model) throw error;
    const wanted = state.model;
    state.model = null;
    facts = await about();
    missed.push(`No model “${wanted}” is served here: this is “${facts.model}”.`);
  }
  words = new Words(facts);
  for (const one of facts.shoppers) for (const card of one.history) seen.set(card.id, card);
  complete(missed);
  $("missed").textContent = missed.join(" ");
  $("docs").hidden = !facts.docs;
  $("simulated").hidden = !facts.simulated;
  options($("model"), facts.models.map((name) => [name, name]), state.model || facts.model);
  $("modelbox").hidden = facts.models.length < 2;
  $("userbox").hidden = !facts.shoppers.length;
  radios("decoders", "decoder", facts.decoders.map((name) => [name,
    DECODERS[name][0] + (name === facts.recommended ? ", recommended" : ""), DECODERS[name][1]]),
  writer());
  $("viewbox").hidden = facts.views === null;
  const views = state.views || facts.views;
  radios("views", "views", VIEWS.some(([n]) => n === views) ? VIEWS
    : [...VIEWS, [views, plural(views, "time"), "As the link or the recipe says."]], views);
  const n = facts.decoders.length;
  $("run").textContent = n > 1 ? `Race its ${n} ways to write` : "Watch it write";
}

/** The state as it can be shown here; what of it is not there is told in a line each. */
function complete(missed) {
  if (state.decoder && !facts.decoders.includes(state.decoder)) {
    missed.push(`This model has no decoder “${state.decoder}”: it writes with ${facts.recommended}.`);
    state.decoder = null;
  }
  if (state.user !== null && !shopper()) {
    missed.push(`No shopper “${state.user}” can be shown here: this is ${state.history
      ? "the history of the link" : "an example"}.`);
    state.user = null;
  }
  for (const at of state.unread) {
    missed.push(`The features of candidate ${at + 1} in the link cannot be read: it is ranked without.`);
  }
  examples = [];
  if (state.user === null && state.history === null) {
    examples = facts.examples;
    if (!examples.length) state.history = facts.items;
  }
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) =>
    make("option", { value, text, selected: value === chosen })));
}

function radios(box, name, choices, chosen) {
  $(box).replaceChildren(...choices.map(([value, title, about]) => make("label", {},
    make("input", { type: "radio", name, value: String(value), checked: value === chosen }),
    make("span", { text: title }), make("small", { text: about }))));
}

const history = () => state.history || (shopper()?.history || []).map(nameOf);

function bodyOf(decoder) {
  const decode = { details: true };
  if (decoder) decode.decoder = decoder;
  if (state.views) decode.views = state.views;
  const documents = shown.candidates.map((card, at) => {
    const features = state.features[at], name = state.own ? state.own[at] : card.id;
    return features && Object.keys(features).length ? { ...(card.id ? { id: card.id }
      : { text: name }), features } : name;
  });
  const body = { history: history(), documents, return_reasoning: true, decode };
  if (state.model) body.model = state.model;
  if (state.user !== null) body.user_id = state.user;
  const scores = shown.candidates.map((card) => card.score);
  if (scores.length && scores.every((score) => score !== null)) body.scores = scores;
  return body;
}

async function find(signal) {
  const pairs = history().map((entry) => ["h", entry]);
  if (state.user !== null) pairs.push(["user", state.user]);
  for (const entry of state.own || []) pairs.push(["c", entry]);
  if (state.own && state.features.some((one) => one && Object.keys(one).length)) {
    state.own.forEach((_, at) => pairs.push(["f", JSON.stringify(state.features[at] || {})]));
  }
  const data = await askJson("/page/candidates" + ofModel(pairs), { signal });
  shown = { ...data, next: state.history === null ? shopper()?.next : null };
  const past = history().slice(-data.history.length);
  if (past.length === data.history.length) past.forEach((name, at) => seen.set(name, data.history[at]));
  data.candidates.forEach((card, at) => seen.set(state.own ? state.own[at] : card.id, card));
}

const cardOf = (name) => seen.get(name) || { title: name };

/** What is asked, as it stands beside the ranking, whether or not it can be ranked. */
function draw() {
  const listed = state.own ? state.own.map(cardOf) : shown?.candidates || [];
  const own = facts.shoppers.length && (state.history || !shopper()) ? [["", "a history of your own"]]
    : [];
  options($("user"), [...own, ...facts.shoppers.map((one) =>
    [one.user, `${one.user}, ${plural(one.history.length, "purchase")}`])],
  state.history ? "" : state.user);
  chips($("past"), $("older"), history().map(cardOf), (at) => change(() => {
    state.history = history().filter((_, n) => n !== at);
    state.user = null;
  }, $("q-past")));
  const open = [...document.querySelectorAll("#before .features")].map((one) => one.open);
  const focus = document.activeElement?.closest("#before") && document.activeElement.id;
  rows($("before"), listed, { features: facts.features, given: state.features,
    remove: (at) => change(() => {
      ownList();
      state.own.splice(at, 1);
      state.features.splice(at, 1);
      if (!state.own.length) state.own = null;
    }, $("candidates").querySelector("summary")),
    changed: (at, feature, text) => change(() => {
      ownList();
      const value = valueOf(feature, text), given = { ...state.features[at] };
      if (value === undefined) delete given[feature.name]; else given[feature.name] = value;
      state.features[at] = given;
    }) });
  document.querySelectorAll("#before .features").forEach((one, at) => { one.open ||= open[at]; });
  if (focus) $(focus)?.focus();
  $("whose").textContent = state.own ? `${listed.length} of your own, in this order.`
    : `${listed.length}, as the shop's retriever ordered them.`;
  $("retrieved").hidden = !state.own;
}

function ownList() {
  state.own = state.own || (shown?.candidates || []).map(nameOf);
  state.features = state.own.map((_, at) => state.features[at] || {});
}

/** An answer, in the list's new order. */
function present(answer) {
  showRanking($("ranking"), answer, shown, words);
  $("summary").textContent = summary(answer, words);
  $("answer").textContent = JSON.stringify(answer, null, 1);
}

/** Rank what the state says, and show it. */
async function rank() {
  busy?.abort();
  const mine = busy = new AbortController(), signal = mine.signal;
  fields.clear();
  $("result").setAttribute("aria-busy", "true");
  ready(false);
  say("Ranking…");
  try {
    let answer, begun;
    do {
      if (examples.length) [state.user, ...examples] = examples;
      try { await find(signal); } finally { if (!signal.aborted) draw(); }
      const body = bodyOf(state.decoder);
      begun = performance.now();
      $("curl").textContent = link.curl(body, hasKey());
      answer = await askJson("/v1/rerank", { body, signal });
    } while (examples.length && !telling(answer));
    examples = [];
    const ms = Math.round(performance.now() - begun), { decode } = answer;
    present(answer);
    say([`Ranked ${plural(answer.results.length, "candidate")} in ${ms} ms with ${decode.decoder}: `
      + `${plural(decode.tokens, "token")} in ${plural(decode.forwards, "forward")}.`,
    judged(answer)].filter(Boolean).join(" "));
    fields.warn(answer.meta.warnings);
    ready(true);
  } catch (error) {
    if (error instanceof Problem) {
      $("ranking").replaceChildren();
      $("summary").textContent = "Not ranked. " + fields.worded(error);
    }
    throw error;
  } finally {
    if (mine === busy) $("result").setAttribute("aria-busy", "false");
  }
}

async function runRace() {
  busy?.abort();
  const { signal } = busy = new AbortController();
  $("trouble").textContent = "";
  $("race").hidden = false;
  ready(false);
  state.race = true;
  address();
  say("Racing…");
  const { decoders } = facts;
  $("lanes-say").textContent = decoders.length < 2 ? ""
    : `Each of ${listed(decoders)} answers for itself, so strengths and order may differ between `
      + `them. The ranking below is the answer of ${writer()}.`;
  try {
    const lanes = await race($("lanes"), decoders, bodyOf, { words, signal, shown: writer(),
      cards: shown.candidates, together: $("together").checked, raw: $("raw").checked });
    present(lanes.find((lane) => lane.decoder === writer()).answer);
    $("raw").onchange = () => lanes.forEach((lane) => lane.show($("raw").checked));
    say(told(lanes));
  } finally {
    ready(true);
  }
}

function address() {
  window.history.replaceState(null, "", "#" + link.written(state));
}

const guarded = (work) => (...given) => work(...given).catch(fail);

/** Change the state, then rank; the focus goes to `focus` where its element may be gone. */
const change = guarded(async (how, focus) => {
  how();
  state.race = false;
  $("missed").textContent = "";
  $("race").hidden = true;
  address();
  focus?.focus();
  await rank();
});

const begin = guarded(async () => {
  $("race").hidden = true;
  await load();
  await rank();
  if (state.race) await runRace();
});

function adds(name, label, add) {
  return new Picker($("pick-" + name), { name, label, model: () => state.model, failed: fail,
    chosen: (value) => change(() => add(value)) });
}

adds("past", "Add a purchase: search the catalogue", (value) => {
  state.history = [...history(), value];
  state.user = null;
});
adds("own", "Add a candidate: search the catalogue", (value) => {
  ownList();
  state.own.push(value);
  state.features.push({});
  $("candidates").open = true;
});
$("user").addEventListener("change", () => change(() => {
  if (!$("user").value) return;
  Object.assign(state, { user: $("user").value, history: null, own: null, features: [] });
}));
$("model").addEventListener("change", guarded(async () => {
  state = { ...link.read(""), model: $("model").value };
  address();
  await begin();
}));
$("decoders").addEventListener("change", (event) => change(() => {
  state.decoder = event.target.value;
}));
$("views").addEventListener("change", (event) => change(() => {
  state.views = Number(event.target.value);
}));
$("retrieved").addEventListener("click", () => change(() => {
  Object.assign(state, { own: null, features: [] });
}, $("candidates").querySelector("summary")));
$("run").addEventListener("click", guarded(async () => {
  if ($("run").getAttribute("aria-disabled") === "false") await runRace();
}));
document.querySelector("nav a[href='#ask']").addEventListener("click", (event) => {
  event.preventDefault();  // the part behind # is the state
  $("ask").scrollIntoView();
  $("ask").focus();
});
$("link").addEventListener("click", () => {
  address();
  copy(location.href, $("say"));
});
$("copy").addEventListener("click", () => copy($("curl").textContent, $("copied"), $("curl")));
$("ask").addEventListener("submit", (event) => event.preventDefault());
$("keyform").addEventListener("submit", guarded(async (event) => {
  event.preventDefault();
  useKey($("key").value);
  await ask("/page/items");
  $("keyform").hidden = true;
  await begin();
  $("run").focus();
}));
window.addEventListener("hashchange", () => {
  state = link.read(location.hash);
  begin();
});
begin();
