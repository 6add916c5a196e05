// Search: terms that must or must not be there, results as a grid, one of them large.

import { ask, clock, filesOf, make, percent, pictureOf } from "./api.js";

const PAGE = 40;
const MOST = 1000; // hits of an answer
const at = (id) => document.getElementById(id);
let terms = []; // {text | image | row, thumbnail?, weight}
let hits = [];
let running = null; // the request that is under way
let open = null; // the hit that is shown large

export function start(askAbout) {
  at("query").addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
  at("plus").addEventListener("click", () => addWords(1));
  at("minus").addEventListener("click", () => addWords(-1));
  at("picture").addEventListener("change", (event) => {
    addPictures(filesOf(event.target));
    event.target.value = "";
  });
  at("filters").addEventListener("change", () => look());
  at("more").addEventListener("click", () => look(Math.min(hits.length + PAGE, MOST)));
  at("hits").addEventListener("keydown", walk);
  at("shown-close").addEventListener("click", () => at("shown").close());
  at("shown").addEventListener("close", () => at("stage").replaceChildren());
  at("shown-like").addEventListener("click", () => like(open, 1));
  at("shown-unlike").addEventListener("click", () => like(open, -1));
  at("shown-ask").addEventListener("click", async () => {
    at("shown").close();
    askAbout(await (await fetch(still(open))).blob());
  });
  addEventListener("popstate", restore);
  restore();
}

export async function addPictures(files, weight = 1) {
  try {
    for (const file of files) {
      const image = await pictureOf(file);
      terms.push({ image, thumbnail: image, weight });
    }
    look();
  } catch (error) {
    fail(error);
  }
}

function addWords(weight) {
  const text = at("words").value.trim();
  if (!text) return at("words").focus();
  terms.push({ text, weight });
  at("words").value = "";
  look();
}

function like(hit, weight) {
  at("shown").close();
  terms.push({ row: hit.row, thumbnail: hit.thumbnail, weight });
  look();
}

/** What is asked for: the chips, and the words in the field as one more. */
function asked() {
  const text = at("words").value.trim();
  return text ? [{ text, weight: 1 }, ...terms] : terms;
}

async function look(k = PAGE) {
  showTerms();
  remember();
  running?.abort();
  const sought = asked();
  if (!sought.some((term) => term.weight > 0)) {
    hits = [];
    showHits();
    at("found").textContent = sought.length ? "Add something that must be there." : "";
    return;
  }
  const request = { terms: sought.map(({ thumbnail, ...term }) => term), k, ...filters() };
  const mine = (running = new AbortController());
  at("found").classList.remove("fault");
  at("found").textContent = "Looking…";
  try {
    const answer = await ask("search", request, mine.signal);
    hits = answer.hits;
    showHits(k);
    at("found").textContent = `${hits.length} found in ${Math.round(answer.took_ms)} ms`;
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
}

function filters() {
  const chosen = { group: at("filters").querySelector("[name=group]").checked };
  for (const field of at("filters").querySelectorAll("[name]")) {
    if (field.type !== "checkbox" && field.value) chosen[field.name] = field.value;
  }
  return chosen;
}

function fail(error) {
  at("found").classList.add("fault");
  at("found").textContent = error.message;
}

/** The address says what is looked for, so that Back and bookmarks work; pictures stay out of it. */
function remember() {
  const kept = asked().filter((term) => !term.image).map(({ thumbnail, ...term }) => term);
  const wanted = kept.length ? `#${encodeURIComponent(JSON.stringify(kept))}` : "";
  if (location.hash !== wanted) history.pushState(null, "", location.pathname + wanted);
}

function restore() {
  try {
    const kept = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "[]");
    const first = kept[0]?.text && kept[0].weight === 1 ? kept.shift() : null;
    at("words").value = first?.text ?? "";
    terms = kept.map((term) => (term.row === undefined ? term : { ...term, thumbnail: `api/thumbnail/${term.row}` }));
  } catch {
    terms = []; // an address that somebody typed
  }
  if (asked().length) look();
}

