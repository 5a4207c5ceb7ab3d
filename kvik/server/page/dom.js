// Small helpers for elements and canvases. Text is only ever set as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** An element with properties, and children that are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set an element's text if it is another one, so that nothing is laid out for nothing. */
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A canvas that fills its box in device pixels. Returns its context, scaled to CSS pixels, and its size. */
export function fit(canvas) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const scale = devicePixelRatio || 1;
  const wide = Math.round(width * scale);
  const high = Math.round(height * scale);
  const resized = canvas.width !== wide || canvas.height !== high;
  if (resized) Object.assign(canvas, { width: wide, height: high });
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return { context, width, height, resized };
}

const tip = $("tip");

/** Show the tooltip with this text near a place in the window, inside the window; hide it without a text. */
export function point(text, x = 0, y = 0) {
  tip.hidden = !text;
  if (!text) return;
  tell(tip, text);
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
  const top = Math.min(Math.max(6, y + 16), innerHeight - height - 6);
  tip.style.transform = `translate(${Math.max(6, Math.round(left))}px, ${Math.round(top)}px)`;
}

/** Say something to those who listen instead of looking. */
export function speak(text) {
  tell($("spoken"), text);
}
