/** Images on their way: files become entries of the page, and the server predicts their objects. */

import { report } from "./messages.js";
import { readPrediction } from "./prediction.js";
import { hasKey, predict, ServerError } from "./server.js";
import { changed, showImage, state } from "./state.js";

/** @typedef {import("./state.js").PageImage} PageImage */

const AT_ONCE = 4; // requests; the server makes batches of them
const THUMBNAIL = [144, 108];
const IMAGE_ENDING =
  /\.(avif|bmp|gif|heic|heif|jfif|jp2|jpe|jpeg|jpg|mpo|png|ppm|pgm|tif|tiff|webp)$/i;

let sending = 0;
/** Set while the server refuses the API key. */
let isPaused = false;

/**
 * Adds images and shows the first of them.
 * @param {Iterable<File>} files
 */
export function addFiles(files) {
  const added = [...files].map(entryOf);
  if (!added.length) return;
  showImage(added[0]);
  changed("images");
  sendWaiting();
}

/**
 * Adds what was dropped: files, and the images in folders.
 * @param {DataTransfer} data
 */
export async function addDropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) {
    if (data.files.length) addFiles(data.files);
    else
      report("Drop image files. This page loads nothing from other sites: save the image first.");
    return;
  }

  const files = [];
  for (const entry of entries) files.push(...(await filesBelow(entry)));
  const images = files.filter(
    ({ type, name }) => type.startsWith("image/") || IMAGE_ENDING.test(name),
  );
  const skipped = files.length - images.length;
  if (skipped) report(`Files that are not images were skipped: ${skipped} of ${files.length}.`);
  if (!files.length) report("The folder is empty.");
  addFiles(images);
}

/** @param {any} entry FileSystemEntry @returns {Promise<File[]>} */
async function filesBelow(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    const children = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!children.length) return files;
    for (const child of children) files.push(...(await filesBelow(child)));
  }
}

/** @param {File} file @returns {PageImage} */
function entryOf(file) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = THUMBNAIL;
  const name = uniqueName(file.name);
  /** @type {PageImage} */
  const entry = {
    name,
    file,
    status: "waiting",
    message: "",
    width: 0,
    height: 0,
    notes: name === file.name ? [] : [`A second image is named ${file.name}; here it is ${name}.`],
    objects: [],
    thumbnail: canvas,
    background: null,
    abort: new AbortController(),
  };
  state.images.push(entry);
  return entry;
}

/** @param {string} name */
function uniqueName(name) {
  const taken = new Set(state.images.map((image) => image.name));
  const [, stem, ending] = name.match(/^(.*?)(\.[^.]*)?$/s);
  let unique = name;
  for (let n = 2; taken.has(unique); n++) unique = `${stem} (${n})${ending ?? ""}`;
  return unique;
}

/** Removes images. Their requests end. @param {PageImage[]} images */
export function removeImages(images) {
  for (const image of images) image.abort.abort();
  const index = state.images.indexOf(state.current);
  state.images = state.images.filter((image) => !images.includes(image));
  if (!state.images.includes(state.current))
    showImage(state.images[Math.min(index, state.images.length - 1)] ?? null);
  changed("images");
}

/** Sends an image that has failed once more. @param {PageImage} image */
export function sendAgain(image) {
  image.status = "waiting";
  image.message = "";
  changed("images");
  sendWaiting();
}

/** Goes on after the API key was entered. */
export function resume() {
  isPaused = false;
  sendWaiting();
}

/** What images wait for before they can be sent; empty: nothing. */
export function obstacle() {
  if (!state.info) return "Waiting for the server.";
  return isPaused || (state.info.api_key_required && !hasKey()) ? "Waiting for the API key." : "";
}

/** Sends images that wait, as many at once as the page may. */
export function sendWaiting() {
  if (obstacle()) return;
  for (const image of state.images) {
    if (sending >= AT_ONCE) return;
    if (image.status === "waiting") send(image);
  }
}

/** @param {PageImage} image */
async function send(image) {
  sending++;
  image.status = "sent";
  changed("images");
  try {
    const isShown = await drawThumbnail(image);
    checkSize(image);
    await predictImage(image, !isShown || (await isDeepPng(image)));
    image.status = "done";
  } catch (error) {
    image.status = "failed";
    image.message = error.message;
    if (error instanceof ServerError && error.concernsKey) {
      image.status = "waiting";
      image.message = "";
      isPaused = true;
      changed("key");
    }
  }
  sending--;
  sendWaiting();
  if (!state.images.includes(image)) return;
  changed("images");
  if (state.current === image) changed("current");
}

/** @param {PageImage} image */
function checkSize({ file }) {
  const most = state.info.limits.max_bytes;
  if (most && file.size > most) {
    throw new Error(
      `The file has ${megabytes(file.size)} MB, more than the server's limit of ` +
        `${megabytes(most)} MB (--max-bytes). Send a smaller image.`,
    );
  }
}

/** @param {number} bytes */
function megabytes(bytes) {
  return (bytes / 1e6).toLocaleString("en", { maximumSignificantDigits: 2 });
}

/** @param {PageImage} image @param {boolean} preview ask the server for the pixels, too */
async function predictImage(image, preview) {
  const options = { min_score: state.info.lowest_score, masks: "rle", preview };
  const onBusy = (seconds) => {
    image.message = `The server is busy. Trying again in ${seconds} s.`;
    changed("images");
  };
  const answer = await predict(image.file, image.name, options, image.abort.signal, onBusy);
  const [{ width, height, notes, preview: png }] = answer.images;
  if (png) {
    image.background = new Blob([
      Uint8Array.from(atob(png), (character) => character.charCodeAt(0)),
    ]);
    await drawThumbnail(image);
  }
  image.objects = await readPrediction(answer.annotations, state.info.categories);
  image.width = width;
  image.height = height;
  image.message = "";
  image.notes.push(...notes);
}

/**
 * Whether it is a PNG with 16 bits. Browsers show the upper 8 of them, which are black for most
 * microscopes.
 * @param {PageImage} image
 */
async function isDeepPng({ file }) {
  const start = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  const isPng = String.fromCharCode(...start.slice(0, 4)) === "\x89PNG";
  return isPng && start[24] === 16;
}

/**
 * The pixels of an image, upright as the model sees them; null if the browser cannot decode them.
 * @param {PageImage} image
 * @returns {Promise<ImageBitmap|null>}
 */
export async function pixelsOf(image) {
  try {
    return await createImageBitmap(image.background ?? image.file);
  } catch {
    return null;
  }
}

/** Draws the small image. Returns whether the browser can decode it. @param {PageImage} image */
async function drawThumbnail(image) {
  const pixels = await pixelsOf(image);
  if (!pixels) return false;
  const { thumbnail } = image;
  const scale = Math.max(thumbnail.width / pixels.width, thumbnail.height / pixels.height);
  const [width, height] = [pixels.width * scale, pixels.height * scale];
  thumbnail
    .getContext("2d")
    .drawImage(
      pixels,
      (thumbnail.width - width) / 2,
      (thumbnail.height - height) / 2,
      width,
      height,
    );
  pixels.close();
  return true;
}
