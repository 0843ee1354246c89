/** The server's response as objects that can be drawn: `readPrediction(answer, categories)`. */

import { distinctColors } from "./colors.js";
import { cropOf, pathOf, simplify, trace } from "./masks.js";

/** @typedef {import("./state.js").Category} Category */
/** @typedef {import("./state.js").DetectedObject} DetectedObject */

const TOLERANCE = 0.5; // pixels, as `maskrcnn predict --format`
const BUSY = 30; // milliseconds

/**
 * Returns the objects of one image, best score first. Large masks take milliseconds each; the page
 * reacts in between.
 * @param {any[]} annotations of POST /predict, masks as RLE
 * @param {Category[]} categories of GET /info
 * @returns {Promise<DetectedObject[]>}
 */
export async function readPrediction(annotations, categories) {
  const byId = new Map(categories.map((category) => [category.id, category]));
  const sorted = [...annotations].sort((a, b) => b.score - a.score);
  const colors = distinctColors(sorted.map((annotation) => annotation.bbox));
  const objects = [];
  let pause = performance.now();
  for (const annotation of sorted) {
    const category = byId.get(annotation.category_id);
    if (!category) throw new Error("The server has loaded another model. Load this page again.");
    objects.push({
      number: objects.length + 1,
      category,
      score: annotation.score,
      bbox: annotation.bbox,
      area: annotation.area,
      keypoints: keypointsOf(annotation, category),
      ownColor: colors[objects.length],
      ...shapeOf(annotation.segmentation ?? null),
    });
    if (performance.now() - pause > BUSY) {
      await new Promise((done) => setTimeout(done));
      pause = performance.now();
    }
  }
  return objects;
}

/** @param {any} annotation @param {Category} category */
function keypointsOf(annotation, category) {
  const byName = annotation.keypoints_by_name;
  return byName ? (category.keypoints ?? []).map((name) => byName[name]) : [];
}

/** @param {import("./state.js").Rle|null} rle */
function shapeOf(rle) {
  const crop = rle && cropOf(rle);
  if (!crop) return { rle: null, polygons: [], hasHoles: false, maskPath: null, polygonPath: null };

  const contours = trace(crop);
  const polygons = contours.map((contour) => simplify(contour.corners, TOLERANCE));
  return {
    rle,
    polygons,
    hasHoles: contours.some((contour) => contour.isHole),
    maskPath: pathOf(contours.map((contour) => contour.corners)),
    polygonPath: pathOf(polygons),
  };
}
