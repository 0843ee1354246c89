/**
 * Draws objects on a canvas, for the screen and for the PNG.
 *
 * The context's transformation maps image pixels to those of the canvas. Widths are in units: one
 * unit is a CSS pixel on the screen, and grows with the image in the PNG.
 */

import { lighter, readableOn } from "./colors.js";
import { colorOf, scoreText, state } from "./state.js";

/** @typedef {import("./state.js").DetectedObject} DetectedObject */
/**
 * @typedef {Object} Look
 * @property {number} scale canvas pixels per image pixel
 * @property {number} unit canvas pixels per unit
 * @property {boolean} exact fill masks pixel by pixel; false: their polygons, which takes an
 *   eighth of the time
 * @property {[number, number, number, number]} part left, top, right, bottom that is visible, in
 *   image pixels
 */

const OPACITY = 0.4;
const CROWD = 100; // with more objects, lines are thinner
const FEW = 12; // with more objects, a name is at most NAME_WIDTH times as wide as its box
const NAME_WIDTH = 2.5;
const DARK = "#141414";
/**
 * Keypoints scored below this (0..1) are neither drawn nor downloaded, as in `maskrcnn predict`.
 */
export const KEYPOINT_SCORE = 0.05;

/** @type {Map<string, number>} widths of texts, in units */
const textWidths = new Map();

/**
 * Draws all layers that are on: small objects on top of large ones, names where there is room.
 * @param {CanvasRenderingContext2D} context
 * @param {DetectedObject[]} objects best score first
 * @param {Look} look
 */
export function drawObjects(context, objects, look) {
  const visible = objects.filter((object) => isVisible(object, look.part));
  const largestFirst = [...visible].sort((a, b) => b.bbox[2] * b.bbox[3] - a.bbox[2] * a.bbox[3]);
  const line = (visible.length > CROWD ? 1 : 1.5) * (look.unit / look.scale);
  const { masks, polygons, boxes, keypoints, names } = state.layers;

  context.lineJoin = "round";
  context.lineCap = "round";
  for (const object of largestFirst) {
    const color = colorOf(object);
    if (masks && object.maskPath)
      fillMask(context, look.exact ? object.maskPath : object.polygonPath, color, OPACITY);
    if (polygons && object.polygonPath) stroke(context, object.polygonPath, color, line);
    if (boxes) strokeBox(context, object, color, line);
    if (keypoints && object.keypoints.length) drawSkeleton(context, object, color, look);
  }
  if (names) drawNames(context, visible, look);
}

/**
 * Draws one object so that it stands out.
 * @param {CanvasRenderingContext2D} context
 * @param {DetectedObject} object
 * @param {Look} look
 */
export function drawHighlight(context, object, look) {
  const line = look.unit / look.scale;
  const color = colorOf(object);
  context.lineJoin = "round";
  const path = object.polygonPath ?? boxPath(object);
  if (object.maskPath)
    fillMask(context, look.exact ? object.maskPath : object.polygonPath, color, 0.3);
  stroke(context, path, DARK, 5 * line);
  stroke(context, path, "#ffffff", 3 * line);
  stroke(context, path, color, 1.5 * line);
  if (state.layers.keypoints && object.keypoints.length) drawSkeleton(context, object, color, look);
}

/** @param {DetectedObject} object @param {Look["part"]} part */
function isVisible({ bbox: [x, y, width, height] }, [left, top, right, bottom]) {
  return x < right && y < bottom && x + width > left && y + height > top;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Path2D} path
 * @param {string} color
 * @param {number} opacity
 */
function fillMask(context, path, color, opacity) {
  context.globalAlpha = opacity;
  context.fillStyle = color;
  context.fill(path, "evenodd");
  context.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Path2D} path
 * @param {string} color
 * @param {number} width
 */
function stroke(context, path, color, width) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke(path);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {DetectedObject} object
 * @param {string} color
 * @param {number} width
 */
function strokeBox(context, { bbox }, color, width) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.strokeRect(...bbox);
}

/** @param {DetectedObject} object */
function boxPath({ bbox }) {
  const path = new Path2D();
  path.rect(...bbox);
  return path;
}

/**
 * Limbs with a dark edge; keypoints as light dots with the object's color inside.
 * @param {CanvasRenderingContext2D} context
 * @param {DetectedObject} object
 * @param {string} color
 * @param {Look} look
 */
function drawSkeleton(context, object, color, look) {
  const { keypoints, category, bbox } = object;
  const isDrawn = (index) => keypoints[index]?.score >= KEYPOINT_SCORE;
  const pixel = look.unit / look.scale;
  const size = Math.min(2.5 * pixel, Math.max(pixel, 0.03 * Math.max(bbox[2], bbox[3])));

  const limbs = new Path2D();
  for (const [first, second] of category.skeleton ?? []) {
    if (!isDrawn(first - 1) || !isDrawn(second - 1)) continue;
    limbs.moveTo(keypoints[first - 1].x, keypoints[first - 1].y);
    limbs.lineTo(keypoints[second - 1].x, keypoints[second - 1].y);
  }
  stroke(context, limbs, DARK, size * 1.8);
  stroke(context, limbs, lighter(color, 0.35), size);

  const drawn = keypoints.filter((_, index) => isDrawn(index));
  for (const { ink, radius } of [
    { ink: DARK, radius: 1.7 },
    { ink: "#ffffff", radius: 1.35 },
    { ink: color, radius: 0.8 },
  ]) {
    context.fillStyle = ink;
    for (const { x, y } of drawn) {
      context.beginPath();
      context.arc(x, y, size * radius, 0, 2 * Math.PI);
      context.fill();
    }
  }
}

/**
 * Names in the order of their scores. One that would cover another is left out, and in a crowd one
 * that would cover the neighbors of its object.
 * @param {CanvasRenderingContext2D} context
 * @param {DetectedObject[]} objects
 * @param {Look} look
 */
function drawNames(context, objects, look) {
  const { scale, unit, part } = look;
  const [height, margin] = [16 * unit, 4 * unit];
  const { e: shiftX, f: shiftY } = context.getTransform();
  const taken = [];

  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0); // letters keep their size
  context.font = `${12 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const object of objects) {
    const text = `${object.category.name} ${scoreText(object.score)}`;
    const width = textWidth(context, text, unit) + 2 * margin;
    if (objects.length > FEW && width > NAME_WIDTH * object.bbox[2] * scale) continue;
    const [x, y] = [object.bbox[0] * scale + shiftX, object.bbox[1] * scale + shiftY];
    const left = Math.min(Math.max(x, part[0] * scale + shiftX), part[2] * scale + shiftX - width);
    const top = Math.max(y - height, part[1] * scale + shiftY);
    const covers = ([l, t, r]) =>
      left < r && left + width > l && top < t + height && top + height > t;
    if (taken.some(covers)) continue;

    taken.push([left, top, left + width]);
    const color = colorOf(object);
    context.fillStyle = color;
    context.fillRect(left, top, width, height);
    context.fillStyle = readableOn(color);
    context.fillText(text, left + margin, top + height / 2);
  }
  context.restore();
}

/**
 * @param {CanvasRenderingContext2D} context whose font is set
 * @param {string} text
 * @param {number} unit
 */
function textWidth(context, text, unit) {
  if (!textWidths.has(text)) textWidths.set(text, context.measureText(text).width / unit);
  return textWidths.get(text) * unit;
}
