// Numbers made of the record: percentiles, rates, and the series that the charts draw. Pure functions.

/** The p-th percentile (0..1) of unsorted values, between neighbours by distance; null of none. */
export function percentile(values, p) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort();
  const place = (sorted.length - 1) * p;
  const low = Math.floor(place);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
}

const LEAST_S = 0.25; // a bucket that has just begun is not divided by less

/** Buckets of `width` whole seconds over `span` seconds, the last with `end` in it; null where nothing was measured. */
export function buckets(seconds, end, span, width) {
  const last = Math.floor(end / width);
  const found = Array(Math.round(span / width)).fill(null);
  for (const second of seconds) {
    const index = found.length - 1 - (last - Math.floor(second.at / width));
    if (index < 0 || index >= found.length) continue;
    const time = index < found.length - 1 ? width : Math.max(LEAST_S, end - last * width);
    const bucket = (found[index] ??= { time, out: 0, prompt: 0, ttft: [], itl: [] });
    bucket.out += second.out;
    bucket.prompt += second.prompt;
    bucket.ttft.push(...second.ttft);
    bucket.itl.push(...second.itl);
  }
  return found;
}

/** All samples of one kind in the `span` seconds before `end`. */
export function samples(seconds, end, span, kind) {
  return seconds.filter(({ at }) => at > end - span && at <= end).flatMap((second) => second[kind]);
}

/** Tokens per second over the last `span` seconds, or since work began in them. */
export function rate(seconds, end, span, kind) {
  const recent = seconds.filter(({ at }) => at > end - span && at <= end);
  const begin = recent.find(({ out, prompt }) => out || prompt)?.at;
  if (begin === undefined) return 0;
  return recent.reduce((sum, second) => sum + second[kind], 0) / Math.max(LEAST_S, end - begin);
}

/** The least of 1, 2, 5, 10, 20, .. times a power of ten that is not below a value: where a scale can end. */
export function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((limit) => limit >= value * 0.999);
}
