// The numbers, the reasons and the controls around the canvases.

import { $, make, tell } from "./dom.js";
import { rate } from "./measure.js";
import { brief, duration, howEnded, nameOf, percent, plural, tellStep, whole, whyWaits } from "./words.js";

const SHOWN_WAITING = 12;

/** What is read out: a name, a value of the frame that is shown, and what it means. */
const READOUTS = [
  [
    "Running",
    ({ counts }, { facts }) => [whole(counts.running), `of ${whole(facts.seats)}`],
    "Requests with a seat in the batch",
  ],
  [
    "Waiting",
    ({ counts, queued }) => [whole(counts.waiting + queued), ""],
    "Requests in the engine's queue, and in front of it",
  ],
  [
    "Output",
    ({ counts }, { seconds }, time) => [brief(counts.running ? rate(seconds, time, 4, "out") : 0), "tok/s"],
    "Tokens generated in a second, over the last four",
  ],
  [
    "Step",
    (frame, { step }, time, number) => [step(number) ? duration(step(number).seconds) : "–", ""],
    "Time of the step shown",
  ],
  [
    "KV in use",
    ({ counts }, { facts }) => [percent(counts.blocks_used, facts.numBlocks), ""],
    "Share of the KV blocks that requests hold; cached ones can be taken at any time",
  ],
  [
    "Prefix hits",
    ({ counts }) => [percent(counts.prompt_tokens_cached, counts.prompt_tokens), ""],
    "Prompt tokens found in the cache, of all since the engine started",
  ],
  [
    "Preemptions",
    ({ counts }) => [whole(counts.preemptions), ""],
    "Times that a running request gave up its blocks and waited again",
  ],
  ["Generated", ({ counts }) => [brief(counts.generated_tokens), "tokens"], "Tokens since the engine started"],
];

export class Panel {
  constructor(show) {
    this.show = show;
    this.readouts = READOUTS.map(([name, read, title]) => {
      const value = make("span", {}, "–");
      const unit = make("small");
      $("readouts").append(make("div", { title }, make("dt", {}, name), make("dd", {}, value, unit)));
      return { read, value, unit };
    });
    show.add((frame) => {
      if (frame) this.drawNumbers(frame);
      this.drawAside(frame);
      this.drawTransport(frame);
    });
    this.listen();
  }

  drawNumbers(frame) {
    const { record } = this.show;
    const number = this.show.shownStep;
    for (const { read, value, unit } of this.readouts) {
      const [text, small] = read(
        frame,
        { facts: record.facts, seconds: record.seconds, step: (at) => record.step(at) },
        this.show.time,
        number,
      );
      tell(value, text);
      tell(unit, small);
    }
    const step = record.step(number);
    tell($("step-told"), step ? tellStep(step) : "");
  }

  // Why requests wait, and what is known of the one that is marked.

  drawAside(frame) {
    const request = this.show.record.requests.get(this.show.marked);
    const parts = [request ? this.tellRequest(request) : null, this.tellWaiting(frame)];
    const key = JSON.stringify(parts);
    if (key === this.told) return;
    this.told = key;
    $("aside").replaceChildren(...parts.filter(Boolean).map((part) => (part.rows ? facts(part) : reasons(part))));
    tell($("aside-title"), request ? "Request" : "Why requests wait");
  }

  tellWaiting(frame) {
    const { facts: limits, requests } = this.show.record;
    if (!frame || !(frame.counts.waiting + frame.queued)) return { lines: [], note: "Nobody waits." };
    const lines = frame.waiting.slice(0, SHOWN_WAITING).map((wait) => {
      const lost = requests.get(wait[0])?.preemptions ? "was preempted and " : "";
      return [nameOf(wait[0]), `${lost}${whyWaits(wait, limits)}`];
    });
    const more = frame.counts.waiting - lines.length;
    const notes = [
      more > 0 ? `${plural(more, "more request")} in line` : "",
      frame.queued
        ? `${plural(frame.queued, "more request")} at the server's door; the engine takes in few more than it has seats for`
        : "",
    ];
    return {
      lines,
      note: notes
        .filter(Boolean)
        .map((note) => `${note}.`)
        .join(" "),
    };
  }