function showTerms() {
  at("terms").replaceChildren(...terms.map((term, number) => {
    const what = term.text ?? (term.row === undefined ? "your picture" : "a found picture");
    const sign = make("button", { type: "button", title: "Switch between with and without" }, term.weight > 0 ? "+" : "−");
    sign.setAttribute("aria-label", `${term.weight > 0 ? "with" : "without"} ${what}; switch`);
    sign.addEventListener("click", () => {
      terms[number].weight *= -1;
      look();
    });
    const gone = make("button", { type: "button", "aria-label": `remove ${what}` }, "✕");
    gone.addEventListener("click", () => {
      terms.splice(number, 1);
      look();
    });
    const shown = term.thumbnail ? make("img", { src: term.thumbnail, alt: what }) : term.text;
    return make("li", { class: term.weight > 0 ? "plus" : "minus" }, sign, shown, gone);
  }));
}

function showHits(k = 0) {
  at("hits").replaceChildren(...hits.map((hit, number) => card(hit, number)));
  at("more").hidden = hits.length === 0 || hits.length < k || hits.length >= MOST;
}

function card(hit, number) {
  const name = hit.path.split("/").slice(-2).join("/");
  const when = hit.kind === "video" ? ` at ${clock(hit.start_s)}` : "";
  const picture = make("img", { src: hit.thumbnail, alt: "", loading: "lazy", decoding: "async" });
  const label = `${name}${when}, ${percent(hit.probability)}`;
  const large = make("button", { type: "button", "aria-label": label, title: hit.path }, picture);
  large.addEventListener("click", () => show(hit));
  large.dataset.number = number;
  const more = make("button", { type: "button", title: "More like this", "aria-label": `more like ${name}` }, "+");
  more.addEventListener("click", () => like(hit, 1));
  const less = make("button", { type: "button", title: "Less like this", "aria-label": `less like ${name}` }, "−");
  less.addEventListener("click", () => like(hit, -1));
  const sure = make("meter", { min: 0, max: 1, value: hit.probability });
  sure.setAttribute("aria-hidden", "true");
  const folded = hit.alike.length ? `, ${hit.alike.length} alike` : "";
  const parts = [
    large,
    make("div", { class: "deeds" }, more, less),
    make("div", { class: "path", title: hit.path }, name),
    make("div", { class: "sure" }, sure, `${hit.score.toFixed(3)}${folded}`),
  ];
  if (hit.kind === "video") parts.push(make("span", { class: "time" }, `▶ ${clock(hit.start_s)}`));
  return make("li", { class: "hit" }, ...parts);
}

/** A hit large: the picture, or the video from the second that was found. */
function show(hit) {
  open = hit;
  at("shown-path").textContent = hit.path;
  const size = hit.width_px ? `${hit.width_px} × ${hit.height_px}` : "";
  at("shown-facts").textContent = [size, hit.taken_at?.slice(0, 10), `cosine ${hit.score.toFixed(3)}`].filter(Boolean).join(" · ");
  at("shown-file").href = hit.media;
  at("moments").replaceChildren();
  if (hit.kind === "video") {
    const video = make("video", { src: hit.media, controls: true, playsInline: true, muted: true });
    const play = (second) => {
      video.currentTime = second;
      video.play().catch(() => {}); // a browser may want a click first
    };
    video.addEventListener("loadedmetadata", () => play(hit.start_s), { once: true });
    video.addEventListener("error", () => at("stage").replaceChildren(make("img", { src: still(hit), alt: hit.path })));
    at("stage").replaceChildren(video);
    for (const [from, to] of hit.moments ?? []) {
      const jump = make("button", { type: "button" }, `${clock(from)}–${clock(to)}`);
      jump.addEventListener("click", () => play(from));
      at("moments").append(jump);
    }
  } else {
    const picture = make("img", { src: hit.media, alt: hit.path });
    picture.addEventListener("error", () => (picture.src = still(hit)), { once: true }); // such as a TIFF
    at("stage").replaceChildren(picture);
  }
  at("shown").showModal();
}

const still = (hit) => `api/thumbnail/${hit.row}?size=768`;

/** Arrows walk over the grid; L asks for more like this, X for less. */
function walk(event) {
  const all = [...at("hits").querySelectorAll("[data-number]")];
  const now = all.indexOf(document.activeElement);
  if (now < 0) return;
  const columns = getComputedStyle(at("hits")).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step) {
    event.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, now + step))].focus();
  } else if (event.key === "l" || event.key === "x") {
    like(hits[now], event.key === "l" ? 1 : -1);
  }
}
