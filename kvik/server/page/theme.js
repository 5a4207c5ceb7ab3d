// Light, dark, or as the system: the choice, and the colours that the canvases draw with.

const ICONS = {
  system: "M8 2.2a5.8 5.8 0 1 0 0 11.6V2.2z M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1z",
  light:
    "M8 4.6a3.4 3.4 0 1 1 0 6.8 3.4 3.4 0 0 1 0-6.8zM7.3.8h1.4v2H7.3zM7.3 13.2h1.4v2H7.3zM.8 7.3h2v1.4h-2zM13.2 7.3h2v1.4h-2zM2.4 3.4l1-1 1.4 1.4-1 1zM11.2 12.2l1-1 1.4 1.4-1 1zM2.4 12.6l1.4-1.4 1 1-1.4 1.4zM11.2 3.8l1.4-1.4 1 1-1.4 1.4z",
  dark: "M6.2 1.3a6.9 6.9 0 1 0 8.5 8.5A5.7 5.7 0 0 1 6.2 1.3z",
};
const ORDER = ["system", "light", "dark"];
const KEY = "kvik-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try {
    return localStorage.getItem(KEY) ?? "system";
  } catch {
    return "system";
  }
}

let choice = ORDER.includes(remembered()) ? remembered() : "system";
let colours = {};

function settle() {
  if (choice === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  colours = {};
  dispatchEvent(new Event("themechange"));
}

/** A colour of style.css by its name, as it is at the moment. */
export function colour(name) {
  return (colours[name] ??= resolved(`var(--${name})`));
}

/** A family of fonts of style.css by its name. */
export function font(name) {
  return (colours[`font ${name}`] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
}

function resolved(value) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = value;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Make a button go round the three choices. */
export function startTheme(button) {
  const show = () => {
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 16 16");
    icon.setAttribute("aria-hidden", "true");
    const path = icon.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    path.setAttribute("d", ICONS[choice]);
    path.setAttribute("fill", "currentColor");
    button.replaceChildren(icon);
    button.ariaLabel = button.title = `Theme: ${choice === "system" ? "as the system" : choice}`;
  };
  button.addEventListener("click", () => {
    choice = ORDER[(ORDER.indexOf(choice) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      /* Then it is forgotten with the tab. */
    }
    settle();
    show();
  });
  system.addEventListener("change", settle);
  settle();
  show();
}