  tellRequest(request) {
    const { record } = this.show;
    const table = record.view.tables.get(request.key) ?? [];
    const shared = table.filter((block) => record.view.blocks[block] > 1).length;
    const known = request.length - request.prompt;
    return {
      name: nameOf(request.key),
      id: request.id,
      rows: [
        ["State", stateOf(request) + (this.show.pinned === request.key ? ", marked" : "")],
        ["Prompt", plural(request.prompt, "token") + and(request.cached, "from the cache")],
        ["Answer", `${plural(Math.max(0, known), "token")}, at most ${whole(request.limit - request.prompt)}`],
        ["Blocks", table.length ? plural(table.length, "block") + and(shared, "shared") : "none"],
        ["In queue", since(request.arrival, request.firstRow)],
        ["First token", since(request.arrival, request.firstToken)],
        ...(request.preemptions ? [["Preempted", plural(request.preemptions, "time")]] : []),
      ],
    };
  }

  // Pause and scrub.

  drawTransport(frame) {
    const { record, show } = this;
    const number = show.shownStep;
    const steps = record.steps.length;
    const scrub = $("scrub");
    scrub.min = record.firstStep;
    scrub.max = Math.max(record.firstStep, record.lastStep);
    scrub.value = Math.max(record.firstStep, number);
    scrub.style.setProperty("--done", `${steps > 1 ? (100 * (number - record.firstStep)) / (steps - 1) : 0}%`);
    scrub.disabled = $("back").disabled = $("on").disabled = $("pause").disabled = !steps;
    scrub.ariaValueText = steps ? tellStep(record.step(number)) : "";
    tell($("pause"), show.paused ? "Resume" : "Pause");
    $("live").disabled = !show.paused;
    $("transport").toggleAttribute("data-paused", show.paused);
    if (!steps) {
      tell($("when"), "no steps yet");
      return;
    }
    const { step, t } = record.step(number);
    const ago = record.time - t;
    tell(
      $("when"),
      show.paused ? `step ${whole(step)}, ${duration(ago)} before the newest` : `live, step ${whole(step)}`,
    );
  }

  get record() {
    return this.show.record;
  }

  listen() {
    const { show } = this;
    const toggle = () => (show.paused ? show.play() : show.pause());
    const move = (by) => show.seek(show.shownStep + by);
    $("pause").addEventListener("click", toggle);
    $("back").addEventListener("click", () => move(-1));
    $("on").addEventListener("click", () => move(1));
    $("live").addEventListener("click", () => show.play());
    $("scrub").addEventListener("input", (event) => show.seek(Number(event.target.value)));
    addEventListener("keydown", (event) => {
      if (
        event.target.closest("input, textarea, button, select, summary, [role=tab], .talk") ||
        event.ctrlKey ||
        event.metaKey ||
        event.altKey
      )
        return;
      const act = {
        " ": toggle,
        ArrowLeft: () => move(event.shiftKey ? -10 : -1),
        ArrowRight: () => move(event.shiftKey ? 10 : 1),
        Home: () => show.seek(this.record.firstStep),
        End: () => show.play(),
        Escape: () => {
          show.pin(null);
          show.hover(null);
        },
      }[event.key];
      if (!act || event.defaultPrevented) return;
      act();
      event.preventDefault();
    });
  }
}

function stateOf({ ended, reason, firstRow, lost }) {
  if (ended !== null) return howEnded(reason);
  if (firstRow === null) return "waits";
  return lost ? "was preempted" : "runs";
}

const and = (count, what) => (count ? `, ${whole(count)} ${what}` : "");
const since = (from, to) => (to === null ? "–" : duration(Math.max(0, to - from)));

function facts({ name, id, rows }) {
  const list = make("dl", {}, ...rows.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
  return make(
    "section",
    { className: "facts" },
    make("h3", {}, make("b", {}, name), make("span", { title: id }, id)),
    list,
  );
}

function reasons({ lines, note }) {
  const items = lines.map(([name, text]) => make("li", {}, make("b", {}, name), make("span", {}, text)));
  return make(
    "section",
    { className: "why" },
    ...(items.length ? [make("ul", { className: "why" }, ...items)] : []),
    ...(note ? [make("p", {}, note)] : []),
  );
}
