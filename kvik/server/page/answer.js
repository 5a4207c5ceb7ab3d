// One answer of the model while it comes: its text, its times, and where it is found in the engine's record.

import { answer } from "./api.js";
import { make, tell } from "./dom.js";
import { duration, howEnded, plural, whole } from "./words.js";

const LEAST_MS = 50; // a rate over less time than this says nothing
let numbers = 0;

/** A name for a request that no other has; the engine's events carry it, so that an answer is found in them. */
export function newId() {
  return `page-${Date.now().toString(36)}-${++numbers}`;
}

/** One answer while it comes: its text, its times, how it ended. */
export class Answer {
  constructor(changed) {
    Object.assign(this, { id: newId(), changed, text: "", usage: null, reason: null, error: null, busy: true });
    this.begun = performance.now();
    this.first = this.last = null;
    this.stopper = new AbortController();
  }

  /** Ask, with everything in `body` but the stream, and take in what comes. */
  async run(path, body) {
    try {
      for await (const {
        choices: [choice],
        usage,
      } of answer(path, body, { signal: this.stopper.signal, id: this.id })) {
        this.usage = usage ?? this.usage;
        if (choice) this.take(choice);
      }
      this.end();
    } catch (error) {
      this.end(error);
    }
  }

  /** A chunk's choice. */
  take({ delta, text, finish_reason: reason }) {
    const piece = delta?.content ?? text ?? "";
    this.last = performance.now();
    if (piece || (text !== undefined && !reason)) this.first ??= this.last;
    this.text += piece;
    this.reason = reason ?? this.reason;
    this.changed();
  }

  end(error = null) {
    if (error?.name === "AbortError") this.reason = "abort";
    else this.error = error;
    this.busy = false;
    this.changed();
  }

  stop() {
    this.stopper.abort();
  }

  /** Its numbers in words, as far as they are known. */
  get told() {
    const parts = [];
    if (this.first !== null) parts.push(`first token after ${duration((this.first - this.begun) / 1000)}`);
    const count = this.usage?.completion_tokens;
    if (count) parts.push(plural(count, "token"));
    if (count > 1 && this.last - this.first > LEAST_MS)
      parts.push(`${whole(((count - 1) * 1000) / (this.last - this.first))} tok/s`);
    if (!this.busy && this.reason && this.reason !== "stop") parts.push(howEnded(this.reason));
    return parts;
  }

  /** The engine's request that computes it, as far as the record tells. */
  requestIn(record) {
    return [...record.requests.values()].find(({ id }) => id.includes(this.id));
  }
}

/** The numbers under an answer, its error, and the way to it on the engine's side. */
export function tellAnswer(turn, show) {
  const parts = turn.told.map((text) => make("span", {}, text));
  if (turn.error) parts.push(make("span", { className: "wrong", role: "alert" }, turn.error.message));
  const request = turn.requestIn(show.record);
  if (request && !turn.busy) {
    const button = make("button", { type: "button" }, show.pinned === request.key ? "unmark" : "mark in the engine");
    button.addEventListener("click", () => {
      show.pin(request.key);
      tell(button, show.pinned === request.key ? "unmark" : "mark in the engine");
    });
    parts.push(button);
  }
  return parts;
}
