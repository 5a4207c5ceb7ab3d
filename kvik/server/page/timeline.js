// The step timeline: a column for each step, a row for each request, and the tokens of each step on top.
//
//   tall block   a prefill chunk, taller with more tokens        thin line    waiting; red after a preemption
//   low bar      a decode                                        cross        the step in which it was preempted

import { DECODE, PREEMPTED, PREFILL, WAITING } from "./record.js";
import { fit, point, speak } from "./dom.js";
import { colour, font } from "./theme.js";
import { nameOf, tellCell, tellStep, whole } from "./words.js";

const GUTTER = 52;
const TOP = 38;
const AXIS = 17;
const EDGE = 6;
const COLUMNS = [2, 3, 5, 7, 10, 14, 20]; // widths of a column
const USUAL = 4; // the one of them to begin with
const LABEL_APART = 90;
const CAPACITIES = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
const FADED = 0.2;

export class Timeline {
  constructor(canvas, empty, show) {
    Object.assign(this, { canvas, empty, show, end: -1, focusLane: null, zoom: USUAL, pointer: null });
    canvas.addEventListener("pointermove", (event) => this.look(event));
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      point("");
      show.hover(null);
    });
    canvas.addEventListener("click", (event) => this.click(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      this.focusLane = null;
      show.hover(null);
    });
    show.add(() => this.draw());
  }

  get record() {
    return this.show.record;
  }
  get column() {
    return COLUMNS[this.zoom];
  }
  get bar() {
    return this.column - (this.column > 4 ? 2 : this.column > 2 ? 1 : 0.5);
  }

  /** More steps in the window, or fewer and wider. */
  scale(by) {
    this.zoom = Math.min(Math.max(0, this.zoom + by), COLUMNS.length - 1);
    this.show.changed();
  }

  /** Which steps are in the window, and how high a lane is. */
  measure(width, height) {
    const { record, show } = this;
    const columns = Math.max(1, Math.floor((width - GUTTER - EDGE) / this.column));
    if (!show.paused) this.end = record.lastStep;
    else
      this.end = Math.min(
        Math.max(this.end, show.cursor),
        Math.max(show.cursor + columns - 1, record.firstStep + columns - 1),
      );
    const first = Math.max(record.firstStep, this.end - columns + 1);
    const steps = record.steps.slice(first - record.firstStep, this.end - record.firstStep + 1);
    let lanes = 0;
    for (const step of steps) {
      for (const [key] of step.rows) lanes = Math.max(lanes, (record.requests.get(key)?.lane ?? -1) + 1);
      for (const [key] of step.idle) lanes = Math.max(lanes, (record.requests.get(key)?.lane ?? -1) + 1);
    }
    const capacity = CAPACITIES.find((count) => count >= lanes) ?? lanes;
    const space = height - TOP - AXIS;
    this.window = { first, steps, columns, lanes, space, lane: Math.min(24, space / capacity) };
  }

  x(number) {
    return GUTTER + (number - this.window.first) * this.column;
  }

  draw() {
    const { context, width, height } = fit(this.canvas);
    this.empty.hidden = this.record.steps.length > 0;
    context.clearRect(0, 0, width, height);
    if (!this.record.steps.length || !width) return;
    this.measure(width, height);
    this.drawGround(context, width, height);
    this.drawTokens(context);
    for (const step of this.window.steps) this.drawStep(context, step);
    this.drawEnds(context);
    this.drawLabels(context, height);
    this.drawCursor(context, height);
    if (this.pointer) this.look(this.pointer); // What is drawn may have moved under it.
  }

  drawGround(context, width, height) {
    const { lanes, lane, first, steps } = this.window;
    context.fillStyle = colour("well");
    context.fillRect(GUTTER - 2, TOP, width - GUTTER - EDGE + 4, height - TOP - AXIS);
    context.fillStyle = colour("line");
    if (lane >= 8)
      for (let row = 1; row < lanes; row++)
        context.fillRect(GUTTER - 2, Math.round(TOP + row * lane), width - GUTTER - EDGE + 4, 0.5);
    context.font = `10.5px ${font("sans")}`;
    context.textAlign = "left";
    context.textBaseline = "middle";
    const apart = [5, 10, 20, 50, 100].find((count) => count * this.column >= LABEL_APART) ?? 100;
    for (const { number, step, t, seconds } of steps) {
      if (step % apart === 0 && number > first) {
        context.fillStyle = colour("line");
        context.fillRect(this.x(number) - 1, TOP, 0.5, height - TOP - AXIS + 4);
        context.fillStyle = colour("soft");
        context.fillText(whole(step), this.x(number) + 1, height - AXIS / 2 + 2);
      }
      const before = this.record.step(number - 1);
      if (before && number > first && t - seconds - before.t > 0.5) this.drawPause(context, number, height);
    }
    context.fillStyle = colour("soft");
    context.textAlign = "right";
    context.fillText("tokens", GUTTER - 9, TOP - 14);
    context.fillText("step", GUTTER - 9, height - AXIS / 2 + 2);
  }

  /** The engine had nothing to do before this step. */
  drawPause(context, number, height) {
    context.strokeStyle = colour("edge");
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(this.x(number) - 1, 4);
    context.lineTo(this.x(number) - 1, height - AXIS);
    context.stroke();
    context.setLineDash([]);
  }

  /** The tokens of each step, on a logarithmic scale that ends at the budget. */
  drawTokens(context) {
    const full = Math.log2(1 + this.record.facts.budget);
    const space = TOP - 10;
    for (const { number, rows, tokens } of this.window.steps) {
      const prompt = rows.reduce((sum, row) => sum + (row[1] === PREFILL ? row[2] : 0), 0);
      const high = Math.max(2, (Math.log2(1 + tokens) / full) * space);
      const part = (prompt / tokens) * high;
      context.fillStyle = colour("decode");
      context.fillRect(this.x(number), TOP - 4 - high + part, this.bar, high - part);
      context.fillStyle = colour("prefill");
      context.fillRect(this.x(number), TOP - 4 - high, this.bar, part);
    }
  }

  drawStep(context, { number, rows, idle, preempted }) {
    const { lane } = this.window;
    const x = this.x(number);
    const budget = Math.log2(1 + this.record.facts.budget);
    for (const [key, kind] of idle) {
      const y = this.begin(context, key);
      if (y === null) continue;
      context.fillStyle = colour(kind === PREEMPTED ? "preempted" : "waiting");
      context.fillRect(x - 1, y + lane / 2 - 1, this.column, Math.min(2, lane / 2));
    }
    for (const [key, kind, tokens] of rows) {
      const y = this.begin(context, key);
      if (y === null) continue;
      const room = Math.max(2, lane - 3);
      const high =
        kind === DECODE
          ? Math.max(2, Math.min(6, lane * 0.34))
          : room * (0.5 + 0.5 * Math.min(1, Math.log2(1 + tokens) / budget));
      context.fillStyle = colour(kind === DECODE ? "decode" : "prefill");
      context.beginPath();
      context.roundRect(x, y + (lane - high) / 2, this.bar, high, Math.min(2, high / 3));
      context.fill();
    }
    for (const key of preempted) {
      const y = this.begin(context, key);
      if (y !== null) this.drawCross(context, x + this.bar / 2, y + lane / 2, Math.min(4, lane / 2 - 0.5));
    }
    context.globalAlpha = 1;
  }

  drawCross(context, x, y, arm) {
    context.strokeStyle = colour("preempted");
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(x - arm, y - arm);
    context.lineTo(x + arm, y + arm);
    context.moveTo(x - arm, y + arm);
    context.lineTo(x + arm, y - arm);
    context.stroke();
    context.lineWidth = 1;
  }

  /** Top of a request's lane, with the brush as strong as the request is marked. */
  begin(context, key) {
    const request = this.record.requests.get(key);
    if (!request) return null;
    const { marked } = this.show;
    context.globalAlpha = marked === null || marked === key ? 1 : FADED;
    return TOP + request.lane * this.window.lane;
  }

  /** A tick where a request has ended. */
  drawEnds(context) {
    const { lane, first } = this.window;
    for (const request of this.record.requests.values()) {
      if (request.ended === null || request.lastStep < first || request.lastStep > this.end || lane < 5) continue;
      const y = this.begin(context, request.key);
      context.fillStyle = colour(request.reason === "error" ? "bad" : "soft");
      context.fillRect(this.x(request.lastStep) + this.bar, y + lane * 0.22, 2, lane * 0.56);
    }
    context.globalAlpha = 1;
  }

  /** Who is in each lane at the moment that is shown, or was there last. */
  drawLabels(context, height) {
    const { lane, first } = this.window;
    const { marked, time } = this.show;
    const latest = new Map();
    for (const request of this.record.requests.values()) {
      const isSeen = request.arrival <= time && (request.ended === null || request.lastStep >= first);
      if (isSeen && marked !== latest.get(request.lane)?.key) latest.set(request.lane, request);
      if (request.key === marked) latest.set(request.lane, request);
    }
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.font = `500 ${Math.min(11, Math.max(8, lane - 2))}px ${font("mono")}`;
    for (const request of latest.values()) {
      if (lane < 9.5 && request.key !== marked) continue;
      context.fillStyle = colour(request.key === marked ? "accent" : "soft");
      context.globalAlpha = this.show.isThere(request) || request.key === marked ? 1 : 0.55;
      context.fillText(nameOf(request.key), GUTTER - 9, Math.min(TOP + (request.lane + 0.5) * lane + 0.5, height - 4));
    }
    context.globalAlpha = 1;
  }

  drawCursor(context, height) {
    if (!this.show.paused) return;
    const x = this.x(this.show.cursor);
    context.strokeStyle = colour("accent");
    context.lineWidth = 1.5;
    context.strokeRect(x - 1.5, 2, this.bar + 3, height - AXIS - 1);
    context.lineWidth = 1;
  }

  /** The step and the request at a place of the canvas. */
  at(x, y) {
    if (!this.window?.steps.length || y > this.canvas.clientHeight - AXIS + 4) return {};
    const step = this.record.step(this.window.first + Math.floor((x - GUTTER + 1) / this.column));
    const lane = Math.floor((y - TOP) / this.window.lane);
    if (x < GUTTER - 2)
      return { request: [...this.record.requests.values()].find((one) => one.lane === lane && this.show.isThere(one)) };
    if (!step || step.number > this.end) return {};
    const found = [...step.rows, ...step.idle].find(
      ([key]) => y >= TOP && this.record.requests.get(key)?.lane === lane,
    );
    return { step, cell: found, request: found && this.record.requests.get(found[0]) };
  }

  look(event) {
    this.pointer = event;
    const { step, cell, request } = this.at(event.offsetX, event.offsetY);
    this.show.hover(request?.key ?? null);
    point(
      request && cell ? tellCell(step, cell, request) : step ? tellStep(step) : request ? nameOf(request.key) : "",
      event.clientX,
      event.clientY,
    );
  }

  click(event) {
    const { step, request } = this.at(event.offsetX, event.offsetY);
    if (request) this.show.pin(request.key);
    else this.show.pin(null);
    if (step && this.show.paused) this.show.seek(step.number);
  }

  key(event) {
    const lanes = this.window?.lanes ?? 0;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const next = (this.focusLane ?? -1) + (event.key === "ArrowDown" ? 1 : -1);
      this.focusLane = Math.min(Math.max(0, next), lanes - 1);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") this.scale(event.key === "-" ? -1 : 1);
    else if (event.key === "Enter" && this.show.hovered !== null) this.show.pin(this.show.hovered);
    else return;
    event.preventDefault();
    const step = this.record.step(this.show.shownStep);
    const cell =
      step && [...step.rows, ...step.idle].find(([key]) => this.record.requests.get(key)?.lane === this.focusLane);
    this.show.hover(cell?.[0] ?? null);
    speak(cell ? tellCell(step, cell, this.record.requests.get(cell[0])) : step ? tellStep(step) : "");
  }
}
