// Numbers and states in words. Pure functions; what they return is put on the page as text.

import { DECODE, PREEMPTED, PREFILL, WAITING } from "./record.js";

export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
export const whole = (number) => Math.round(number).toLocaleString("en-US");

/** A duration with three digits at most: 0.84 ms, 12 ms, 1.2 s. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const ms = seconds * 1000;
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.95 ? 2 : 1)} s`;
  return `${seconds.toFixed(0)} s`;
}

/** A rate or count with three digits at most: 0.5, 37, 1.2k. */
export function brief(number) {
  if (number >= 99500) return `${Math.round(number / 1000)}k`;
  if (number >= 9950) return `${(number / 1000).toFixed(1)}k`;
  return number >= 9.95 || Number.isInteger(number) ? whole(number) : number.toFixed(1);
}

/** A share with two digits: 3.1%, 42%. */
export function percent(part, all) {
  if (!all) return "–";
  const share = (100 * part) / all;
  return `${share > 0 && share < 9.95 ? share.toFixed(1) : Math.round(share)}%`;
}

/** Why the first in line waits, or that it stands in line. */
export function whyWaits([, reason, needed, available], facts) {
  switch (reason) {
    case "seats":
      return needed > 1
        ? `needs ${needed} seats for its choices; ${available} of ${facts.seats} are free`
        : `is next; ${facts.seats > 1 ? `all ${whole(facts.seats)} seats are` : "the only seat is"} taken`;
    case "blocks":
      return `is next; needs ${plural(needed, "KV block")} with what the running will take, ${available} can be had`;
    case "budget":
      return `is next; the running take all ${whole(facts.budget)} tokens of a step`;
    case "batch":
      return `waits for the static batch to end; ${plural(available, "request")} still run`;
    case "turn":
      return "starts with the next step";
    default:
      return `stands in line behind ${plural(needed, "other")}`;
  }
}

const REASONS = {
  stop: "came to its end",
  length: "reached its limit",
  abort: "was stopped",
  deadline: "ran out of time",
  error: "failed",
};
export const howEnded = (reason) => REASONS[reason] ?? "has ended";

/** How a request is named on the page: the engine's number for it. */
export const nameOf = (key) => `#${key}`;

/** A step in words. */
export function tellStep({ step, seconds, rows, tokens, idle, preempted }) {
  const decodes = rows.filter((row) => row[1] === DECODE).length;
  const chunks = rows.length - decodes;
  const parts = [`step ${whole(step)}`, duration(seconds), plural(tokens, "token")];
  if (decodes) parts.push(plural(decodes, "decode"));
  if (chunks) parts.push(plural(chunks, "prefill chunk"));
  if (idle.length) parts.push(`${idle.length} waiting`);
  if (preempted.length) parts.push(`${preempted.length} preempted`);
  return parts.join(" · ");
}

/** What a request did in a step, in words. */
export function tellCell(step, cell, request) {
  const [key, kind, tokens, position, , cached] = cell;
  const head = `${nameOf(key)}${request.choice ? `, choice ${request.choice}` : ""}: `;
  if (kind === WAITING)
    return head + (request.firstRow !== null && request.firstRow < step.t ? "has no tokens in this step" : "waits");
  if (kind === PREEMPTED) return head + "was preempted and waits for KV blocks";
  const lines = [
    head +
      (kind === DECODE
        ? `token ${whole(position - request.prompt + 2)} of its answer`
        : `prefill of ${plural(tokens, "token")}`),
  ];
  if (kind === PREFILL)
    lines.push(`positions ${whole(position)} to ${whole(position + tokens - 1)} of ${whole(request.prompt)}`);
  if (kind === PREFILL && cached) lines.push(`${plural(cached, "token")} found in the prefix cache`);
  if (request.ended !== null && request.lastStep === step.number) lines.push(`then it ${howEnded(request.reason)}`);
  return lines.join("\n");
}
