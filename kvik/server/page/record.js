// The record of the last minutes: events of the engine applied one after another, so that any moment can be shown
// again.
//
// An event says only what changed. `head` is the state after the newest event, `view` the state at the moment that is
// shown; each frame keeps what it replaced, so the view can move either way. Knows nothing of drawing or of networks.

export const PREFILL = 0;
export const DECODE = 1;
export const WAITING = 2;
export const PREEMPTED = 3;
export const CACHED = -1;
export const FREE = 0;
const KEEP_S = 300;
const KEEP_FRAMES = 9000;
const KEEP_STEPS = 30000;
const MOST_IDLE = 128; // requests without a row that are remembered for each step
// Steps, or seconds, that a lane stays empty before another request takes it.
const LANE_REST = 2;
const LANE_REST_S = 0.3;

/** The blocks and tables at one moment. */
class Pool {
  constructor(states) {
    this.blocks = states;
    this.tables = new Map();
    this.at = -1; // number of the frame applied last
  }

  forward(frame) {
    for (const [block, , after] of frame.blocks) this.blocks[block] = after;
    for (const [key, , after] of frame.tables) this.put(key, after);
    this.at = frame.number;
  }

  backward(frame) {
    for (const [block, before] of frame.blocks) this.blocks[block] = before;
    for (const [key, before] of frame.tables) this.put(key, before);
    this.at = frame.number - 1;
  }

  put(key, table) {
    if (table.length) this.tables.set(key, table);
    else this.tables.delete(key);
  }

  /** Keys of the requests that hold a block. */
  holders(block) {
    return [...this.tables].filter(([, table]) => table.includes(block)).map(([key]) => key);
  }
}

export class Record {
  constructor() {
    this.clear();
  }

  clear() {
    this.facts = null; // what the snapshot says of the engine's limits
    this.time = 0; // of the newest event, on the engine's clock, in seconds
    this.frames = [];
    this.steps = [];
    this.firstFrame = 0; // number of frames[0]
    this.firstStep = 0; // number of steps[0]
    this.requests = new Map(); // key -> what is known of a request, alive or in the record
    this.alive = new Set();
    this.seconds = []; // one bucket of measurements for each second in which something happened
    this.head = this.view = null;
    this.highest = -1; // the highest block that was ever in use
    this.lanes = []; // for each lane the step and the time from which it is free again
  }

  /** Take in an event. False if it does not fit what is known: then there has to be a new snapshot. */
  apply(event) {
    if (event.kind === "snapshot") this.start(event);
    else if (!this.facts || event.seq !== this.seq + 1) return false;
    else this.add(event);
    this.seq = event.seq;
    return true;
  }

  /** A snapshot: the beginning, or a new beginning of what goes on; then it is one more frame. */
  start(event) {
    const states = Int32Array.from(event.runs.flatMap(([state, count]) => Array(count).fill(state)));
    const goesOn =
      this.facts &&
      states.length === this.head.blocks.length &&
      event.t >= this.time &&
      event.counts.steps >= this.newest.counts.steps &&
      !event.requests.some(({ key, id }) => this.requests.has(key) && this.requests.get(key).id !== id);
    if (goesOn) {
      this.add(this.difference(event, states));
      return;
    }
    this.clear();
    this.facts = {
      blockSize: event.block_size,
      numBlocks: states.length,
      seats: event.max_num_seqs,
      budget: event.max_num_batched_tokens,
      longest: event.max_model_len,
    };
    this.head = new Pool(states);
    this.view = new Pool(states.slice());
    this.highest = states.findLastIndex((state) => state !== FREE);
    this.add({ ...event, steps: [], arrived: event.requests, ended: [], blocks: [] });
  }

  /** What a snapshot says beyond what is known, as a frame. */
  difference(event, states) {
    const told = new Map(event.tables.map(([key, , blocks]) => [key, blocks]));
    const here = new Set(event.requests.map(({ key }) => key));
    const gone = [...this.alive].filter((key) => !here.has(key));
    return {
      ...event,
      steps: [],
      arrived: event.requests.filter(({ key }) => !this.alive.has(key)),
      ended: gone.map((key) => [key, "unknown"]),
      blocks: [...states.entries()].filter(([block, state]) => this.head.blocks[block] !== state),
      tables: [...new Set([...told.keys(), ...this.head.tables.keys()])].map((key) => [key, 0, told.get(key) ?? []]),
    };
  }

  add(event) {
    this.time = Math.max(this.time, event.t);
    const frame = {
      number: this.firstFrame + this.frames.length,
      t: event.t,
      waiting: event.waiting,
      counts: event.counts,
      queued: event.queued ?? 0,
      lastStep: 0,
      blocks: event.blocks.map(([block, state]) => [block, this.head.blocks[block], state]),
      tables: event.tables.map(([key, index, blocks]) => {
        const before = this.head.tables.get(key) ?? [];
        return [key, before, before.slice(0, index).concat(blocks)];
      }),
    };
    for (const [block, , state] of frame.blocks) if (state !== FREE && block > this.highest) this.highest = block;
    for (const request of event.arrived) this.greet(request);
    const lastRows = lastRowsOf(event);
    for (const [index, step] of event.steps.entries())
      this.addStep(step, frame.number, (key) => lastRows.get(key) < index);
    for (const [key, reason] of event.ended) this.part(key, reason, event.t);
    frame.lastStep = this.lastStep;
    this.frames.push(frame);
    const follows = this.view.at === this.head.at;
    this.head.forward(frame);
    if (follows) this.view.forward(frame);
    this.forget();
  }

