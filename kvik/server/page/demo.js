// The demo load: a few waves of questions that begin with the same long text, so that a stranger sees what batching,
// chunked prefill and prefix sharing look like.

import { Answer, newId, tellAnswer } from "./answer.js";
import { answer, get } from "./api.js";
import { make, tell } from "./dom.js";
import { render } from "./markdown.js";

const IN_WAVE = 8;
const WAVE_MS = 2000;
const TRIES = 5;
const LEAST_TOKENS = 16;
const MOST_TOKENS = 96;
const PREFIX =
  "You explain how language models are served to people who watch an engine at work for the first time. Answer in " +
  "one or two plain sentences. The engine works in steps. In each step it computes some tokens of many requests at " +
  "once, which is called a batch. A request begins with its prompt: the engine computes all tokens of it, in chunks " +
  "if it is long, and this is called prefill. Then it draws one token of the answer in each step, and this is " +
  "called decode. What was computed of earlier tokens is kept in the KV cache, which is divided into blocks of " +
  "equal size. Requests whose prompts begin alike share the blocks of that beginning, and blocks that nobody needs " +
  "any more are kept as long as there is room, because the next prompt may begin like the last. When no block is " +
  "left, the request that came last gives up its own and waits until others have ended. A request that waits has no " +
  "seat, or finds no blocks, or stands in line behind others. The time to the first token is how long a user looks " +
  "at nothing; the time between tokens is how fast the answer reads.";
const QUESTIONS = [
  "What is continuous batching?",
  "What is the KV cache?",
  "What does prefix caching do?",
  "What is chunked prefill?",
  "What is preemption?",
  "What is a KV block?",
  "What is time to first token?",
  "Why does a request wait?",
  "What is paged attention?",
  "What is a decode step?",
  "Tell me a short story about a lighthouse.",
  "What limits the speed of decoding?",
  "What is a token?",
  "What is temperature?",
  "What is a batch?",
  "Why are blocks shared?",
  "What is throughput?",
  "What is greedy decoding?",
  "What is a stop string?",
  "Tell me a short story about a cat.",
  "What is quantization?",
  "What is the roofline model?",
  "What is a seed for?",
  "What happens when memory runs out?",
];

/** One question of a wave. All of a wave come in one reply, since browsers hold few connections to a server. */
class Question extends Answer {
  constructor(text, wave, index, changed) {
    super(changed);
    Object.assign(this, { question: text, wave, index });
    this.spoke = new Promise((resolve) => (this.tellSpoke = resolve));
  }

  take(choice) {
    super.take(choice);
    this.tellSpoke();
  }

  end(error) {
    super.end(error);
    this.tellSpoke();
  }

  requestIn(record) {
    return [...record.requests.values()].find(({ id }) => id.includes(this.wave) && id.endsWith(`.${this.index}`));
  }
}

/** A conversation of its own kind: cards of answers instead of turns. */
class Load {
  constructor(model, show, changed) {
    Object.assign(this, {
      title: "Demo load",
      model,
      show,
      changed,
      questions: [],
      elements: new Map(),
      turns: [],
      draft: "",
    });
  }

  get busy() {
    return this.questions.some((question) => question.busy);
  }

  /** One question goes ahead, so that all others find its beginning computed; then they come in waves. */
  async run() {
    const [first, ...others] = QUESTIONS;
    await this.ask([first])[0].spoke;
    for (let at = 0; at < others.length; at += IN_WAVE) {
      if (at) await wait(WAVE_MS);
      this.ask(others.slice(at, at + IN_WAVE));
    }
  }

  /** Begin a wave. Returns its questions. */
  ask(texts) {
    const id = newId();
    const wave = texts.map((text, index) => new Question(text, id, index, this.changed));
    this.questions.push(...wave);
    this.changed();
    this.answer(id, wave);
    return wave;
  }

  /** Many prompts, one stream, whose chunks say which prompt they belong to. Asked again while the server is full. */
  async answer(id, wave) {
    try {
      const prompt = await Promise.all(wave.map(({ question }) => this.encode(question)));
      const sampling = { temperature: 0.8, seed: wave.length, min_tokens: LEAST_TOKENS, max_tokens: MOST_TOKENS };
      const body = { model: this.model(), prompt, ...sampling };
      for (let left = TRIES; left; left--) {
        try {
          await this.stream(id, wave, body);
          break;
        } catch (error) {
          if (error.status !== 503 || left === 1) throw error;
          await wait(1000 * (error.retryAfter ?? 1));
        }
      }
      for (const question of wave) if (question.busy) question.end();
    } catch (error) {
      for (const question of wave) if (question.busy) question.end(error);
    }
  }

  async stream(id, wave, body) {
    for (const question of wave) question.begun = performance.now();
    for await (const { choices } of answer("/v1/completions", body, { id })) {
      for (const choice of choices) {
        wave[choice.index].take(choice);
        if (choice.finish_reason) wave[choice.index].end();
      }
    }
  }

  /** A question as token ids: in the model's chat template, as plain text, or just numbers for a model without text. */
  async encode(question) {
    const messages = [
      { role: "system", content: PREFIX },
      { role: "user", content: question },
    ];
    for (const body of [{ messages }, { prompt: `${PREFIX}\n${question}\n` }]) {
      try {
        return (await get("/tokenize", { body: { model: this.model(), ...body } })).tokens;
      } catch (error) {
        if (error.status !== 400) throw error;
      }
    }
    return asNumbers(PREFIX, question);
  }

  draw(talk) {
    let list = talk.querySelector(".answers");
    if (!list) {
      list = make("div", { className: "answers" });
      talk.replaceChildren(list);
      this.elements.clear();
    }
    for (const question of this.questions) this.drawCard(list, question);
  }

  drawCard(list, question) {
    let parts = this.elements.get(question);
    if (!parts) {
      parts = { text: make("div", { className: "text" }), meta: make("div", { className: "meta" }), drawn: null };
      parts.box = make(
        "article",
        { className: "card-answer said" },
        make("b", {}, question.question),
        parts.text,
        parts.meta,
      );
      parts.box.addEventListener("pointerenter", () =>
        this.show.hover(question.requestIn(this.show.record)?.key ?? null),
      );
      parts.box.addEventListener("pointerleave", () => this.show.hover(null));
      this.elements.set(question, parts);
      list.append(parts.box);
    }
    const { text, busy, error } = question;
    const state = `${text.length} ${busy} ${error}`;
    parts.box.classList.toggle("busy", busy);
    if (state === parts.drawn) return;
    parts.drawn = state;
    if (busy) tell(parts.text, text);
    else parts.text.replaceChildren(...(text ? render(text) : error ? [] : ["(no text)"]));
    if (!busy) parts.meta.replaceChildren(...tellAnswer(question, this.show));
  }
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** A prompt for a model without text: token ids that begin alike and end differently. */
function asNumbers(shared, own) {
  const numbers = (text) => [...text].map((character) => 1 + (character.charCodeAt(0) % 90));
  return [...numbers(shared).slice(0, 256), ...numbers(own)];
}

/** Start the load in a tab of the chat; while it runs, only show it. */
export function startDemo(chat, show) {
  const before = chat.conversations.find((one) => one instanceof Load);
  if (before?.busy) {
    chat.open(before);
    return;
  }
  if (before) chat.conversations.splice(chat.conversations.indexOf(before), 1);
  const load = new Load(chat.model, show, () => chat.changed());
  chat.open(load);
  load.run();
}
