// Conversations: several at once, each with its own answer under way, so that a batch can be seen.

import { Answer, tellAnswer } from "./answer.js";
import { $, make, tell } from "./dom.js";
import { render } from "./markdown.js";
import { plural } from "./words.js";

const NEAR_END = 60;
const SUGGESTIONS = [
  "What is continuous batching?",
  "What does prefix caching do?",
  "Tell me a short story about a lighthouse.",
];

const isAtEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END;

class Conversation {
  constructor(title) {
    Object.assign(this, { title, turns: [], draft: "", answer: null });
  }
  get busy() {
    return this.answer?.busy ?? false;
  }

  /** The messages as the server takes them. A question that failed is left out, with what came of it. */
  messages(system) {
    const failed = (at) => this.turns[at].error || (this.turns[at].role === "user" && this.turns[at + 1]?.error);
    const said = this.turns
      .filter(({ text }, at) => text && !failed(at))
      .map(({ role, text }) => ({ role, content: text }));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }
}

export class Chat {
  /** `model` gives the served model's name; `show` is what the engine's side shows. */
  constructor(model, show) {
    Object.assign(this, { model, show, conversations: [], current: null, due: 0, elements: new WeakMap() });
    $("new-chat").addEventListener("click", () => {
      this.open();
      $("prompt").focus();
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.current.busy) this.submit();
      }
    });
    $("prompt").addEventListener("input", () => this.grow());
    for (const id of ["system", "temperature", "max-tokens"])
      $(id).addEventListener("input", () => this.tellSettings());
    $("tabs").addEventListener("keydown", (event) => this.moveTab(event));
    this.open();
    this.tellSettings();
  }

  open(conversation = new Conversation("New chat")) {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    if (this.current) this.current.draft = $("prompt").value;
    this.current = conversation;
    $("prompt").value = conversation.draft;
    $("talk").replaceChildren();
    this.grow();
    this.changed();
  }

  /** Make the field as high as what is written in it; style.css says when to scroll instead. */
  grow() {
    const field = $("prompt");
    const atEnd = isAtEnd($("talk"));
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
    if (atEnd) $("talk").scrollTop = $("talk").scrollHeight;
  }

  get settings() {
    const number = (id, least, most) => Math.min(Math.max(Number($(id).value) || least, least), most);
    return {
      system: $("system").value.trim(),
      temperature: number("temperature", 0, 2),
      max_tokens: Math.round(number("max-tokens", 1, 1e6)),
    };
  }

  tellSettings() {
    const { system, temperature, max_tokens } = this.settings;
    tell(
      $("settings-told"),
      `temperature ${temperature} · at most ${plural(max_tokens, "token")}${system ? " · system message" : ""}`,
    );
  }

  submit() {
    const text = $("prompt").value.trim();
    if (this.current.busy) {
      this.current.answer.stop();
      return;
    }
    if (!text) return;
    $("prompt").value = "";
    this.grow();
    this.say(text);
  }

  /** Ask in the current conversation. */
  say(text) {
    const conversation = this.current;
    const { system, ...sampling } = this.settings;
    if (!conversation.turns.length) conversation.title = text.length > 24 ? `${text.slice(0, 23).trimEnd()}…` : text;
    conversation.turns.push({ role: "user", text });
    const body = { model: this.model(), messages: conversation.messages(system), ...sampling };
    conversation.answer = Object.assign(new Answer(() => this.changed()), { role: "assistant" });
    conversation.turns.push(conversation.answer);
    conversation.answer.run("/v1/chat/completions", body);
    this.changed();
    $("talk").scrollTop = $("talk").scrollHeight;
  }

  changed() {
    this.due ||= requestAnimationFrame(() => {
      this.due = 0;
      this.draw();
    });
  }

  // Drawing: tabs, then the turns that have changed.

  draw() {
    this.drawTabs();
    const talk = $("talk");
    const { turns, busy } = this.current;
    const atEnd = isAtEnd(talk);
    if (this.current.draw) this.current.draw(talk);
    else if (!turns.length) this.drawWelcome(talk);
    else {
      talk.querySelector(".welcome")?.remove();
      for (const turn of turns) this.drawTurn(talk, turn);
    }
    if (atEnd && !this.current.draw) talk.scrollTop = talk.scrollHeight;
    tell($("send"), busy ? "Stop" : "Send");
    $("send").classList.toggle("stop", busy);
    $("composer").hidden = Boolean(this.current.draw);
  }

  drawTabs() {
    const told = JSON.stringify(this.conversations.map((one) => [one.title, one.busy, one === this.current]));
    if (told === this.toldTabs) return;
    this.toldTabs = told;
    const focused = $("tabs").contains(document.activeElement);
    $("tabs").replaceChildren(
      ...this.conversations.map((one) => {
        const chosen = one === this.current;
        const tab = make(
          "button",
          {
            type: "button",
            role: "tab",
            tabIndex: chosen ? 0 : -1,
            "aria-selected": String(chosen),
            "aria-controls": "talk",
            title: one.title,
          },
          one.busy ? make("i", { title: "an answer is under way" }) : null,
          make("span", {}, one.title),
        );
        tab.addEventListener("click", () => this.open(one));
        return tab;
      }),
    );
    const chosen = $("tabs").querySelector("[aria-selected=true]");
    if (focused) chosen.focus();
    chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  moveTab(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const { length } = this.conversations;
    this.open(this.conversations[(this.conversations.indexOf(this.current) + by + length) % length]);
    this.draw();
    $("tabs").querySelector("[aria-selected=true]").focus();
    event.preventDefault();
  }

  drawWelcome(talk) {
    if (talk.querySelector(".welcome")) return;
    const items = SUGGESTIONS.map((text) => {
      const button = make("button", { type: "button", className: "quiet" }, text);
      button.addEventListener("click", () => this.say(text));
      return make("li", {}, button);
    });
    talk.replaceChildren(
      make(
        "div",
        { className: "welcome" },
        make("h2", {}, "Talk to the model, and watch the engine answer."),
        make(
          "p",
          {},
          "Open several conversations and send in all of them: their tokens share the steps on the engine's side.",
        ),
        make("ul", {}, ...items),
      ),
    );
  }

  drawTurn(talk, turn) {
    let parts = this.elements.get(turn);
    if (!parts) {
      parts = { text: make("div", { className: "text" }), meta: make("div", { className: "meta" }), drawn: null };
      parts.box = make(
        "article",
        { className: `said ${turn.role}`, "aria-label": turn.role === "user" ? "You" : "The model" },
        parts.text,
        turn.role === "user" ? null : parts.meta,
      );
      this.elements.set(turn, parts);
    }
    if (parts.box.parentNode !== talk) talk.append(parts.box);
    if (turn.role === "user") {
      tell(parts.text, turn.text);
      return;
    }
    const state = `${turn.text.length} ${turn.busy} ${turn.error} ${turn.usage}`;
    parts.box.classList.toggle("busy", turn.busy);
    if (parts.drawn === state) return;
    parts.drawn = state;
    parts.text.replaceChildren(...render(turn.text));
    parts.meta.replaceChildren(...tellAnswer(turn, this.show));
  }
}
