/** The objects that are shown, as files: PNG, COCO JSON, LabelMe JSON and CSV. */

import { find, findAll } from "./dom.js";
import { drawObjects, KEYPOINT_SCORE } from "./drawing.js";
import { base64, grayPng, save, zip } from "./files.js";
import { pixelsOf } from "./intake.js";
import { cropOf } from "./masks.js";
import { report } from "./messages.js";
import { onChange, shownObjects, state } from "./state.js";

/** @typedef {import("./state.js").PageImage} PageImage */
/** @typedef {import("./state.js").DetectedObject} DetectedObject */

const COCO_OFFSET = 0.5; // in COCO's files the center of a pixel is a whole number, here it is 0.5

/** @param {unknown} content */
function jsonBlob(content) {
  return new Blob([JSON.stringify(content)], { type: "application/json" });
}

/** A number for a file, without digits that mean nothing. @param {number} value */
function rounded(value) {
  return Math.round(value * 1e4) / 1e4;
}

/** @param {DetectedObject} object */
function isLabeled(object) {
  return object.keypoints.map(({ score }) => score >= KEYPOINT_SCORE);
}

/**
 * One COCO file of several images. Keypoints with a low score are left unlabeled.
 * @param {PageImage[]} images
 */
export function cocoContent(images) {
  const categories = state.info.categories.map(({ color, ...category }) => category);
  const annotations = [];
  images.forEach((image, index) => {
    for (const object of shownObjects(image)) {
      const annotation = {
        id: annotations.length + 1,
        image_id: index + 1,
        category_id: object.category.id,
        score: object.score,
        bbox: object.bbox.map(rounded),
        area: rounded(object.area),
        iscrowd: 0,
      };
      if (object.rle) annotation.segmentation = object.rle;
      if (object.keypoints.length) {
        const labeled = isLabeled(object);
        annotation.keypoints = object.keypoints.flatMap(({ x, y }, n) =>
          labeled[n] ? [rounded(x - COCO_OFFSET), rounded(y - COCO_OFFSET), 2] : [0, 0, 0],
        );
        annotation.num_keypoints = labeled.filter(Boolean).length;
      }
      annotations.push(annotation);
    }
  });
  return {
    images: images.map(({ name, width, height }, index) => ({
      id: index + 1,
      file_name: name,
      width,
      height,
    })),
    annotations,
    categories,
  };
}

/**
 * A LabelMe file of one image. An object is its polygons, or a mask shape if it has holes, which
 * LabelMe's polygons cannot have; without a mask, a rectangle. Parts and keypoints of one object
 * share a group_id.
 * @param {PageImage} image
 */
export async function labelmeContent(image) {
  const shapes = [];
  for (const object of shownObjects(image)) shapes.push(...(await shapesOf(object)));
  return {
    version: "5.5.0",
    flags: {},
    shapes,
    imagePath: image.name,
    imageData: null,
    imageHeight: image.height,
    imageWidth: image.width,
  };
}

/**
 * The list labels.txt of LabelMe: categories and, indented, their keypoints. It rejects a name
 * that is listed twice.
 */
function labelsText() {
  const lines = new Map();
  for (const { name, keypoints = [] } of state.info.categories) {
    for (const [label, indent] of [[name, ""], ...keypoints.map((keypoint) => [keypoint, "  "])]) {
      if (!lines.has(label)) lines.set(label, `${indent}${label}\n`);
    }
  }
  return [...lines.values()].join("");
}

/** @param {DetectedObject} object */
async function shapesOf(object) {
  const shapes = [];
  const add = (type, points, more = {}) =>
    shapes.push({
      label: object.category.name,
      points: points.map((point) => point.map(rounded)),
      group_id: null,
      description: "",
      shape_type: type,
      flags: {},
      mask: null,
      score: object.score,
      ...more,
    });

  const crop = object.rle && object.hasHoles ? cropOf(object.rle) : null;
  if (crop) {
    const { x0, y0, width, height, pixels } = crop;
    const mask = await base64(await grayPng(pixels, width, height));
    add(
      "mask",
      [
        [x0, y0],
        [x0 + width - 1, y0 + height - 1],
      ],
      { mask },
    );
  } else if (object.polygons.length) {
    for (const polygon of object.polygons) add("polygon", polygon);
  } else {
    const [x, y, width, height] = object.bbox;
    add("rectangle", [
      [x, y],
      [x + width, y + height],
    ]);
  }

  const labeled = isLabeled(object);
  object.keypoints.forEach(({ x, y, score }, n) => {
    if (labeled[n]) add("point", [[x, y]], { label: object.category.keypoints[n], score });
  });
  if (shapes.length > 1) for (const shape of shapes) shape.group_id = object.number;
  return shapes;
}

/**
 * A table of several images, one object per row. With a pixel size it has areas in that unit.
 * @param {PageImage[]} images
 */
