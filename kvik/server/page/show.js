// What is shown: the record, the moment in it that everyone looks at, and the request that is marked.
//
// Views draw when something they show has changed, at most once for each frame of the screen, and not at all while
// nobody can see them.

import { Record } from "./record.js";

export class Show {
  constructor() {
    this.record = new Record();
    this.cursor = null; // number of the step that is shown while paused; null: the newest
    this.hovered = null; // key of the request under the pointer
    this.pinned = null; // key of the request that stays marked
    this.views = [];
    this.due = 0;
    addEventListener("themechange", () => this.changed());
    addEventListener("resize", () => this.changed());
  }

  /** Draw these views whenever something changes: functions of the frame that is shown. */
  add(...views) {
    this.views.push(...views);
    this.changed();
  }

  changed() {
    this.due ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.due = 0;
    if (this.cursor !== null && this.cursor < this.record.firstStep) this.cursor = this.record.firstStep;
    const frame = this.record.newest ? this.record.show(this.cursor) : null;
    for (const view of this.views) view(frame);
  }

  /** Take in an event of the engine; false if it does not fit. */
  apply(event) {
    const before = this.record.frames;
    const fits = this.record.apply(event);
    if (this.record.frames !== before) this.cursor = this.hovered = this.pinned = null;
    if (fits) this.changed();
    return fits;
  }

  get paused() {
    return this.cursor !== null;
  }
  get marked() {
    return this.pinned ?? this.hovered;
  }
  get shownStep() {
    return this.cursor ?? this.record.lastStep;
  }

  /** The moment that is shown, on the engine's clock. */
  get time() {
    return this.paused ? (this.record.step(this.cursor)?.t ?? this.record.time) : this.record.time;
  }

  pause() {
    if (this.record.steps.length) this.seek(this.shownStep);
  }
  play() {
    this.cursor = null;
    this.changed();
  }

  /** Show a step, and stay there. */
  seek(number) {
    if (!this.record.steps.length) return;
    this.cursor = Math.min(Math.max(number, this.record.firstStep), this.record.lastStep);
    this.changed();
  }

  hover(key) {
    if (this.hovered !== key) {
      this.hovered = key;
      this.changed();
    }
  }
  pin(key) {
    this.pinned = this.pinned === key ? null : key;
    this.changed();
  }

  /** Whether a request had arrived and not ended at the moment that is shown. */
  isThere(request) {
    return (
      request.arrival <= this.time &&
      (request.ended === null || request.ended >= this.time || request.lastStep >= this.shownStep)
    );
  }
}
