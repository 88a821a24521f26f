// Contract: what a token of a response says in words, beside its raw form. `Words` reads the table
// that the server gave (`tokens` of `/page/shoppers`); what is not in it is text that the model
// wrote. Strengths between two levels have the word that the server's own sentences would use.
// Not here: where tokens stand.

import { listed } from "./dom.js";

const SPACES = { "\u0120": " ", "\u010a": "\n" };  // how byte-level tokens spell blanks

export class Words {
  constructor(facts) { this.facts = facts; }

  /** { text, kind } of a token, and which candidate (in the order in which they are shown), which
   * field or which level it is. */
  of(token) {
    const known = this.facts.tokens[token];
    if (!known) return { kind: "text", text: token.replace(/[\u0120\u010a]/g, (c) => SPACES[c]) };
    return known.kind === "item" ? { ...known, text: "candidate " + (known.at + 1) } : known;
  }

  /** A strength in words. */
  grade(level) {
    const { grades, strengths, unsaid } = this.facts;
    if (level === undefined || level === null) return unsaid;
    // A hair below an edge is on it, as in the server's sentences.
    const at = Math.floor(level / (strengths - 1) * grades.length + 1e-6);
    return grades[Math.min(at, grades.length - 1)];
  }

  /** Why a candidate stands where it does: its strength, then what it was told by, side by side. */
  reasoning(level, pieces) {
    const word = this.grade(level), parts = [word[0].toUpperCase() + word.slice(1) + "."];
    for (const side of ["for", "against"]) {
      const said = pieces.filter((piece) => piece.side === side).map((piece) => piece.phrase);
      if (said.length) parts.push(`${this.facts.sides[side]}: ${listed(said)}.`);
    }
    return parts.join(" ");
  }
}

/** Of a decision, the pieces of evidence that were written: the most probable of each place. */
export function cited(decision) {
  const found = new Map();
  for (const [piece] of decision?.evidence || []) {
    if (piece && piece.field !== null && !found.has(piece.field)) found.set(piece.field, piece);
  }
  return [...found.values()];
}
