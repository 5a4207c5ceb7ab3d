// Calls to this server and to nobody else: JSON, streams of server-sent events, and the API key if it asks for one.
//
// The key is kept in this module, so in the memory of this tab, and goes nowhere but into the header Authorization.

let key = null;
let askForKey = null; // resolves once the user has given a key

/** What went wrong, as the server says it. */
export class CallError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

/** `ask` shows the field for the key and resolves when it was given. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}
export function useKey(text) {
  key = text;
}

async function call(path, { body, signal, headers = {}, patient = true } = {}) {
  const options = { signal, headers: { ...headers }, cache: "no-store", credentials: "omit" };
  if (key !== null) options.headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(0, "The server cannot be reached.");
  }
  if (reply.status === 401 && patient && askForKey) {
    await askForKey(key !== null);
    return call(path, { body, signal, headers, patient });
  }
  if (!reply.ok) throw await failure(reply);
  return reply;
}

async function failure(reply) {
  let message = `The server answered with status ${reply.status}.`;
  try {
    message = (await reply.json()).error?.message ?? message;
  } catch {
    /* Not JSON: the status says enough. */
  }
  return new CallError(reply.status, message, Number(reply.headers.get("retry-after")) || null);
}

/** A reply as JSON. */
export async function get(path, options) {
  return (await call(path, options)).json();
}

/** What a path answers, whatever the status, without asking for a key; null if the server cannot be reached, undefined
    if there was no answer in time, as when the browser has no connection left. */
export async function ask(path, ms) {
  try {
    return await (
      await fetch(path, { cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(ms) })
    ).json();
  } catch (error) {
    return error.name === "TimeoutError" ? undefined : null;
  }
}

/** The data of each event of a stream, as text. Ends with the stream. */
export async function* stream(path, options) {
  const reply = await call(path, options);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(line.startsWith("data: ") ? 6 : 5)).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The parsed chunks of a streamed answer. Throws CallError for an error in the middle. */
export async function* answer(path, body, { signal, id }) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  for await (const data of stream(path, { body: asked, signal, headers: { "X-Request-Id": id } })) {
    if (data === "[DONE]") continue; // The reply ends by itself; leaving early would look as if nobody wanted it.
    const chunk = JSON.parse(data);
    if (chunk.error) throw new CallError(0, chunk.error.message);
    yield chunk;
  }
}
