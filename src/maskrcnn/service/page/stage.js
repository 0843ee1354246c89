/**
 * The image viewer: three canvases on top of each other, moved and zoomed together.
 *
 * The lowest has the image, the next its objects, the last the highlighted object. So a filter
 * draws the objects only, and the pointer draws one object only.
 */

import { find } from "./dom.js";
import { drawHighlight, drawObjects } from "./drawing.js";
import { hover, onChange, select, shownObjects, state } from "./state.js";

/** @typedef {import("./state.js").DetectedObject} DetectedObject */

const MARGIN = 16; // CSS pixels around an image that fits
const LARGEST_FIT = 4; // small images are enlarged up to this scale
const MOST_ZOOM = 64; // CSS pixels per image pixel
const EXACT = 2; // canvas pixels per image pixel from which masks and their polygons look different
const CRISP = 3; // from this scale on, pixels are drawn as squares

const stage = find("stage");
const contexts = Object.fromEntries(
  ["image", "object", "highlight"].map((name) => [name, find(`${name}-layer`).getContext("2d")]),
);
const probe = document.createElement("canvas").getContext("2d"); // is a point in a path?

/** Scale in CSS pixels per image pixel; x, y of the image's corner in CSS pixels of the stage. */
const view = { scale: 1, x: 0, y: 0, isFit: true };
/** @type {Set<string>} layers to draw in the next frame */
const stale = new Set();
/** @type {ImageBitmap|null} */
let bitmap = null;

/**
 * Shows the pixels of the current image, or an empty stage.
 * @param {ImageBitmap|null} pixels null: the browser cannot show them
 */
export function setPixels(pixels) {
  if (bitmap !== pixels) bitmap?.close();
  bitmap = pixels;
  fit();
}

/** The whole image. */
export function fit() {
  const image = state.current;
  const { clientWidth, clientHeight } = stage;
  if (image?.width && clientWidth) {
    const [width, height] = [
      Math.max(1, clientWidth - 2 * MARGIN),
      Math.max(1, clientHeight - 2 * MARGIN),
    ];
    view.scale = Math.min(width / image.width, height / image.height, LARGEST_FIT);
    view.x = (clientWidth - image.width * view.scale) / 2;
    view.y = (clientHeight - image.height * view.scale) / 2;
  }
  view.isFit = true;
  viewChanged();
}

/**
 * @param {number} factor above 1: closer
 * @param {{x: number, y: number}} [point] that stays where it is, in CSS pixels of the
 *   stage; by default the middle
 */
export function zoom(factor, point = { x: stage.clientWidth / 2, y: stage.clientHeight / 2 }) {
  const image = state.current;
  if (!image?.width) return;
  const least = Math.min(
    1,
    stage.clientWidth / image.width / 2,
    stage.clientHeight / image.height / 2,
  );
  const scale = Math.min(MOST_ZOOM, Math.max(least, view.scale * factor));
  view.x = point.x - ((point.x - view.x) * scale) / view.scale;
  view.y = point.y - ((point.y - view.y) * scale) / view.scale;
  view.scale = scale;
  view.isFit = false;
  viewChanged();
}

/** @param {number} dx CSS pixels @param {number} dy */
export function pan(dx, dy) {
  view.x += dx;
  view.y += dy;
  view.isFit = false;
  viewChanged();
}

/** Shows the pixels of the image in their own size. */
export function zoomToPixels() {
  zoom(1 / view.scale);
}

/** Selects an object and brings it into view. @param {DetectedObject} object */
export function goTo(object) {
  const [x, y, width, height] = object.bbox;
  const { clientWidth, clientHeight } = stage;
  const fits = Math.min(clientWidth / (width * 3), clientHeight / (height * 3), 16);
  view.scale = Math.min(MOST_ZOOM, Math.max(view.scale, fits));
  view.x = clientWidth / 2 - (x + width / 2) * view.scale;
  view.y = clientHeight / 2 - (y + height / 2) * view.scale;
  view.isFit = false;
  select(object);
  viewChanged();
}

