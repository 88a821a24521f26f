// Contract: every request to the server, with the key where one was given; what goes wrong is a
// `Problem` in the server's own words, with the field that it blames. The key stays in this tab's
// memory and goes nowhere else. Not here: what is asked, and where errors are shown.

let key = "";

export function useKey(text) { key = text.trim(); }
export const hasKey = () => Boolean(key);

export class Problem extends Error {
  constructor(status, body) {
    const told = body.error && body.error.message ? body.error : body;
    super(told.message || `the server answered ${status}`);
    this.status = status;
    this.param = told.param || null;
    this.indices = body.indices || [];
    this.body = body;
  }
}

/** A fetch that succeeded, or a Problem. */
export async function ask(path, { body, method, signal } = {}) {
  const headers = key ? { authorization: "Bearer " + key } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const how = method || (body === undefined ? "GET" : "POST");
  let answer;
  try {
    answer = await fetch(path, { method: how, headers, signal,
      body: typeof body === "string" || body === undefined ? body : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { message: "the server does not answer" });
  }
  if (answer.ok) return answer;
  let told = {};
  try { told = await answer.json(); } catch { /* not JSON: the status says enough */ }
  throw new Problem(answer.status, told);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** The server-sent events of one request, as [name, data], as they come. */
export async function* events(path, options) {
  const answer = await ask(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const name = /^event: (.*)$/m.exec(part)?.[1], text = /^data: (.*)$/m.exec(part)?.[1];
      if (!name) continue;
      const data = JSON.parse(text);
      if (name === "error") throw new Problem(data.error?.code || 500, data);
      yield [name, data];
    }
  }
}
