// The page: tabs, light and dark, pictures that are dropped or pasted anywhere, and facts of the server.

import { ask, filesOf, make } from "./api.js";
import * as asking from "./ask.js";
import * as searching from "./search.js";

const at = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];

function choose(tab, focus = false) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    at(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const there = tabs.filter((each) => !each.hidden);
    if (step) choose(there.at((there.indexOf(tab) + step) % there.length), true);
  });
}
const chosen = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true");

at("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

/** A picture that comes from outside goes to the tab that is open. */
function bring(files) {
  if (!files.length) return;
  if (chosen() === at("tab-ask")) asking.take(files[0]);
  else {
    choose(at("tab-search"));
    searching.addPictures(files);
  }
}

let inside = 0; // dragenter and dragleave come for every element on the way
addEventListener("dragenter", () => (at("veil").hidden = ++inside === 0));
addEventListener("dragleave", () => (at("veil").hidden = --inside <= 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  at("veil").hidden = true;
  inside = 0;
  bring(filesOf(event.dataTransfer));
});
addEventListener("paste", (event) => bring(filesOf(event.clipboardData)));
addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea, dialog")) {
    event.preventDefault();
    choose(at("tab-search"));
    at("words").focus();
  }
});

at("draw-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("drawn").textContent = "Drawing, this takes a while…";
  try {
    const answer = await ask("draw", { prompt: at("prompt").value });
    const svg = `data:image/svg+xml;base64,${btoa(answer.svg)}`;
    at("drawing").replaceChildren(make("img", { src: svg, alt: at("prompt").value }));
    at("drawn").textContent = "";
  } catch (error) {
    at("drawn").textContent = error.message;
  }
});

/** Names and values, then groups under their headings. */
function facts(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null);
  const isGroup = ([, value]) => typeof value === "object" && !Array.isArray(value);
  const title = (name) => name.replaceAll("_", " ");
  return [
    ...given.filter((each) => !isGroup(each)).flatMap(([name, value]) =>
      [make("dt", {}, title(name)), make("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))]),
    ...given.filter(isGroup).flatMap(([name, value]) => [make("h2", {}, title(name)), ...facts(value)]),
  ];
}

choose(at("tab-search"));
const about = await ask("about");
at("facts").replaceChildren(...facts(about));
asking.start();
asking.offer(about.verbs ?? []);
at("tab-draw").hidden = !(about.verbs ?? []).includes("draw");
if (about.index) searching.start((file) => {
  choose(at("tab-ask"));
  asking.take(file);
});
else {
  at("tab-search").hidden = true;
  choose(at("tab-ask"));
}
document.body.dataset.ready = "true";
