// Contract: `showRanking` writes an answer of `/v1/rerank` as a list for people: place, move, name,
// how strong and why, and the evidence that is cited, with its grade. Only what the answer or the
// candidates' evidence says is shown. Not here: asking for it (`page`), words (`words`).

import { make, ordinal, plural } from "./dom.js";
import { cited } from "./words.js";

/** ▲3: up three places. */
export function move(was, now) {
  const up = was - now, kind = up > 0 ? "up" : up < 0 ? "down" : "level";
  const mark = up > 0 ? "▲" + up : up < 0 ? "▼" + -up : "=";
  const told = up > 0 ? `up ${plural(up, "place")}` : up < 0 ? `down ${plural(-up, "place")}`
    : "same place";
  return make("span", { class: "move " + kind },
    make("span", { "aria-hidden": "true", text: mark }), make("span", { class: "away", text: told }));
}

/** A grade as a bar and in figures; words and marks have no height. */
function grade(piece, levels) {
  const box = make("span", { class: "grade" });
  if (!piece || piece.kind === "category" || piece.kind === "flag") return box;
  const top = levels - 1, level = piece.low ? top - piece.level : piece.level;
  const fill = make("i");
  fill.style.width = 100 * level / top + "%";
  box.append(make("span", { class: "meter", "aria-hidden": "true" }, fill),
    make("span", { text: `grade ${level + 1} of ${levels}` }));
  return box;
}

function evidence(said, field, side, piece, levels) {
  const sign = { for: "+", against: "−" }[side] || "·";
  const told = { for: "for it", against: "against it" }[side] || "neither for nor against";
  return make("li", { class: "piece " + (side || "neither") },
    make("span", { class: "sign" }, make("span", { "aria-hidden": "true", text: sign }),
      make("span", { class: "away", text: told + ": " })),
    make("span", { class: "said" }, make("q", { text: said }), " ",
      make("small", { text: piece?.meaning ? `${field}: ${piece.meaning}` : field })),
    grade(piece, levels));
}

const why = {
  kept: "kept where the list had it", pinned: "placed by a rule",
  boosted: "moved by a rule", limited: "moved back by a rule",
};

function row(result, place, shown, decision, words, chance) {
  const card = shown.candidates[result.index], pieces = cited(decision);
  const known = new Map(card.evidence.map((piece) => [piece.name, piece]));
  const facts = [`was ${ordinal(result.index + 1)}`, card.brand, card.category, card.id];
  const text = make("div", { class: "text" },
    make("h3", {}, make("span", { class: "title", text: card.title }),
      card.id && card.id === shown.next
        ? make("span", { class: "next", text: "bought next" }) : null),
    make("p", { class: "note", text: facts.filter(Boolean).join(" · ") }));
  if (decision) {
    text.append(make("p", { class: "why", text: result.placed === "kept"
      ? "Not judged: " + why.kept + "." : words.reasoning(result.strength, pieces) }));
  } else if (result.placed) text.append(make("p", { class: "why", text: why[result.placed] }));
  const side = make("div", { class: "side" });
  if (chance) {
    side.append(make("p", { class: "chance" },
      make("b", { text: (100 * result.relevance_score).toFixed(1) + " %" }), " ",
      make("span", { text: "chance among these to be bought next" })));
  }
  if (pieces.length) {
    side.append(make("ul", { class: "evidence", "aria-label": "Evidence that it cites" },
      ...pieces.map((piece) => evidence(
        piece.phrase, piece.field, piece.side, known.get(piece.field), shown.levels))));
  }
  if (card.evidence.length) {
    side.append(make("details", {}, make("summary", {},
      `All ${card.evidence.length} facts that the model was given`, make("span", { class: "away",
        text: " of " + card.title })),
    make("ul", { class: "evidence" }, ...card.evidence.map((piece) =>
      evidence(piece.said, piece.name, piece.side, piece, shown.levels)))));
  }
  const node = make("li", { class: "result" },
    make("div", { class: "rank" }, make("b", { text: String(place + 1) }), move(result.index, place)),
    text, side);
  node.dataset.was = result.index;
  return node;
}

/** See the contract; `shown` are the candidates as they came, with their evidence. */
export function showRanking(list, answer, shown, words) {
  const decisions = new Map((answer.decisions || []).map((one) => [one.index, one]));
  const open = new Set([...list.children].filter((one) => one.querySelector("details[open]"))
    .map((one) => one.dataset.was));
  const chances = answer.ranking.sure !== null;  // else scores say no more than the order does
  list.replaceChildren(...answer.results.map((result, place) =>
    row(result, place, shown, decisions.get(result.index), words, chances)));
  for (const one of list.children) {
    const details = one.querySelector("details");
    if (details) details.open = open.has(one.dataset.was);
  }
}

/** The lines of the server's account that are about the whole list. */
export function summary(answer, words) {
  const lines = (answer.reasoning || "").split("\n").filter(Boolean);
  const own = Object.keys(words.facts.tokens).length > 0;
  return (own ? lines.slice(0, 2) : lines).join(" ") || "No reasons were given.";
}

/** How far the order is the model's own, where there is something to say. */
export function judged(answer) {
  const { valid, repaired, identity } = answer.ranking, said = answer.decode.answer === "said";
  const parts = [];
  if (!valid) {
    parts.push(repaired ? (said ? "Some are not judged and come last." : "Completed by the repair.")
      : said ? "None is judged: the order as it came." : "Of no use: the order as it came.");
  }
  if (identity) parts.push("The order did not change.");
  return parts.join(" ");
}

/** Whether an answer shows what a re-ranking is: another first place, and reasons for the first few. */
export function telling(answer) {
  const decisions = new Map((answer.decisions || []).map((one) => [one.index, one]));
  return answer.results[0]?.index !== 0 && answer.results.slice(0, 3).every(({ index }) =>
    !decisions.size || cited(decisions.get(index)).some((piece) => piece.side));
}
