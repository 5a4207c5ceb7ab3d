// The page: puts its parts together, and keeps the stream of events open while somebody can see what it is for.

import { ask, get, onKeyNeeded, stream, useKey } from "./api.js";
import { BlockMap } from "./blocks.js";
import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { startDemo } from "./demo.js";
import { $, tell } from "./dom.js";
import { Panel } from "./panel.js";
import { Show } from "./show.js";
import { startTheme } from "./theme.js";
import { Timeline } from "./timeline.js";

const AGAIN_MS = 1000;
const LONGEST_MS = 10000;
const HEALTH_MS = 5000;
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

startTheme($("theme"));
let model = "";
const show = new Show();
const chat = new Chat(() => model, show);
new Panel(show);
new Charts($("charts"), show);
const timeline = new Timeline($("timeline"), $("timeline-empty"), show);
$("narrower").addEventListener("click", () => timeline.scale(-1));
$("wider").addEventListener("click", () => timeline.scale(1));
new BlockMap($("blocks"), $("pool-told"), show);
for (const id of ["demo", "demo-too"]) $(id).addEventListener("click", () => startDemo(chat, show));

// The key: asked for when the server refuses a call without one; every call that waits for it goes on then.

let keyGiven = null;
onKeyNeeded((wasWrong) => {
  if (!keyGiven) {
    $("key").hidden = false;
    tell(
      $("key").querySelector("label"),
      wasWrong ? "The server does not know this API key." : "This server asks for an API key.",
    );
    if (!document.activeElement || document.activeElement === document.body) $("key-field").focus();
    let resolve;
    const promise = new Promise((done) => {
      resolve = done;
    });
    keyGiven = { promise, resolve };
  }
  return keyGiven.promise;
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key-field").value.trim());
  $("key-field").value = "";
  $("key").hidden = true;
  const { resolve } = keyGiven ?? {};
  keyGiven = null;
  resolve?.();
});

// One side at a time where the window is narrow.

function side(name) {
  document.querySelector("main").dataset.side = name;
  $("show-chat").ariaPressed = String(name === "chat");
  $("show-engine").ariaPressed = String(name === "engine");
  show.changed();
}
$("show-chat").addEventListener("click", () => side("chat"));
$("show-engine").addEventListener("click", () => side("engine"));
if (location.hash === "#engine") side("engine");

// The events, and how the server is. Both only while they can be seen.

let seen = false,
  stopper = null;
const visible = () => seen && document.visibilityState === "visible";

async function watch() {
  let pause = AGAIN_MS;
  while (visible()) {
    stopper = new AbortController();
    try {
      for await (const data of stream("/events", { signal: stopper.signal })) {
        pause = AGAIN_MS;
        if (!show.apply(JSON.parse(data))) break;
      }
    } catch (error) {
      if (error.name === "AbortError") break;
    }
    tellHealth();
    if (visible()) await wait(pause);
    pause = Math.min(2 * pause, LONGEST_MS);
  }
  stopper = null;
}

let watching = false;
async function settle() {
  if (!visible()) {
    stopper?.abort();
    return;
  }
  if (watching) return;
  watching = true;
  await watch();
  watching = false;
  if (visible()) settle();
}

const STATES = {
  ready: "ready",
  loading: "the model is loading",
  restarting: "the engine is starting again",
  failed: "the engine has failed",
  draining: "shutting down",
};

async function tellHealth() {
  if (document.visibilityState !== "visible") return;
  const health = await ask("/health/ready", HEALTH_MS - 500);
  if (health === undefined) return;
  const state = health?.status ?? "unreachable";
  $("health").dataset.state = state === "ready" ? "ready" : state === "loading" ? "" : "bad";
  tell($("health").querySelector("b"), STATES[state] ?? "the server cannot be reached");
  if (state === "ready" && !model) nameModel();
}

async function nameModel() {
  try {
    const { data } = await get("/v1/models");
    if (!data?.length) return;
    model = data[0].id;
    const short = data.map(({ id }) => id).sort((a, b) => a.length - b.length)[0];
    tell($("model"), short);
    document.title = `${short} · Kvik`;
  } catch {
    /* The next look at the server's health tries again. */
  }
}

new IntersectionObserver((entries) => {
  seen = entries.at(-1).isIntersecting;
  settle();
}).observe($("engine"));
document.addEventListener("visibilitychange", () => {
  settle();
  tellHealth();
});
setInterval(tellHealth, HEALTH_MS);
tellHealth();
