// One picture: your labels and their probabilities, where each of them shows, and what loaded systems see in it.

import { ask, filesOf, make, percent, pictureOf } from "./api.js";

const COLOURS = ["#e6550d", "#3182bd", "#31a354", "#756bb1", "#d6a400", "#d6616b", "#17a2a2", "#8c6d31"];
const at = (id) => document.getElementById(id);
let image = null; // the picture as it is sent
let shown = null; // the same, decoded

export function start() {
  at("asked").addEventListener("change", (event) => {
    take(filesOf(event.target)[0]);
    event.target.value = "";
  });
  at("drop").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") at("asked").click();
  });
  at("labels-form").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
}

/** Takes a picture, and asks at once when there are labels. */
export async function take(file) {
  if (!file) return;
  try {
    image = await pictureOf(file);
    shown = await decoded(image);
  } catch (error) {
    return fail(error);
  }
  at("drop-hint").hidden = true;
  paint();
  if (labels().length) classify();
}

/** Buttons for what the loaded systems can do. */
export function offer(verbs) {
  for (const verb of ["segment", "detect"].filter((each) => verbs.includes(each))) {
    const button = make("button", { type: "button" }, verb === "segment" ? "Which pixels?" : "Boxes");
    button.addEventListener("click", () => run(verb));
    at("verbs").append(button);
  }
}

function labels() {
  return [...new Set(at("labels").value.split(/[\n,]/).map((name) => name.trim()).filter(Boolean))];
}

async function attempt(what, work) {
  if (!image) return fail(new Error("Choose a picture first."));
  at("seen").classList.remove("fault");
  at("seen").textContent = what;
  try {
    at("seen").textContent = (await work()) ?? "";
  } catch (error) {
    fail(error);
  }
}

const classify = () => attempt("Looking…", async () => {
  const answer = await ask("classify", { image, labels: labels(), templates: at("templates").value });
  at("answers").replaceChildren(...answer.labels.map((each) => {
    const where = make("button", { type: "button", "aria-label": `where is ${each.label}` }, "Where?");
    where.addEventListener("click", () => explain(each.label));
    return make("li", {}, make("span", {}, each.label), make("meter", { min: 0, max: 1, value: each.probability }),
      make("span", { class: "share", title: `cosine ${each.score.toFixed(3)}` }, percent(each.probability)), where);
  }));
  const unseen = Object.entries(answer.unseen_words ?? {}).map(([label, words]) => `${words.join(", ")} (${label})`);
  return unseen.length ? `Never read in training: ${unseen.join("; ")}` : "";
});

const explain = (text) => attempt(`Looking for ${text}…`, async () => {
  const answer = await ask("explain", { image, text });
  paint(glow(await decoded(answer.map)));
  const words = answer.words.map(({ word, share }) => `${word} ${share.toFixed(3)}`).join(", ");
  return `Where the picture shows “${text}” (cosine ${answer.score.toFixed(3)}). Without a word it loses: ${words}`;
});

const run = (verb) => attempt("Looking…", async () => {
  const answer = await ask(verb, { image, labels: labels() });
  const colour = (each) => each.colour ?? COLOURS[labels().indexOf(each.label) % COLOURS.length];
  paint(answer.map && await decoded(answer.map), 0.6);
  for (const each of answer.boxes ?? []) frame(each, colour(each));
  at("answers").replaceChildren(...(answer.boxes ?? answer.labels).map((each) => {
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = colour(each);
    const share = each.area ?? each.score;
    return make("li", {}, make("span", {}, swatch, each.label), make("meter", { min: 0, max: 1, value: share }),
      make("span", { class: "share" }, percent(share)));
  }));
  return answer.boxes ? `${answer.boxes.length} found` : "Shares of the picture:";
});

/** The picture, and a layer over it. */
function paint(layer, opacity = 1) {
  const view = at("view");
  view.hidden = false;
  [view.width, view.height] = [shown.naturalWidth, shown.naturalHeight];
  const pen = view.getContext("2d");
  pen.drawImage(shown, 0, 0);
  pen.globalAlpha = opacity;
  if (layer) pen.drawImage(layer, 0, 0, view.width, view.height);
  pen.globalAlpha = 1;
}

/** A grey map as light of one colour: as strong as it is white. */
function glow(map) {
  const canvas = make("canvas", { width: map.naturalWidth, height: map.naturalHeight });
  const pen = canvas.getContext("2d");
  pen.drawImage(map, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data.set([255, 80, 0, (0.8 * pixels.data[at] ** 2) / 255], at);
  }
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

async function decoded(url) {
  const picture = make("img", { src: url });
  await picture.decode();
  return picture;
}

function frame({ box_xyxy_px: [left, top, right, bottom], label }, colour) {
  const pen = at("view").getContext("2d");
  pen.lineWidth = Math.max(2, at("view").width / 200);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.strokeRect(left, top, right - left, bottom - top);
  pen.font = `${Math.max(12, at("view").width / 40)}px system-ui`;
  pen.fillText(label, left + 4, Math.max(14, top - 4));
}

function fail(error) {
  at("seen").classList.add("fault");
  at("seen").textContent = error.message;
}