function viewChanged() {
  const image = state.current;
  if (image?.width) {
    // A part of the image stays on the stage.
    const [width, height] = [image.width * view.scale, image.height * view.scale];
    const keptX = Math.min(64, width);
    const keptY = Math.min(64, height);
    view.x = Math.min(stage.clientWidth - keptX, Math.max(keptX - width, view.x));
    view.y = Math.min(stage.clientHeight - keptY, Math.max(keptY - height, view.y));
  }
  // One finger scrolls the page while there is nothing to move on the stage.
  stage.style.touchAction = view.isFit ? "pan-y" : "none";
  find("zoom").textContent = `${Math.round(view.scale * 100)} %`;
  draw("image", "object", "highlight");
}

/** Draws layers in the next frame. @param {...string} layers */
function draw(...layers) {
  if (!stale.size) requestAnimationFrame(drawStale);
  for (const layer of layers) stale.add(layer);
}

function drawStale() {
  const ratio = window.devicePixelRatio;
  const { current: image } = state;
  const { scale, x, y } = view;
  const start = performance.now();
  for (const layer of stale) {
    const context = contexts[layer];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    if (image?.width) drawLayer(layer, context, image, ratio);
  }
  stale.clear();
  performance.clearMeasures("redraw");
  performance.measure("redraw", { start, end: performance.now() });
}

/**
 * @param {string} layer
 * @param {CanvasRenderingContext2D} context
 * @param {import("./state.js").PageImage} image
 * @param {number} ratio canvas pixels per CSS pixel
 */
function drawLayer(layer, context, image, ratio) {
  if (layer === "image") {
    drawImage(context, image);
    return;
  }
  const { scale, x, y } = view;
  /** @type {import("./drawing.js").Look} */
  const look = {
    scale: scale * ratio,
    unit: ratio,
    exact: scale * ratio >= EXACT,
    part: [
      -x / scale,
      -y / scale,
      (stage.clientWidth - x) / scale,
      (stage.clientHeight - y) / scale,
    ],
  };
  if (layer === "object") {
    drawObjects(context, shownObjects(image), look);
    return;
  }
  for (const object of new Set([state.selected, state.hovered])) {
    if (object) drawHighlight(context, object, look);
  }
}

/** @param {CanvasRenderingContext2D} context @param {import("./state.js").PageImage} image */
function drawImage(context, image) {
  context.imageSmoothingEnabled = view.scale < CRISP;
  context.imageSmoothingQuality = view.scale < 0.5 ? "medium" : "low";
  if (bitmap) {
    context.drawImage(bitmap, 0, 0, image.width, image.height);
    return;
  }
  context.fillStyle = getComputedStyle(stage).getPropertyValue("--blank");
  context.fillRect(0, 0, image.width, image.height);
}

/**
 * The smallest object at a point.
 * @param {{x: number, y: number}} point in CSS pixels of the stage
 */
export function objectAt(point) {
  const x = (point.x - view.x) / view.scale;
  const y = (point.y - view.y) / view.scale;
  let best = null;
  for (const object of shownObjects(state.current)) {
    const [left, top, width, height] = object.bbox;
    const inBox = x >= left && y >= top && x <= left + width && y <= top + height;
    const isOn = object.maskPath ? probe.isPointInPath(object.maskPath, x, y, "evenodd") : inBox;
    if (isOn && (!best || object.area < best.area)) best = object;
  }
  return best;
}

new ResizeObserver(() => {
  for (const { canvas } of Object.values(contexts)) {
    canvas.width = Math.round(stage.clientWidth * window.devicePixelRatio);
    canvas.height = Math.round(stage.clientHeight * window.devicePixelRatio);
  }
  if (view.isFit) fit();
  else viewChanged();
}).observe(stage);

onChange("filter look color", () => {
  const shown = new Set(shownObjects(state.current));
  if (state.selected && !shown.has(state.selected)) select(null);
  if (state.hovered && !shown.has(state.hovered)) hover(null);
  draw("object", "highlight");
});
onChange("hover select", () => draw("highlight"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw("image"));
