/** The strip of images, and what the viewer says while there is nothing to draw. */

import { find, make } from "./dom.js";
import { obstacle, pixelsOf, removeImages, sendAgain } from "./intake.js";
import { setPixels } from "./stage.js";
import { counted, onChange, showImage, shownObjects, state } from "./state.js";

/** @typedef {import("./state.js").PageImage} PageImage */

/**
 * @type {Map<PageImage, {item: HTMLLIElement, button: HTMLButtonElement, badge:
 *   HTMLSpanElement}>}
 */
const items = new Map();

/** @param {PageImage} image */
function itemOf(image) {
  const badge = make("span", { className: "badge", "aria-hidden": "true" });
  const button = make(
    "button",
    { type: "button", className: "thumbnail", title: image.name },
    image.thumbnail,
    badge,
    make("span", { className: "name" }, image.name),
  );
  button.addEventListener("click", () => showImage(image));
  const remove = make(
    "button",
    { type: "button", className: "remove", "aria-label": `Remove ${image.name}` },
    "×",
  );
  remove.addEventListener("click", () => {
    removeImages([image]);
    (items.get(state.current)?.button ?? find("choose")).focus();
  });
  return { item: make("li", {}, button, remove), button, badge };
}

/** @param {PageImage} image */
function stateText(image) {
  if (image.status === "failed") return "no prediction";
  if (image.status !== "done") return image.message || "in progress";
  return counted(shownObjects(image).length, "object");
}

function showStrip() {
  for (const image of items.keys()) if (!state.images.includes(image)) items.delete(image);
  for (const image of state.images) if (!items.has(image)) items.set(image, itemOf(image));
  const list = find("thumbnails");
  const wanted = state.images.map((image) => items.get(image).item);
  if (wanted.length !== list.children.length || wanted.some((item, n) => item !== list.children[n]))
    list.replaceChildren(...wanted);
  find("strip").hidden = !state.images.length;

  for (const [image, { item, button, badge }] of items) {
    const isCurrent = image === state.current;
    item.className = image.status;
    button.setAttribute("aria-label", `${image.name}, ${stateText(image)}`);
    if (isCurrent) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    badge.textContent =
      { done: String(shownObjects(image).length), failed: "!" }[image.status] ?? "…";
  }
}

/** Shows one of: the image, the invitation, the wait, the failure. */
function showStage() {
  const image = state.current;
  const isWaiting = image?.status === "waiting" || image?.status === "sent";
  find("empty").hidden = Boolean(image);
  find("busy").hidden = !isWaiting;
  find("busy-text").textContent = image?.message || obstacle() || "Predicting…";
  find("failed").hidden = image?.status !== "failed";
  find("failed-text").textContent = image?.status === "failed" ? image.message : "";
  find("view-bar").hidden = image?.status !== "done";
  find("image-name").textContent = image?.width
    ? `${stateText(image)} · ${image.width} × ${image.height} px · ${image.name}`
    : "";
  find("stage").setAttribute(
    "aria-label",
    image ? `${image.name}, ${stateText(image)}` : "No image",
  );

  const notes = image?.notes ?? [];
  find("notes").hidden = !notes.length;
  find("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
}

/** Loads the pixels of the current image; those of the others are not kept in memory. */
async function loadPixels() {
  const image = state.current;
  setPixels(null);
  if (image?.status !== "done") return;
  const pixels = await pixelsOf(image);
  if (state.current !== image) {
    pixels?.close();
    return;
  }
  noteDifference(image, pixels);
  setPixels(pixels);
  showStage();
}

/** @param {PageImage} image @param {ImageBitmap|null} pixels */
function noteDifference(image, pixels) {
  let note = "";
  if (!pixels)
    note = "This browser cannot show this kind of image. Its objects are drawn on a blank one.";
  else if (pixels.width !== image.width || pixels.height !== image.height) {
    const sizes = [pixels, image].map(({ width, height }) => `${width} × ${height}`);
    note = `The browser decodes ${sizes.join(" pixels, the server ")}: objects may be shifted.`;
  }
  if (note && !image.notes.includes(note)) image.notes.push(note);
}

find("clear").addEventListener("click", () => {
  removeImages(state.images);
  find("choose").focus();
});
find("again").addEventListener("click", () => sendAgain(state.current));

onChange("images current filter", showStrip);
onChange("info images current filter", showStage);
onChange("current", () => {
  items.get(state.current)?.item.scrollIntoView({ block: "nearest", inline: "nearest" });
  loadPixels();
});
