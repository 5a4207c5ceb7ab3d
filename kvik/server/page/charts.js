// The small charts: throughput, time to first token, time between tokens, over the last two minutes of work.
//
// Their right edge is the newest event, not the clock on the wall, so that they stand still when the engine does.

import { fit, make, point, tell } from "./dom.js";
import { buckets, niceCeiling, percentile, rate, samples } from "./measure.js";
import { colour, font } from "./theme.js";
import { brief, duration } from "./words.js";

// Seconds that are shown, and that go into one point; the first that holds all there is.
const SPANS = [
  [30, 1],
  [60, 1],
  [120, 2],
];
const RECENT = 60;
const SCALE = 44;

/** What each chart shows: its lines as functions of a bucket, and how values are written. */
const CHARTS = [
  {
    title: "Throughput",
    colours: ["decode", "prefill"],
    help: "Tokens generated, and prompt tokens computed, in a second",
    names: ["out", "prompt"],
    write: (value) => brief(value),
    unit: "tok/s",
    lines: [({ out, time }) => out / time, ({ prompt, time }) => prompt / time],
    logarithmic: true,
  },
  {
    title: "First token",
    colours: ["ink", "edge"],
    help: "TTFT: from a request's arrival in the engine to its first token; of the last minute",
    names: ["p50", "p95"],
    write: duration,
    lines: [(bucket) => percentile(bucket.ttft, 0.5), (bucket) => percentile(bucket.ttft, 0.95)],
  },
  {
    title: "Between tokens",
    colours: ["ink", "edge"],
    help: "ITL: from a token to the next one of the same answer; of the last minute",
    names: ["p50", "p95"],
    write: duration,
    lines: [(bucket) => percentile(bucket.itl, 0.5), (bucket) => percentile(bucket.itl, 0.95)],
  },
];

export class Charts {
  constructor(box, show) {
    this.show = show;
    this.charts = CHARTS.map((chart) => this.build(box, chart));
    show.add(() => this.draw());
  }

  build(box, chart) {
    const values = chart.names.map((name, index) => {
      const value = make("b", {}, "–");
      return { value, element: make("span", {}, make("i", { className: `c-${chart.colours[index]}` }), name, value) };
    });
    const canvas = make("canvas", { role: "img" });
    canvas.addEventListener("pointermove", (event) => this.look(chart, event));
    canvas.addEventListener("pointerleave", () => point(""));
    box.append(
      make(
        "section",
        { className: "card chart" },
        make("h3", { title: chart.help }, make("em", {}, chart.title), ...values.map(({ element }) => element)),
        canvas,
      ),
    );
    return { ...chart, canvas, values: values.map(({ value }) => value), series: [] };
  }

  draw() {
    const { record } = this.show;
    if (!record.facts) return;
    const { seconds } = record;
    const end = this.show.time;
    const age = end - (seconds[0]?.at ?? end);
    const [span, width] = SPANS.find(([most]) => most >= age) ?? SPANS.at(-1);
    this.width = width;
    const found = buckets(seconds, end, span, width);
    for (const chart of this.charts) {
      chart.series = chart.lines.map((line) =>
        found.map((bucket) => (bucket ? line(bucket) : chart.logarithmic ? 0 : null)),
      );
      this.drawChart(chart);
    }
    const [throughput, ttft, itl] = this.charts;
    const busy = (record.show(this.show.cursor).counts.running ?? 0) > 0;
    for (const [index, kind] of ["out", "prompt"].entries())
      tell(throughput.values[index], brief(busy ? rate(seconds, end, 4, kind) : 0));
    for (const [chart, kind] of [
      [ttft, "ttft"],
      [itl, "itl"],
    ]) {
      const values = samples(seconds, end, RECENT, kind);
      for (const [index, share] of [0.5, 0.95].entries())
        tell(chart.values[index], duration(percentile(values, share)));
      const [median, high] = chart.values.map((value) => value.textContent);
      chart.canvas.ariaLabel = `${chart.title}: median ${median}, 95th percentile ${high}`;
    }
    throughput.canvas.ariaLabel = `Throughput: ${throughput.values[0].textContent} tokens a second out`;
  }

  drawChart({ canvas, series, write, colours, logarithmic }) {
    const { context, width, height } = fit(canvas);
    context.clearRect(0, 0, width, height);
    if (!width) return;
    const most = Math.max(0, ...series.flat().filter((value) => value !== null));
    const { ticks, share } = logarithmic ? decades(most) : halves(most);
    const x = (index) => SCALE + ((width - SCALE - 4) * index) / (series[0].length - 1);
    const y = (value) => height - 2 - share(value) * (height - 8);
    context.font = `10.5px ${font("sans")}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const tick of ticks) {
      context.fillStyle = colour("line");
      context.fillRect(SCALE, Math.round(y(tick)) - 0.5, width - SCALE - 4, tick ? 0.5 : 1);
      context.fillStyle = colour("soft");
      if (!tick) context.fillText("0", SCALE - 7, y(0) - 3);
      else if (most > 0 && tick === ticks.at(-1)) context.fillText(write(tick), SCALE - 7, y(tick) + 1);
    }
    for (const [index, values] of [...series.entries()].reverse())
      drawLine(context, values, x, y, colour(colours[index]), logarithmic && !index ? y(0) : null);
  }

  look(chart, event) {
    const own = this.charts.find(({ title }) => title === chart.title);
    const count = own.series[0]?.length;
    if (!count) return;
    const share = (event.offsetX - SCALE) / (own.canvas.clientWidth - SCALE - 4);
    const index = Math.round(share * (count - 1));
    if (index < 0 || index >= count) {
      point("");
      return;
    }
    const values = chart.names.map(
      (name, line) => `${name} ${own.series[line][index] === null ? "–" : chart.write(own.series[line][index])}`,
    );
    const ago = Math.round((count - 1 - index) * this.width);
    point(
      `${values.join(" · ")}${chart.unit ? ` ${chart.unit}` : ""}\n${ago ? `${ago} s before` : "now"}`,
      event.clientX,
      event.clientY,
    );
  }
}

/** A scale from 0 to a round number, with a line in the middle. */
function halves(most) {
  const top = niceCeiling(most);
  return { ticks: [0, top / 2, top], share: (value) => value / top };
}

/** A scale on which each line stands for ten times the one below it. */
function decades(most) {
  const count = Math.max(1, Math.ceil(Math.log10(1 + most)));
  const ticks = [0, ...Array.from({ length: count }, (_, power) => 10 ** (power + 1))];
  return { ticks, share: (value) => Math.log10(1 + value) / Math.log10(1 + ticks.at(-1)) };
}

/** A line through what was measured, broken where nothing was; a lone value is a dot. It is filled down to `floor`. */
function drawLine(context, values, x, y, stroke, floor) {
  context.strokeStyle = context.fillStyle = stroke;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  for (let begin = 0; begin < values.length; begin++) {
    if (values[begin] === null) continue;
    let end = begin;
    while (end + 1 < values.length && values[end + 1] !== null) end++;
    context.beginPath();
    for (let index = begin; index <= end; index++) context.lineTo(x(index), y(values[index]));
    if (begin === end) {
      context.arc(x(begin), y(values[begin]), 1.8, 0, 7);
      context.fill();
    } else context.stroke();
    if (floor !== null && end > begin) {
      context.lineTo(x(end), floor);
      context.lineTo(x(begin), floor);
      context.globalAlpha = 0.13;
      context.fill();
      context.globalAlpha = 1;
    }
    begin = end;
  }
}
