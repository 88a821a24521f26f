// Contract: the state of the page as the part of its address behind `#`, which is never sent to the
// server, and back; and the same request as a command line. A state is
// { model, user, history, own, features, decoder, views, race }; `history` is null while it is the
// shopper's, `own` is null while the candidates are the retriever's, `unread` says which candidates'
// features the address held in no readable form. Not here: what a state means.

export function written(state) {
  const pairs = [];
  if (state.model) pairs.push(["m", state.model]);
  if (state.user !== null) pairs.push(["u", state.user]);
  for (const entry of state.history || []) pairs.push(["h", entry]);
  if (state.history && !state.history.length) pairs.push(["h", ""]);
  for (const [at, entry] of (state.own || []).entries()) {
    pairs.push(["c", entry]);
    const given = state.features[at];
    if (given && Object.keys(given).length) pairs.push(["f" + at, JSON.stringify(given)]);
  }
  if (state.decoder) pairs.push(["d", state.decoder]);
  if (state.views) pairs.push(["v", String(state.views)]);
  if (state.race) pairs.push(["race", "1"]);
  return new URLSearchParams(pairs).toString();
}

export function read(text) {
  const given = new URLSearchParams(text.replace(/^#/, ""));
  const own = given.getAll("c"), past = given.getAll("h");
  const unread = [], features = own.map((_, at) => {
    try { return JSON.parse(given.get("f" + at) || "{}"); } catch { unread.push(at); return {}; }
  });
  return {
    model: given.get("m"),
    user: given.get("u"),
    history: past.length ? past.filter(Boolean) : null,
    own: own.length ? own : null,
    features,
    unread,
    decoder: given.get("d"),
    views: Number(given.get("v")) || null,
    race: given.has("race"),
  };
}

const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

/** The request for a shell; a key is named, never shown. */
export function curl(body, withKey) {
  const key = withKey ? " \\\n  -H \"authorization: Bearer $DIFFGR2_KEY\"" : "";
  return `curl -s ${location.origin}/v1/rerank -H 'content-type: application/json'${key} \\\n`
    + `  -d ${quoted(JSON.stringify(body))}`;
}
