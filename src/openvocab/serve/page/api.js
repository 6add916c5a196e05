// The server's JSON API: one function to ask it, and what pages need to send pictures.

const MOST_PX = 1024; // the server looks at fewer pixels than this, so larger pictures need not travel

/** Asks `path`; `body` makes it a POST. Throws an Error whose message is the server's one line. */
export async function ask(path, body, signal) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const reply = await fetch(`api/${path}`, { ...options, signal });
  if (reply.status === 401) {
    await unlock();
    return ask(path, body, signal);
  }
  if (reply.status === 429) {
    await new Promise((done) => setTimeout(done, 1000 * (Number(reply.headers.get("Retry-After")) || 1)));
    return ask(path, body, signal);
  }
  const answer = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(answer.error ?? `${reply.status} ${reply.statusText}`);
  return answer;
}

/** Asks the person for the key; pictures and videos of a page send no headers, so a cookie keeps it. */
async function unlock() {
  const dialog = document.getElementById("locked");
  const field = document.getElementById("key");
  if (!dialog.open) dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  document.cookie = `openvocab_key=${field.value}; SameSite=Strict; path=/`;
  field.value = "";
}

/** A picture file as a data URL, upright, no larger than the server needs. */
export async function pictureOf(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "this"}: not a picture that this browser can read`);
  }
  const scale = Math.min(1, MOST_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // transparent pictures lie on white, as the server has it
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

/** The pictures that a drop, a paste or a file field brings. */
export function filesOf(bundle) {
  return [...(bundle?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}

/** An element with attributes and children; text is never read as markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}
