/** Counts and areas: categories with their toggles, and the objects one by one. */

import { find, findAll, make } from "./dom.js";
import { goTo } from "./stage.js";
import {
  areaText,
  changed,
  colorOf,
  counted,
  describe,
  hover,
  onChange,
  scoreText,
  select,
  shownObjects,
  state,
} from "./state.js";

/** @typedef {import("./state.js").DetectedObject} DetectedObject */
/** @typedef {import("./state.js").Category} Category */

const MOST_ROWS = 2000;
const REST = 120; // milliseconds without a change, after which the rows of objects follow

const box = find("objects");
const body = find("object-rows");
/** @type {Map<DetectedObject, HTMLTableRowElement>} rows of the current image */
let rows = new Map();
/** @type {DetectedObject[]} in the order of the table */
let listed = [];
let order = { column: "number", sign: 1 };
/** The order of a column at the first click: 1 ascending, -1 descending. */
const FIRST_SIGNS = { number: 1, category: 1, score: -1, area: -1 };
let timer = 0;

/** @type {Object<string, (object: DetectedObject) => number|string>} */
const COLUMNS = {
  number: (object) => object.number,
  category: (object) => object.category.name,
  score: (object) => object.score,
  area: (object) => object.area,
};

/** @param {string} color */
function swatch(color) {
  const element = make("span", { className: "swatch", "aria-hidden": "true" });
  element.style.background = color;
  return element;
}

/** @param {DetectedObject[]} objects */
function totalArea(objects) {
  return objects.reduce((sum, { area }) => sum + area, 0);
}

/** @param {DetectedObject[]} objects */
function countCells(objects) {
  const area = totalArea(objects);
  const texts = [
    objects.length.toLocaleString("en"),
    areaText(area),
    objects.length ? areaText(area / objects.length) : "–",
  ];
  return texts.map((text) => make("td", {}, text));
}

/** Toggles, counts and areas of the categories that some image has. */
function showCategories() {
  const { info, images, current, hiddenCategories } = state;
  const present = new Set(
    images.flatMap((image) => image.objects.map((object) => object.category)),
  );
  const categories = info ? info.categories.filter((category) => present.has(category)) : [];
  find("categories").hidden = !categories.length || current?.status !== "done";
  find("toggle-all").hidden = categories.length < 2;
  const focused = document.activeElement?.getAttribute("data-category");

  const inImage = (current?.objects ?? []).filter((object) => object.score >= state.minScore);
  const rowsOf = categories.map((category) => {
    const toggle = make("input", {
      type: "checkbox",
      checked: !hiddenCategories.has(category.id),
      "data-category": String(category.id),
    });
    toggle.addEventListener("change", () => {
      if (toggle.checked) hiddenCategories.delete(category.id);
      else hiddenCategories.add(category.id);
      changed("filter");
    });
    const name = make(
      "label",
      {},
      toggle,
      ...(state.colorBy === "category" ? [swatch(category.color)] : []),
      category.name,
    );
    const objects = inImage.filter((object) => object.category === category);
    return make(
      "tr",
      { className: toggle.checked ? "" : "off" },
      make("th", { scope: "row" }, name),
      ...countCells(objects),
    );
  });
  find("category-rows").replaceChildren(...rowsOf);

  const shown = shownObjects(current);
  const total = make("tr", {}, make("th", { scope: "row" }, "Shown"), ...countCells(shown));
  find("category-total").replaceChildren(total);
  const absent = (info?.categories.length ?? 0) - categories.length;
  find("absent").textContent = absent
    ? `${absent} other ${absent === 1 ? "category" : "categories"} of the model: no object.`
    : "";
  if (focused) find("category-rows").querySelector(`[data-category="${focused}"]`)?.focus();
  showStatus(shown);
}

/** @param {number} shown @param {number} all */
function ofAll(shown, all) {
  return shown === all
    ? counted(all, "object")
    : `${shown.toLocaleString("en")} of ${counted(all, "object")}`;
}

/** @param {DetectedObject[]} shown */
function showStatus(shown) {
  const { current, images } = state;
  let text = "";
  if (current?.status === "done") {
    const all = current.objects.length;
    text = all
      ? `${ofAll(shown.length, all)} in ${current.name}.`
      : `The model detected no object in ${current.name}.`;
    if (all && !shown.length) text += " Lower the score, or show more categories.";
    const done = images.filter(({ status }) => status === "done");
    if (done.length > 1) {
      const sum = (count) => done.reduce((total, image) => total + count(image), 0);
      text += ` ${ofAll(
        sum((image) => shownObjects(image).length),
        sum((image) => image.objects.length),
      )} in ${done.length} images.`;
    }
  }
  if (find("status").textContent !== text) find("status").textContent = text;
}

