/**
 * Masks as contours: `contoursOf(rle)`.
 *
 * A contour runs along the edges of pixels: clockwise around the mask (y points down),
 * counterclockwise around a hole. `maskrcnn.annotations.contours` does the same in Python.
 */

/** @typedef {import("./state.js").Rle} Rle */
/** @typedef {import("./state.js").Polygon} Polygon */
/**
 * @typedef {Object} Crop a part of a mask
 * @property {number} x0 column of the image at which it starts
 * @property {number} y0 row
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} pixels row by row, 1 is inside
 */

const STEPS = [
  [1, 0],
  [0, 1],
  [-1, 0],
  [0, -1],
]; // right, down, left, up

/**
 * Lengths of the runs of 0 and 1 in turn, column by column, from COCO's compressed text.
 * Source: cocoapi, common/maskApi.c (rleFrString).
 * @param {string} text
 * @returns {number[]}
 */
export function runsOf(text) {
  const runs = [];
  let position = 0;
  while (position < text.length) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = text.charCodeAt(position++) - 48;
      value += (group & 31) * 2 ** shift;
      shift += 5;
    } while (group & 32);

    if (group & 16) value -= 2 ** shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/**
 * The pixels of a mask inside of its bounding box; null for an empty mask.
 * @param {Rle} rle
 * @returns {Crop|null}
 */
export function cropOf(rle) {
  const height = rle.size[0];
  const runs = runsOf(rle.counts);
  const stretches = [];
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  let index = 0;

  // Stretches of pixels that stay in one column.
  for (let n = 0; n < runs.length; index += runs[n++]) {
    if (n % 2 === 0) continue;
    for (let start = index; start < index + runs[n];) {
      const column = Math.floor(start / height);
      const end = Math.min(index + runs[n], (column + 1) * height);
      const [first, last] = [start - column * height, end - 1 - column * height];
      stretches.push([column, first, last]);
      left = Math.min(left, column);
      right = Math.max(right, column);
      top = Math.min(top, first);
      bottom = Math.max(bottom, last);
      start = end;
    }
  }
  if (right < 0) return null;

  const width = right - left + 1;
  const pixels = new Uint8Array(width * (bottom - top + 1));
  for (const [column, first, last] of stretches) {
    for (let row = first; row <= last; row++) pixels[(row - top) * width + column - left] = 1;
  }
  return { x0: left, y0: top, width, height: bottom - top + 1, pixels };
}

/**
 * The contours of a mask, with their corners only. Pixels that touch at a corner are separate
 * parts.
 * @param {Crop} crop
 * @returns {{corners: Polygon, isHole: boolean}[]}
 */
export function trace(crop) {
  const { x0, y0, width, height, pixels } = crop;
  const inside = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
  const visited = new Uint8Array(pixels.length); // pixels whose upper edge is in a contour already
  const contours = [];

  for (let start = 0; start < pixels.length; start++) {
    const isUpperEdge = pixels[start] === 1 && (start < width || pixels[start - width] === 0);
    if (!isUpperEdge || visited[start]) continue;
    const startX = start % width;
    const startY = (start - startX) / width;

    // Walk with the mask on the right-hand side, from the upper left corner of this pixel.
    /** @type {Polygon} */
    const corners = [];
    let [x, y, direction] = [startX, startY, 0];
    let doubledArea = 0;
    let before = -1;
    do {
      if (direction !== before) corners.push([x + x0, y + y0]);
      if (direction === 0) visited[y * width + x] = 1;
      before = direction;
      const [dx, dy] = STEPS[direction];
      doubledArea += x * dy - y * dx;
      x += dx;
      y += dy;

      // The two pixels ahead, to the right and to the left of the way.
      const rightX = x + (dx - dy - 1) / 2;
      const rightY = y + (dy + dx - 1) / 2;
      if (!inside(rightX, rightY)) direction = (direction + 1) % 4;
      else if (inside(rightX + dy, rightY - dx)) direction = (direction + 3) % 4;
    } while (x !== startX || y !== startY || direction !== 0);

    // A start in the middle of a straight edge is no corner.
    if (before === 0) corners.shift();
    contours.push({ corners, isHole: doubledArea < 0 });
  }
  return contours;
}

/**
 * A contour with fewer points. Its steps are first cut at the middles of their unit edges, so that
 * slanting sides do not shift.
 * Source: Douglas and Peucker 1973.
 * @param {Polygon} contour as `trace` returns it
 * @param {number} tolerance largest distance in pixels of an old point from the new contour
 * @returns {Polygon}
 */
export function simplify(contour, tolerance) {
  const points = middles(contour);
  const count = points.length;
  const at = (index) => points[index % count];

  let farthest = 0;
  for (let n = 1; n < count; n++) {
    if (distance(points[n], points[0]) > distance(points[farthest], points[0])) farthest = n;
  }

  // Split at the point farthest from the chord until all points are near enough.
  const kept = new Set([0, farthest]);
  const pending = [
    [0, farthest],
    [farthest, count],
  ];
  while (pending.length) {
    const [from, to] = pending.pop();
    let [worst, worstDistance] = [-1, tolerance];
    for (let n = from + 1; n < to; n++) {
      const away = distanceToChord(points[n], at(from), at(to));
      if (away > worstDistance) [worst, worstDistance] = [n, away];
    }
    if (worst < 0) continue;
    kept.add(worst);
    pending.push([from, worst], [worst, to]);
  }
  return kept.size > 2 ? [...kept].sort((a, b) => a - b).map((index) => points[index]) : contour;
}

/** The middles of the unit edges. @param {Polygon} contour @returns {Polygon} */
function middles(contour) {
  const points = [];
  contour.forEach(([x, y], index) => {
    const [nextX, nextY] = contour[(index + 1) % contour.length];
    const length = Math.max(Math.abs(nextX - x), Math.abs(nextY - y));
    const [dx, dy] = [(nextX - x) / length, (nextY - y) / length];
    for (let step = 0.5; step < length; step++) points.push([x + dx * step, y + dy * step]);
  });
  return points;
}

/** @param {number[]} a @param {number[]} b */
function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}

/** @param {number[]} point @param {number[]} start @param {number[]} end */
function distanceToChord(point, start, end) {
  const length = distance(start, end);
  if (length === 0) return distance(point, start);
  const cross =
    (point[0] - start[0]) * (end[1] - start[1]) - (point[1] - start[1]) * (end[0] - start[0]);
  return Math.abs(cross) / length;
}

/**
 * A path through the corners of polygons.
 * @param {Polygon[]} polygons
 */
export function pathOf(polygons) {
  const path = new Path2D();
  for (const [[startX, startY], ...rest] of polygons) {
    path.moveTo(startX, startY);
    for (const [x, y] of rest) path.lineTo(x, y);
    path.closePath();
  }
  return path;
}
