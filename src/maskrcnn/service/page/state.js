/**
 * What the page knows: the model, the images with their objects, and what of them is shown.
 *
 * Modules change `state` and tell the others by `changed("filter")`. The names of the changes:
 *   info     the model is known
 *   images   an image was added, removed, or changed its status
 *   current  another image is shown, or the one shown has its prediction
 *   filter   lowest score or hidden categories
 *   look     layers
 *   color    what decides the colors
 *   unit     the pixel size
 *   hover    the object below the pointer
 *   select   the selected object
 */

/**
 * @typedef {Object} Category
 * @property {number} id
 * @property {string} name
 * @property {string} color "#rrggbb"
 * @property {string[]} [keypoints] their names
 * @property {[number, number][]} [skeleton] limbs as pairs of keypoints, counted from 1
 */
/**
 * @typedef {Object} Info what GET /info returns
 * @property {string} name
 * @property {string} version
 * @property {Category[]} categories
 * @property {boolean} has_masks
 * @property {boolean} has_keypoints
 * @property {number} min_score the lowest score that is shown at first
 * @property {number} lowest_score the model reports no objects below; the page asks for all of
 *   them once
 * @property {{max_bytes: number}} limits of a request; there are more
 * @property {boolean} api_key_required
 */
/**
 * @typedef {Object} Rle
 * @property {[number, number]} size height, width
 * @property {string} counts COCO's compressed text
 */
/** @typedef {[number, number][]} Polygon corners x, y in image pixels */
/**
 * @typedef {Object} DetectedObject one predicted object, in pixels of the original image
 * @property {number} number counted from 1, best score first
 * @property {Category} category
 * @property {number} score 0..1
 * @property {[number, number, number, number]} bbox x, y, width, height
 * @property {number} area pixels of the mask; of the box without a mask
 * @property {Rle|null} rle
 * @property {{x: number, y: number, score: number}[]} keypoints in the order of the category's
 *   names; empty: none
 * @property {string} ownColor differs from that of its neighbors
 * @property {Polygon[]} polygons simplified contours
 * @property {boolean} hasHoles
 * @property {Path2D|null} maskPath exact contours, holes included: fill it by the even-odd rule
 * @property {Path2D|null} polygonPath the simplified ones
 */
/**
 * @typedef {Object} PageImage
 * @property {string} name unique on this page
 * @property {Blob} file
 * @property {"waiting"|"sent"|"done"|"failed"} status
 * @property {string} message why it failed, or what it waits for
 * @property {number} width 0: not known yet
 * @property {number} height
 * @property {string[]} notes of the server and of this page
 * @property {DetectedObject[]} objects best score first
 * @property {HTMLCanvasElement} thumbnail
 * @property {Blob|null} background the image as the server shows it, where the browser cannot
 * @property {AbortController} abort ends its request
 */

export const state = {
  /** @type {Info|null} */ info: null,
  /** @type {PageImage[]} */ images: [],
  /** @type {PageImage|null} */ current: null,
  minScore: 0.5,
  /** @type {Set<number>} */ hiddenCategories: new Set(),
  /** @type {Object<string, boolean>} */ layers: {
    masks: true,
    polygons: true,
    boxes: true,
    keypoints: true,
    names: true,
  },
  /** @type {"category"|"object"} */ colorBy: "category",
  /**
   * Side of a pixel; null: areas are in pixels.
   * @type {{length: number, unit: string}|null}
   */
  pixelSize: null,
  /** @type {DetectedObject|null} */ hovered: null,
  /** @type {DetectedObject|null} */ selected: null,
};

const changes = new EventTarget();

/**
 * Calls a function after each change of one of the names.
 * @param {string} names separated by spaces
 * @param {() => void} listener
 */
export function onChange(names, listener) {
  for (const name of names.split(" ")) changes.addEventListener(name, listener);
}

/** @param {string} name what has changed */
export function changed(name) {
  changes.dispatchEvent(new Event(name));
}

/** @param {PageImage|null} image */
export function showImage(image) {
  state.current = image;
  state.hovered = null;
  state.selected = null;
  changed("current");
}

/** @param {DetectedObject|null} object below the pointer, or of the row below it */
export function hover(object) {
  if (state.hovered === object) return;
  state.hovered = object;
  changed("hover");
}

/** @param {DetectedObject|null} object */
export function select(object) {
  if (state.selected === object) return;
  state.selected = object;
  changed("select");
}

/**
 * The objects that pass the filters, best first.
 * @param {PageImage|null} image
 */
export function shownObjects(image) {
  if (!image) return [];
  return image.objects.filter(
    (object) => object.score >= state.minScore && !state.hiddenCategories.has(object.category.id),
  );
}

/** @param {DetectedObject} object */
export function colorOf(object) {
  return state.colorBy === "category" ? object.category.color : object.ownColor;
}

/**
 * An area as text, in the chosen unit.
 * @param {number} pixels
 */
export function areaText(pixels) {
  if (!state.pixelSize) return `${pixels.toLocaleString("en", { maximumFractionDigits: 0 })} px`;
  const { length, unit } = state.pixelSize;
  const area = pixels * length * length;
  return `${area.toLocaleString("en", { maximumSignificantDigits: 4 })} ${unit}²`;
}

/** @param {number} score 0..1 */
export function scoreText(score) {
  return `${Math.floor(score * 100)} %`;
}

/** An object in words. @param {DetectedObject} object */
export function describe(object) {
  const { number, category, score, area } = object;
  return `${number}: ${category.name}, ${scoreText(score)}, ${areaText(area)}`;
}

/** @param {number} count @param {string} word its plural has an s */
export function counted(count, word) {
  return `${count ? count.toLocaleString("en") : "no"} ${word}${count === 1 ? "" : "s"}`;
}