export function csvText(images) {
  const names = [...new Set(state.info.categories.flatMap((category) => category.keypoints ?? []))];
  const { pixelSize } = state;
  /** @type {(string|number)[][]} */
  const rows = [
    [
      "file_name",
      "object",
      "category_id",
      "category",
      "score",
      "x",
      "y",
      "width",
      "height",
      "area_px",
      ...(pixelSize ? [`area_${pixelSize.unit}2`] : []),
      ...names.flatMap((name) => [`${name}_x`, `${name}_y`, `${name}_score`]),
    ],
  ];
  for (const image of images) {
    for (const object of shownObjects(image)) {
      const keypoints = names.flatMap((name) => {
        const point = object.keypoints[(object.category.keypoints ?? []).indexOf(name)];
        const values = point ? [point.x, point.y, point.score].map(rounded) : ["", "", ""];
        return /** @type {(number|string)[]} */ (values);
      });
      rows.push([
        image.name,
        object.number,
        object.category.id,
        object.category.name,
        rounded(object.score),
        ...object.bbox.map(rounded),
        rounded(object.area),
        ...(pixelSize ? [Number((object.area * pixelSize.length ** 2).toPrecision(6))] : []),
        ...keypoints,
      ]);
    }
  }
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/**
 * A cell of a CSV file. Text that a spreadsheet would run as a formula gets an apostrophe.
 * @param {string|number} value
 */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The image in its own size with the layers that are on. @param {PageImage} image */
async function overlayPng(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d");
  const pixels = await pixelsOf(image);
  if (pixels) {
    context.drawImage(pixels, 0, 0, image.width, image.height);
    pixels.close();
  }
  const unit = Math.max(1, Math.max(image.width, image.height) / 800);
  drawObjects(context, shownObjects(image), {
    scale: 1,
    unit,
    exact: true,
    part: [0, 0, image.width, image.height],
  });

  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob)
    throw new Error(
      `${image.name}: this browser cannot write a PNG of ${image.width} x ${image.height} pixels.`,
    );
  return blob;
}

/** The name of a file beside an image. @param {PageImage} image @param {string} ending */
function besideName(image, ending) {
  return image.name.replace(/\.[^.]*$/, "") + ending;
}

/**
 * One file as it is, several as a ZIP.
 * @param {{name: string, blob: Blob}[]} files
 * @param {string} zipName
 */
async function saveAll(files, zipName) {
  if (files.length === 1) save(files[0].name, files[0].blob);
  else save(zipName, await zip(files));
}

/**
 * @param {PageImage[]} images
 * @param {string} ending
 * @param {(image: PageImage) => Promise<Blob>} make
 */
async function filePerImage(images, ending, make) {
  const files = new Map();
  for (const image of images) {
    const name = besideName(image, ending);
    files.set(files.has(name) ? image.name + ending : name, await make(image)); // a.png and a.jpg
  }
  return [...files].map(([name, blob]) => ({ name, blob }));
}

/** @type {Object<string, (images: PageImage[]) => Promise<void>>} */
const DOWNLOADS = {
  png: async (images) =>
    saveAll(await filePerImage(images, "_objects.png", overlayPng), "objects.zip"),
  coco: async (images) =>
    save(
      images.length === 1 ? besideName(images[0], "_coco.json") : "coco.json",
      jsonBlob(cocoContent(images)),
    ),
  labelme: async (images) => {
    const files = await filePerImage(images, ".json", async (image) =>
      jsonBlob(await labelmeContent(image)),
    );
    if (files.length > 1) files.push({ name: "labels.txt", blob: new Blob([labelsText()]) });
    await saveAll(files, "labelme.zip");
  },
  csv: async (images) => {
    // the mark tells spreadsheets that it is UTF-8
    const text = new Blob(["\ufeff", csvText(images)], { type: "text/csv" });
    save(images.length === 1 ? besideName(images[0], ".csv") : "objects.csv", text);
  },
};

for (const button of findAll("[data-download]")) {
  button.addEventListener("click", async () => {
    const done = state.images.filter(({ status }) => status === "done");
    const isAll = find("scope").value === "all";
    const images = isAll ? done : [state.current];
    const missing = state.images.length - done.length;
    if (isAll && missing)
      report(`Images without a prediction are left out: ${missing} of ${state.images.length}.`);
    button.disabled = true;
    try {
      await DOWNLOADS[button.dataset.download](images);
    } catch (error) {
      report(error.message);
    }
    button.disabled = false;
    button.focus();
  });
}

onChange("images current", () => {
  const done = state.images.filter(({ status }) => status === "done");
  const isMany = done.length > 1;
  find("downloads").hidden = state.current?.status !== "done";
  find("scope-line").hidden = !isMany;
  if (!isMany) find("scope").value = "one";
});
