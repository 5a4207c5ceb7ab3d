// The map of KV blocks: a cell for each, coloured by its state; a shared block carries the number of its holders.
//
// Large pools are drawn up to the highest block that was ever in use; if even those are too many, a cell stands for
// several. Only cells that look different from before are drawn again.

import { CACHED, FREE } from "./record.js";
import { fit, point, speak, tell } from "./dom.js";
import { colour, font } from "./theme.js";
import { nameOf, plural, whole } from "./words.js";

const LARGEST = 32;
const SMALLEST = 4;
const ALL = 256;
// How a cell was drawn: one of these in the low two bits, its state above them.
const PLAIN = 0;
const MARKED = 1;
const FADED = 2;
const NOTHING = -99;

export class BlockMap {
  constructor(canvas, told, show) {
    Object.assign(this, { canvas, told, show, cursor: null, drawn: null, pointer: null });
    canvas.addEventListener("pointermove", (event) => this.hover(event));
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      point("");
      this.focus(null);
    });
    canvas.addEventListener("click", (event) => this.pin(this.at(event.offsetX, event.offsetY)));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.focus(null));
    addEventListener("themechange", () => {
      this.drawn = null;
    });
    show.add(() => this.draw());
  }

  get pool() {
    return this.show.record.view;
  }

  /** How many blocks are drawn, how many of them in one cell, and how large a cell is. */
  layout(width, height) {
    const { record } = this.show;
    const total = record.facts.numBlocks;
    let count = ALL;
    while (count <= record.highest) count *= 2;
    if (count * 2 >= total) count = total;
    let size = LARGEST,
      group = 1;
    const fits = () => Math.floor(width / size) * Math.floor(height / size) * group >= count;
    while (!fits() && size > SMALLEST) size -= size > 8 ? 1 : 0.5;
    while (!fits()) group++;
    return { count, group, size, columns: Math.floor(width / size), cells: Math.ceil(count / group) };
  }

  draw() {
    if (!this.pool) return;
    const { context, width, height, resized } = fit(this.canvas);
    if (!width) return;
    const grid = this.layout(width, height);
    const same =
      !resized &&
      this.drawn &&
      this.grid &&
      ["count", "group", "size", "columns"].every((name) => grid[name] === this.grid[name]);
    this.grid = grid;
    if (!same) {
      context.clearRect(0, 0, width, height);
      this.drawn = new Int32Array(grid.cells).fill(NOTHING);
    }
    const table = this.show.marked === null ? null : new Set(this.pool.tables.get(this.show.marked) ?? []);
    for (let cell = 0; cell < grid.cells; cell++) {
      const looks = (this.state(cell) << 2) | (table?.size ? (this.isIn(cell, table) ? MARKED : FADED) : PLAIN);
      if (looks === this.drawn[cell]) continue;
      this.drawn[cell] = looks;
      this.drawCell(context, cell, looks);
    }
    if (this.cursor !== null) this.drawCursor(context);
    this.tellAll();
    if (this.pointer) this.hover(this.pointer); // The block under it may have changed.
  }

  /** Of several blocks in a cell, the state that most of them have, the higher one among equals. */
  state(cell) {
    const { group, count } = this.grid;
    const { blocks } = this.pool;
    if (group === 1) return blocks[cell];
    const counts = new Map();
    for (let block = cell * group; block < Math.min(count, (cell + 1) * group); block++)
      counts.set(blocks[block], (counts.get(blocks[block]) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || b[0] - a[0])[0][0];
  }

  isIn(cell, table) {
    for (let block = cell * this.grid.group; block < (cell + 1) * this.grid.group; block++)
      if (table.has(block)) return true;
    return false;
  }

  place(cell) {
    const { columns, size } = this.grid;
    return [(cell % columns) * size, Math.floor(cell / columns) * size];
  }

  drawCell(context, cell, looks) {
    const { size } = this.grid;
    const [x, y] = this.place(cell);
    const gap = size > 9 ? 2 : 1;
    const side = size - gap;
    const state = looks >> 2;
    const way = looks & 3;
    context.clearRect(x, y, size, size);
    context.globalAlpha = way === FADED ? 0.28 : 1;
    context.fillStyle = colour(state > 1 ? "shared" : state === 1 ? "held" : state === CACHED ? "cached" : "free");
    context.beginPath();
    context.roundRect(x, y, side, side, size > 9 ? 3 : 1);
    context.fill();
    if (state > 1) this.drawHolders(context, state, x, y, side);
    if (state === CACHED && size > 7) this.drawEdge(context, x, y, side, "edge", 1);
    context.globalAlpha = 1;
    if (way === MARKED) this.drawEdge(context, x, y, side, "ink", size > 9 ? 2 : 1);
  }

  drawEdge(context, x, y, side, name, wide) {
    context.strokeStyle = colour(name);
    context.lineWidth = wide;
    context.beginPath();
    context.roundRect(x + wide / 2, y + wide / 2, side - wide, side - wide, side > 7 ? 2.5 : 1);
    context.stroke();
  }

  /** How many share a block: a number where it is legible, otherwise a dot. */
  drawHolders(context, holders, x, y, side) {
    context.fillStyle = colour("on-shared");
    if (side < 11) {
      const dot = Math.max(1, side / 3);
      context.fillRect(x + (side - dot) / 2, y + (side - dot) / 2, dot, dot);
      return;
    }
    const text = holders > 99 ? "99+" : String(holders);
    const high = Math.min(12, side / (text.length > 2 ? 2 : 1.65));
    context.font = `600 ${high}px ${font("sans")}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, x + side / 2, y + side / 2 + 0.5);
  }

  drawCursor(context) {
    const [x, y] = this.place(Math.floor(this.cursor / this.grid.group));
    const side = this.grid.size - 1;
    context.strokeStyle = colour("accent");
    context.lineWidth = 2;
    context.strokeRect(x, y, side, side);
    this.drawn[Math.floor(this.cursor / this.grid.group)] = NOTHING;
  }

  tellAll() {
    const { facts } = this.show.record;
    const { blocks } = this.pool;
    const counts = { held: 0, shared: 0, cached: 0 };
    for (const state of blocks) {
      if (state > 0) counts.held++;
      if (state > 1) counts.shared++;
      if (state === CACHED) counts.cached++;
    }
    const parts = [
      `${whole(counts.held)} held${counts.shared ? ` (${whole(counts.shared)} shared)` : ""}`,
      `${whole(counts.cached)} cached`,
      `${whole(facts.numBlocks - counts.held - counts.cached)} free`,
    ];
    if (this.grid.group > 1) parts.push(`a cell is ${this.grid.group} blocks`);
    if (this.grid.count < facts.numBlocks)
      parts.push(`${whole(facts.numBlocks - this.grid.count)} never used are not drawn`);
    tell(this.told, parts.join(" · "));
    this.told.title = `${this.told.textContent}; a block holds ${facts.blockSize} tokens`;
  }

  at(x, y) {
    const { columns, size, cells, group, count } = this.grid ?? {};
    const column = Math.floor(x / size);
    const cell = Math.floor(y / size) * columns + column;
    return column < columns && cell < cells ? Math.min(cell * group, count - 1) : null;
  }

  hover(event) {
    if (!this.pool) return;
    this.pointer = event;
    const block = this.at(event.offsetX, event.offsetY);
    point(block === null ? "" : this.tellBlock(block), event.clientX, event.clientY);
    this.show.hover(block === null ? null : this.holder(block));
  }

  /** One of the requests that hold a block; of several the one that is marked already, or the oldest. */
  holder(block) {
    const holders = this.pool.holders(block);
    return holders.includes(this.show.marked) ? this.show.marked : (holders[0] ?? null);
  }

  pin(block) {
    this.show.pin(block === null || !this.pool ? null : this.holder(block));
  }

  tellBlock(block) {
    const state = this.pool.blocks[block];
    const name = `block ${whole(block)}`;
    if (state === FREE) return `${name}: free`;
    if (state === CACHED) return `${name}: cached; held by nobody, kept for a prompt that begins alike`;
    const holders = this.pool.holders(block);
    const size = this.show.record.facts.blockSize;
    const place = holders.length ? this.pool.tables.get(holders[0]).indexOf(block) : -1;
    const span = place < 0 ? "" : `\ntokens ${whole(place * size)} to ${whole((place + 1) * size - 1)}`;
    const names = holders.slice(0, 8).map(nameOf).join(", ") + (holders.length > 8 ? " and others" : "");
    const held = state > 1 ? `shared by ${plural(state, "request")}` : "held";
    return `${name}: ${held}${names ? ` (${names})` : ""}${span}`;
  }

  focus(block) {
    if (this.cursor !== null && this.drawn) this.drawn[Math.floor(this.cursor / this.grid.group)] = NOTHING;
    this.cursor = block;
    this.show.hover(block === null || !this.pool ? null : this.holder(block));
    this.show.changed();
  }

  key(event) {
    if (!this.pool || !this.grid) return;
    const { group, columns, count } = this.grid;
    const moves = { ArrowRight: group, ArrowLeft: -group, ArrowDown: group * columns, ArrowUp: -group * columns };
    if (event.key === "Enter" && this.cursor !== null) this.pin(this.cursor);
    else if (event.key in moves) {
      const next = this.cursor === null ? 0 : this.cursor + moves[event.key];
      if (next >= 0 && next < count) this.focus(next);
    } else return;
    event.preventDefault();
    event.stopPropagation();
    if (this.cursor !== null) speak(this.tellBlock(this.cursor));
  }
}
