// Contract: the page at `/docs`: fetches the operations (with a key where one is asked for) and
// sends their examples. The operations are markup that the server wrote, its texts escaped there.
// Not here: what stands in them (`serve/docs.py`).

import { ask, hasKey, Problem, useKey } from "./ask.js";
import { $ } from "./dom.js";

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 1); } catch { return text; }
}

async function load() {
  try {
    $("operations").innerHTML = await (await ask("/docs/operations")).text();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    $("keyform").hidden = error.status !== 401 && error.status !== 403;
    $($("keyform").hidden ? "wait" : "key-wrong").textContent = error.message;
    if (!$("keyform").hidden) $("wait").textContent = "";
    return;
  }
  $("wait").textContent = "";
  $("keyform").hidden = true;
  for (const node of document.querySelectorAll(".origin")) node.textContent = location.origin;
  for (const node of hasKey() ? document.querySelectorAll(".with-key") : []) node.hidden = false;
}

async function send(box) {
  const button = box.querySelector("button"), status = box.querySelector(".status");
  const answer = box.querySelector(".answer"), body = box.querySelector("textarea")?.value;
  button.disabled = true;
  status.className = "status";
  status.textContent = "…";
  const begun = performance.now();
  const done = (code) => `${code} in ${Math.round(performance.now() - begun)} ms`;
  try {
    const reply = await ask(box.dataset.path, { method: box.dataset.method, body });
    answer.textContent = pretty(await reply.text());
    status.textContent = done(reply.status);
    status.classList.add("good");
  } catch (error) {
    answer.textContent = error.body ? JSON.stringify(error.body, null, 1) : String(error);
    status.textContent = error.status ? done(error.status) : "no answer";
    status.classList.add("bad");
  }
  answer.hidden = false;
  button.disabled = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".try button");
  if (button) send(button.closest(".try"));
});
$("keyform").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  load();
});
load();
