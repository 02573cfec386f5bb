// Keys, selection of two runs, light and dark mode, and updates of runs in progress.
// Only textContent and attributes are written, so text from a log is never interpreted as markup.
"use strict";

const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];

// ---------------------------------------------------------------- light and dark

function dark() {
  const kept = document.documentElement.dataset.theme;
  return kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function switchTheme() {
  const next = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
}

// ---------------------------------------------------------------- lists

const rows = all("li.row");
let at = -1;

function select(place) {
  if (!rows.length) return;
  rows[at]?.classList.remove("selected");
  at = Math.max(0, Math.min(rows.length - 1, place));
  rows[at].classList.add("selected");
  rows[at].querySelector("a.main").focus({ preventScroll: true });
  rows[at].scrollIntoView({ block: "nearest" });
}

rows.forEach((row, place) => {
  row.addEventListener("focusin", () => {
    rows[at]?.classList.remove("selected");
    at = place;
    row.classList.add("selected");
  });
  // the whole line is a link, but its text can be selected
  row.addEventListener("click", (event) => {
    if (event.target.closest("a, label, input, button") || String(getSelection())) return;
    row.querySelector("a.main").click();
  });
});

const follow = (rel) => one(`main a[rel=${rel}], header a[rel=${rel}]`)?.click();

// ---------------------------------------------------------------- two runs

const boxes = all("#compare input[type=checkbox]");

function picked() {
  const chosen = boxes.filter((box) => box.checked);
  const dock = one("#dock");
  if (!dock) return;
  dock.classList.toggle("ready", chosen.length === 2);
  dock.querySelector("button").disabled = chosen.length !== 2;
  one("#picked").textContent =
    chosen.length === 0 ? "Select two runs of a bench to compare them item by item."
    : chosen.length === 1 ? "One run is selected; select another of the same bench."
    : chosen.length === 2 ? "Two runs are selected."
    : `${chosen.length} runs are selected; a comparison needs two.`;
}

boxes.forEach((box) => box.addEventListener("change", picked));
picked();

// ---------------------------------------------------------------- keys

const help = one("#keys");

const KEYS = {
  "?": () => (help.open ? help.close() : help.showModal()),
  "/": () => one("input[type=search]")?.select(),
  t: switchTheme,
  g: () => location.assign("/"),
  u: () => follow("up"),
  j: () => (one(".steps") ? follow("next") : select(at + 1)),
  k: () => (one(".steps") ? follow("prev") : select(at < 0 ? 0 : at - 1)),
  o: () => rows[at]?.querySelector("a.main").click(),
  x: () => rows[at]?.querySelector("input[type=checkbox]")?.click(),
  c: () => one("#dock.ready button")?.click(),
  ArrowRight: () => follow("next"),
  ArrowLeft: () => follow("prev"),
};
if (!one(".steps")) {
  KEYS.ArrowDown = KEYS.j;
  KEYS.ArrowUp = KEYS.k;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  if (help.open && event.key !== "?") return;
  // in a scrollable text, arrow keys scroll
  if (event.key.startsWith("Arrow") && event.target.closest("pre")) return;
  const act = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (act) {
    event.preventDefault();
    act();
  }
});

one("#theme").addEventListener("click", switchTheme);
one("#help").addEventListener("click", KEYS["?"]);

// ---------------------------------------------------------------- the audit, which takes longer than the page itself

async function audit(link) {
  try {
    const answer = await fetch(link.dataset.audit);
    if (!answer.ok) return; // the link stays; its page shows the error
    const { verdict, flags, why } = await answer.json();
    link.textContent = flags.length ? `${verdict}: ${flags.join(", ")}` : verdict;
    link.title = why.join("\n");
    link.dataset.verdict = verdict;
  } catch {
    // the viewer was stopped
  }
}

all("[data-audit]").forEach(audit);

// ---------------------------------------------------------------- runs in progress

const polled = one("[data-poll]");

function show(run) {
  const place = one(`[data-run="${CSS.escape(run.id)}"]`);
  if (!place) return false;
  for (const [name, text] of Object.entries(run.cells)) {
    const cell = place.querySelector(`[data-cell="${name}"]`);
    if (cell && cell.textContent !== text) cell.textContent = text;
    if (cell && name === "state") cell.dataset.state = text;
  }
  return true;
}

function news(text, href) {
  const place = one("#news");
  if (!place || place.textContent === text) return;
  const link = document.createElement("a");
  link.href = href;
  link.textContent = text;
  place.replaceChildren(...(text ? [link] : []));
}

async function poll() {
  let wait = 5000;
  try {
    if (document.visibilityState === "visible") {
      const answer = await fetch(polled.dataset.poll);
      const { runs } = await answer.json();
      const known = runs.filter(show);
      if (runs.some((run) => run.state === "running")) wait = 2000;
      const whole = polled.dataset.run ? runs.find((run) => run.id === polled.dataset.run) : null;
      const more = whole ? whole.n - Number(polled.dataset.n) : 0;
      if (more > 0) news(`${more} new sample${more === 1 ? "" : "s"}: show`, location.href);
      if (!whole && !one("input[type=search]").value && known.length < runs.length) {
        news(`${runs.length - known.length} new run${runs.length - known.length === 1 ? "" : "s"}: show`, "/");
      }
    }
  } catch {
    wait = 10000; // the viewer was stopped, or a log is temporarily unreadable
  }
  setTimeout(poll, wait);
}

if (polled) setTimeout(poll, 2000);
