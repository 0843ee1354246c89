/** Mouse, fingers and keyboard on the image: zoom, move, name and select. */

import { find } from "./dom.js";
import { fit, goTo, objectAt, pan, zoom, zoomToPixels } from "./stage.js";
import { describe, hover, onChange, select, shownObjects, state } from "./state.js";

/** @typedef {{x: number, y: number}} Point in CSS pixels of the stage */

const ZOOM_STEP = 1.25;
const PAN_STEP = 60; // CSS pixels
const CLICK = 5; // CSS pixels that a pointer may move during a click
const APART = 14; // CSS pixels between the pointer and the name
const TAG_HEIGHT = 34; // CSS pixels

const stage = find("stage");
const nameTag = find("name-tag");
/** @type {Map<number, Point>} pressed pointers */
const pointers = new Map();
let moved = 0;

/** @param {PointerEvent|WheelEvent|MouseEvent} event @returns {Point} */
function pointOf(event) {
  const { left, top } = stage.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
}

/** Names the object below the pointer. @param {Point} point */
function showName(point) {
  const object = objectAt(point);
  hover(object);
  nameTag.hidden = !object;
  if (!object) return;
  nameTag.textContent = describe(object);
  const isRight = point.x > stage.clientWidth / 2;
  const lowest = stage.clientHeight - TAG_HEIGHT;
  nameTag.style.left = isRight ? "" : `${point.x + APART}px`;
  nameTag.style.right = isRight ? `${stage.clientWidth - point.x + APART}px` : "";
  nameTag.style.top = `${Math.min(Math.max(4, point.y + APART), lowest)}px`;
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button > 0) return;
  pointers.set(event.pointerId, pointOf(event));
  moved = pointers.size > 1 ? Infinity : 0;
  stage.setPointerCapture(event.pointerId);
});

stage.addEventListener("pointermove", (event) => {
  const point = pointOf(event);
  const before = pointers.get(event.pointerId);
  if (!before) {
    showName(point);
    return;
  }

  moved += Math.hypot(point.x - before.x, point.y - before.y);
  pointers.set(event.pointerId, point);
  if (moved <= CLICK) return;
  nameTag.hidden = true;
  if (pointers.size === 1) pan(point.x - before.x, point.y - before.y);
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = (a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
    zoom(apart(point) / apart(before), other);
  }
});

/** @param {PointerEvent} event */
function releasePointer(event) {
  if (pointers.delete(event.pointerId) && event.type === "pointerup" && moved <= CLICK) {
    showName(pointOf(event));
    select(state.hovered);
  }
}
stage.addEventListener("pointerup", releasePointer);
stage.addEventListener("pointercancel", releasePointer);
stage.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "touch") return; // after a tap the name stays until the next one
  nameTag.hidden = true;
  hover(null);
});

stage.addEventListener("dblclick", (event) => zoom(2, pointOf(event)));
stage.addEventListener(
  "wheel",
  (event) => {
    if (!state.current?.width) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1);
    zoom(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.002)), pointOf(event));
  },
  { passive: false },
);

/** @type {Object<string, () => void>} */
const KEYS = {
  ArrowLeft: () => pan(PAN_STEP, 0),
  ArrowRight: () => pan(-PAN_STEP, 0),
  ArrowUp: () => pan(0, PAN_STEP),
  ArrowDown: () => pan(0, -PAN_STEP),
  "+": () => zoom(ZOOM_STEP),
  "=": () => zoom(ZOOM_STEP),
  "-": () => zoom(1 / ZOOM_STEP),
  0: fit,
  1: zoomToPixels,
  n: () => step(1),
  p: () => step(-1),
  Escape: () => select(null),
};
stage.addEventListener("keydown", (event) => {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || !state.current || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
});

/** Selects the next object, after the last one the first. @param {number} by 1 or -1 */
function step(by) {
  const objects = shownObjects(state.current);
  if (!objects.length) return;
  const index = objects.indexOf(state.selected);
  const from = index < 0 && by < 0 ? objects.length : index;
  goTo(objects[(from + by + objects.length) % objects.length]);
}

find("zoom-in").addEventListener("click", () => zoom(ZOOM_STEP));
find("zoom-out").addEventListener("click", () => zoom(1 / ZOOM_STEP));
find("fit").addEventListener("click", fit);

onChange("hover", () => {
  if (!state.hovered) nameTag.hidden = true;
});
