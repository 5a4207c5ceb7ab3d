// A little Markdown to elements: paragraphs, lists, code, bold and emphasis. No links, no images, no HTML.
//
// Text becomes text nodes and nothing else, so whatever a model writes cannot be anything but text on this page.

import { make } from "./dom.js";

const INLINE = /(`[^`\n]+`)|\*\*([^*\n]+)\*\*|(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])/g;
const BULLET = /^\s*[-*+]\s+/;
const NUMBER = /^\s*\d{1,3}[.)]\s+/;
const FENCE = /^\s*```/;

/** Elements for a text that may still be growing. */
export function render(text) {
  const blocks = [];
  const lines = text.split("\n");
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const begin = at;
    if (FENCE.test(lines[at])) {
      at++;
      while (at < lines.length && !FENCE.test(lines[at])) at++;
      blocks.push(make("pre", {}, make("code", {}, lines.slice(begin + 1, at).join("\n"))));
      at++;
      continue;
    }
    const mark = [BULLET, NUMBER].find((each) => each.test(lines[at]));
    const goesOn = mark
      ? (line) => mark.test(line)
      : (line) => line.trim() && !FENCE.test(line) && !BULLET.test(line) && !NUMBER.test(line);
    while (at < lines.length && goesOn(lines[at])) at++;
    const own = lines.slice(begin, at);
    if (mark)
      blocks.push(
        make(
          mark === BULLET ? "ul" : "ol",
          {},
          ...own.map((line) => make("li", {}, ...inline(line.replace(mark, "")))),
        ),
      );
    else
      blocks.push(
        make("p", {}, ...own.flatMap((line, index) => (index ? [make("br"), ...inline(line)] : inline(line)))),
      );
  }
  return blocks;
}

function inline(line) {
  const parts = [];
  let at = 0;
  for (const match of line.matchAll(INLINE)) {
    parts.push(line.slice(at, match.index));
    if (match[1]) parts.push(make("code", {}, match[1].slice(1, -1)));
    else parts.push(make(match[2] ? "strong" : "em", {}, match[2] ?? match[3]));
    at = match.index + match[0].length;
  }
  return [...parts, line.slice(at)];
}
