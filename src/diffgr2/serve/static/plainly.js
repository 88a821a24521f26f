// Contract: `plainly` says what the server told of a request in the words of the page: its places by
// number and name ("Candidate 12, “mild soap”"), its settings by their headings, bounds in plain
// words. What it does not know stays as it is. Not here: where it is shown (`fields`).

const ENTRIES = { documents: "candidate", candidates: "candidate", texts: "candidate",
  history: "purchase", h: "purchase", c: "candidate" };
const HEADINGS = { "decode.views": "How often it looks", "decode.decoder": "How it writes",
  decode: "How it writes", history: "Purchases", documents: "Candidates", candidates: "Candidates",
  scores: "The shop's scores", features: "Features", user: "Shopper", user_id: "Shopper",
  model: "Model", query: "Purchases" };
const PHRASES = [
  [/^'(.*?)' (?=keeps|is )/, "“$1” "],
  [/Input should be less than or equal to/g, "at most"],
  [/Input should be greater than or equal to/g, "at least"],
  [/Input should be/g, "expected"],
  [/\bdocuments\b/g, "candidates"],
  [/no evidence here/g, "nothing that this model reads"],
  [/needs the role shoppers.*$/g, "is not for everybody here"],
  [/no such item, and none of its words is known/g,
    "the catalogue has no such item and none of its words is known"],
];
const BY_STATUS = { 429: "Too many ask at once: try again in a moment",
  500: "The model failed on this request", 503: "The server is not ready: try again in a moment",
  504: "It took too long: try again, or ask for less" };

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** An entry of a list in words; `named` gives the name that the page shows of it. */
function entry(field, index, named, rest) {
  const name = named(field, index), told = `${ENTRIES[field]} ${index + 1}`;
  return name && !rest.includes(name) ? `${told}, “${name}”` : told;
}

function sentence(text, named) {
  const [, field, index, , rest] = /^(\w+)\[(\d+)\](\.\w+)?: ([^]*)$/.exec(text) || [];
  const head = /^([a-z_]+(?:\.[^:\s]+)?): ([^]*)$/.exec(text);
  let place = "", said = text;
  if (ENTRIES[field]) [place, said] = [entry(field, Number(index), named, rest), rest];
  else if (head && HEADINGS[head[1]]) [place, said] = [HEADINGS[head[1]], head[2]];
  else if (head?.[1].startsWith("features.")) {
    [place, said] = [`feature ${head[1].slice("features.".length)}`, head[2]];
  }
  said = said.replace(/\b(documents|candidates|texts|history)\[(\d+)\]/g,
    (_, list, at) => entry(list, Number(at), named, said));
  for (const [api, plain] of PHRASES) said = said.replace(api, plain);
  const whole = capital(place ? `${place}: ${said}` : said);
  return /[.!?]$/.test(whole) ? whole : whole + ".";
}

/** See the contract; several things that are wrong stand behind each other. */
export function plainly(text, named = () => "") {
  return text.split(/; (?=\w+\[\d+\])/).map((part) => sentence(part, named)).join(" ");
}

/** A Problem: what nobody who asks could mend is told by its kind. */
export const told = (problem, named) => plainly(
  !problem.param && BY_STATUS[problem.status] || problem.message, named);