/** @param {DetectedObject} object */
function rowOf(object) {
  const row = make(
    "tr",
    { tabIndex: -1 },
    make("td", {}, String(object.number)),
    make("td", {}, swatch(colorOf(object)), object.category.name),
    make("td", {}, scoreText(object.score)),
    make("td", {}, areaText(object.area)),
  );
  row.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hover(object));
  row.addEventListener("pointerleave", () => hover(null));
  row.addEventListener("click", () => goTo(object));
  return row;
}

/** The rows of the objects that are shown, in the chosen order. */
function showObjects() {
  const objects = shownObjects(state.current);
  const value = COLUMNS[order.column];
  objects.sort((a, b) => {
    if (value(a) === value(b)) return a.number - b.number;
    return value(a) < value(b) ? -order.sign : order.sign;
  });
  listed = objects.slice(0, MOST_ROWS);
  for (const object of listed) if (!rows.has(object)) rows.set(object, rowOf(object));
  body.replaceChildren(...listed.map((object) => rows.get(object)));

  box.hidden = !objects.length;
  const more = objects.length - listed.length;
  find("unlisted").textContent = more
    ? `${ofAll(MOST_ROWS, objects.length)} are listed. Downloads hold all.`
    : "";
  markRows();
}

/**
 * Marks the rows of the selected and the hovered object, and makes one row reachable by the Tab
 * key.
 */
function markRows() {
  for (const row of body.querySelectorAll(".hovered, [aria-current], [tabindex='0']")) {
    row.classList.remove("hovered");
    row.removeAttribute("aria-current");
    row.tabIndex = -1;
  }
  const selected = rows.get(state.selected);
  const hovered = rows.get(state.hovered);
  selected?.setAttribute("aria-current", "true");
  hovered?.classList.add("hovered");
  const reachable = selected?.isConnected ? selected : rows.get(listed[0]);
  if (reachable) reachable.tabIndex = 0;
}

/** Scrolls the table, and only the table, to a row. @param {DetectedObject|null} object */
function reveal(object) {
  const row = rows.get(object);
  if (!row?.isConnected || row.matches(":hover")) return;
  const header = box.querySelector("thead").offsetHeight;
  const [top, bottom] = [row.offsetTop - header, row.offsetTop + row.offsetHeight];
  if (top < box.scrollTop) box.scrollTop = top;
  else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
}

function newRows() {
  rows = new Map();
  showObjects();
}

body.addEventListener("keydown", (event) => {
  const index = listed.findIndex((object) => rows.get(object) === document.activeElement);
  const last = listed.length - 1;
  const target = {
    ArrowDown: Math.min(index + 1, last),
    ArrowUp: Math.max(index - 1, 0),
    Home: 0,
    End: last,
  }[event.key];
  if (target !== undefined) {
    event.preventDefault();
    select(listed[target]);
    rows.get(listed[target]).focus();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    if (listed[index]) goTo(listed[index]);
  } else if (event.key === "Escape") {
    select(null);
  }
});

for (const header of findAll("[data-sort]")) {
  header.firstElementChild.addEventListener("click", () => {
    const column = header.dataset.sort;
    const isSame = order.column === column;
    order = {
      column,
      sign: isSame ? -order.sign : FIRST_SIGNS[column],
    };
    for (const other of findAll("[data-sort]")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
    showObjects();
  });
}

find("show-all").addEventListener("click", () => {
  state.hiddenCategories.clear();
  changed("filter");
});
find("hide-all").addEventListener("click", () => {
  for (const category of state.info.categories) state.hiddenCategories.add(category.id);
  changed("filter");
});

onChange("current images unit color filter", showCategories);
onChange("current unit color", newRows);
onChange("filter", () => {
  clearTimeout(timer);
  timer = setTimeout(showObjects, REST);
});
onChange("hover", () => {
  markRows();
  reveal(state.hovered);
});
onChange("select", () => {
  markRows();
  reveal(state.selected);
  find("announcement").textContent = state.selected ? `Object ${describe(state.selected)}` : "";
});