  greet({ key, id, choice, arrival, prompt, limit, length, cached, preemptions }) {
    this.requests.set(key, {
      key,
      id,
      choice,
      arrival,
      prompt,
      limit,
      length,
      cached,
      preemptions,
      lane: this.takeLane(),
      firstRow: null,
      firstToken: null,
      lastToken: null,
      lastStep: -1,
      ended: null,
      reason: null,
      lost: preemptions > 0,
    });
    this.alive.add(key);
  }

  part(key, reason, t) {
    const request = this.requests.get(key);
    if (!request) return;
    Object.assign(request, { ended: t, reason });
    this.alive.delete(key);
    this.lanes[request.lane] = { step: this.lastStep + LANE_REST, t: t + LANE_REST_S };
  }

  takeLane() {
    let lane = this.lanes.findIndex(({ step, t }) => step <= this.lastStep || t <= this.time);
    if (lane < 0) lane = this.lanes.length;
    this.lanes[lane] = { step: Infinity, t: Infinity };
    return lane;
  }

  /** One step; `hasEnded` says of a key whether its request had ended before it. */
  addStep({ step, t, seconds, rows, preempted }, frame, hasEnded) {
    const number = this.firstStep + this.steps.length;
    const second = this.second(t);
    const served = new Set();
    for (const [key, kind, tokens, position, length, cached, drew] of rows) {
      served.add(key);
      const request = this.requests.get(key);
      if (!request) continue;
      if (request.firstRow === null) Object.assign(request, { firstRow: t - seconds, cached });
      request.length = length;
      request.lastStep = number;
      request.lost = false;
      if (kind === PREFILL) second.prompt += tokens;
      if (drew) this.timeToken(request, t, second);
    }
    for (const key of preempted) {
      const request = this.requests.get(key);
      if (request) {
        request.preemptions += 1;
        request.lost = true;
      }
    }
    const idle = [];
    for (const key of this.alive) {
      if (idle.length >= MOST_IDLE) break;
      const request = this.requests.get(key);
      if (!served.has(key) && request.arrival <= t && !hasEnded(key))
        idle.push([key, request.lost ? PREEMPTED : WAITING]);
    }
    this.steps.push({
      number,
      step,
      t,
      seconds,
      rows,
      idle,
      preempted,
      frame,
      tokens: rows.reduce((sum, row) => sum + row[2], 0),
    });
  }

  timeToken(request, t, second) {
    second.out += 1;
    if (request.lastToken !== null) second.itl.push(t - request.lastToken);
    else if (request.length <= request.prompt + 1) {
      request.firstToken = t;
      second.ttft.push(t - request.arrival);
    }
    request.lastToken = t;
  }

  second(t) {
    const at = Math.floor(t);
    let last = this.seconds.at(-1);
    if (!last || last.at < at) this.seconds.push((last = { at, out: 0, prompt: 0, ttft: [], itl: [] }));
    return last;
  }

  /** Drop what is older than anyone can go back to. */
  forget() {
    const oldest = this.time - KEEP_S;
    let frames = Math.max(0, this.frames.length - KEEP_FRAMES);
    while (frames < this.frames.length - 1 && this.frames[frames].t < oldest) frames++;
    if (frames < 100 && this.steps.length < KEEP_STEPS + 100) return;
    while (this.steps.length - this.countSteps(frames) > KEEP_STEPS) frames++;
    while (this.view.at < this.firstFrame + frames) this.view.forward(this.frames[this.view.at + 1 - this.firstFrame]);
    const steps = this.countSteps(frames);
    this.frames.splice(0, frames);
    this.firstFrame += frames;
    this.steps.splice(0, steps);
    this.firstStep += steps;
    this.seconds = this.seconds.filter(({ at }) => at >= oldest);
    for (const [key, { ended, lastStep }] of this.requests) {
      if (ended !== null && ended < this.frames[0].t && lastStep < this.firstStep) this.requests.delete(key);
    }
  }

  /** How many of the steps kept belong to the oldest so many frames. */
  countSteps(frames) {
    const next = this.firstFrame + frames;
    const index = this.steps.findIndex(({ frame }) => frame >= next);
    return index < 0 ? this.steps.length : index;
  }

  /** Number of the newest step; one less than firstStep while there is none. */
  get lastStep() {
    return this.firstStep + this.steps.length - 1;
  }
  get newest() {
    return this.frames.at(-1);
  }
  step(number) {
    return this.steps[number - this.firstStep];
  }

  /** Move the view to the frame of a step, or to the newest frame. Returns that frame. */
  show(number = null) {
    const step = number === null ? null : this.step(number);
    const target = step && number < this.lastStep ? step.frame : this.newest.number;
    while (this.view.at < target) this.view.forward(this.frames[this.view.at + 1 - this.firstFrame]);
    while (this.view.at > target) this.view.backward(this.frames[this.view.at - this.firstFrame]);
    return this.frames[target - this.firstFrame];
  }
}

/** For each request that ends in a frame, the index of the last step there that it has a row in. */
function lastRowsOf({ steps, ended }) {
  const ending = new Set(ended.map(([key]) => key));
  const last = new Map();
  for (const [index, { rows }] of steps.entries()) for (const [key] of rows) if (ending.has(key)) last.set(key, index);
  return last;
}
