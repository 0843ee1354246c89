/** Starts the page: the model, the controls, and the ways in for images. */

import "./camera.js";
import { find, findAll } from "./dom.js";
import "./downloads.js";
import "./gestures.js";
import { addDropped, addFiles, resume, sendWaiting } from "./intake.js";
import { clearMessages, report } from "./messages.js";
import { getInfo, hasKey, ServerError, useKey } from "./server.js";
import { changed, counted, onChange, state } from "./state.js";
import "./table.js";
import "./thumbnails.js";

/**
 * The examples, and the categories of models that each is for. LICENSES.md says where they are
 * from.
 */
const EXAMPLES = [
  { file: "example_coffee.jpg", categories: ["cup", "spoon", "dining table"] },
  { file: "example_scene.png", categories: ["ball", "star", "ring", "figure"] },
  { file: "example_micrograph.png", categories: [] },
];
const RETRY = 5000; // milliseconds between tries while the server does not answer

async function start() {
  try {
    state.info = await getInfo();
  } catch (error) {
    report(error.message);
    if (error instanceof ServerError && error.concernsKey) askForKey();
    else setTimeout(start, RETRY);
    return;
  }
  clearMessages();
  changed("info");
  sendWaiting();
}

function showModel() {
  const { name, categories, has_masks, has_keypoints, min_score, lowest_score, api_key_required } =
    state.info;
  const names =
    categories.length === 1
      ? categories[0].name
      : counted(categories.length, "category").replace(/ys$/, "ies");
  find("model").textContent = `${name}: ${names}`;
  document.title = `${name} · maskrcnn`;

  for (const [layer, exists] of Object.entries({
    masks: has_masks,
    polygons: has_masks,
    keypoints: has_keypoints,
  })) {
    for (const label of findAll(`[data-layer="${layer}"]`)) label.hidden = !exists;
  }
  state.colorBy = categories.length === 1 ? "object" : "category";
  find("color-by").value = state.colorBy;
  find("score").min = String(Math.floor(lowest_score * 100));
  find("score").value = String(Math.round(Math.max(min_score, lowest_score) * 100));
  readScore();
  find("example-image").src = new URL(exampleOfModel().file, import.meta.url).href;
  if (api_key_required && !hasKey()) askForKey();
}

function readScore() {
  const percent = Number(find("score").value);
  state.minScore = percent / 100;
  find("score-value").textContent = `${percent} %`;
  find("score").setAttribute("aria-valuetext", `${percent} percent`);
  changed("filter");
}

function exampleOfModel() {
  const names = new Set(state.info?.categories.map(({ name }) => name));
  return (
    EXAMPLES.find(({ categories }) => categories.some((name) => names.has(name))) ?? EXAMPLES.at(-1)
  );
}

async function addExample() {
  const { file } = exampleOfModel();
  try {
    const response = await fetch(new URL(file, import.meta.url));
    if (!response.ok) throw new Error(`status ${response.status}`);
    const blob = await response.blob();
    addFiles([new File([blob], file, { type: blob.type })]);
  } catch {
    report(
      "The example image could not be loaded. Check that the server is running, then try again.",
    );
  }
}

/** @param {string} [message] */
function askForKey(message) {
  find("key-form").hidden = false;
  if (message) find("key-message").textContent = message;
  find("key").focus();
}

function readPixelSize() {
  const input = find("pixel-length");
  const length = Number(input.value);
  const isWrong = input.validity.badInput || (input.value !== "" && !(length > 0));
  find("pixel-message").textContent = isWrong ? "Expected a number above 0." : "";
  input.setAttribute("aria-invalid", String(isWrong));
  state.pixelSize =
    !isWrong && input.value !== "" ? { length, unit: find("pixel-unit").value } : null;
  changed("unit");
}

// Controls
find("score").addEventListener("input", readScore);
find("color-by").addEventListener("change", (event) => {
  state.colorBy = event.target.value;
  changed("color");
});
find("layers").addEventListener("change", ({ target }) => {
  if (!(target.name in state.layers)) return;
  state.layers[target.name] = target.checked;
  changed("look");
});
find("pixel-length").addEventListener("input", readPixelSize);
find("pixel-unit").addEventListener("change", readPixelSize);
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("key").value);
  find("key-form").hidden = true;
  if (state.info) resume();
  else start();
});

// Ways in for images
find("choose").addEventListener("click", () => find("files").click());
find("files").addEventListener("change", ({ target }) => {
  addFiles(target.files);
  target.value = ""; // so that the same file can be chosen again
});
find("example").addEventListener("click", addExample);
find("try-example").addEventListener("click", addExample);

const hasFiles = (event) => event.dataTransfer.types.includes("Files");
let dragDepth = 0;
addEventListener("dragenter", (event) => {
  event.preventDefault();
  if (hasFiles(event)) dragDepth++;
  document.body.classList.toggle("dragging", dragDepth > 0);
});
addEventListener("dragleave", (event) => {
  if (hasFiles(event)) dragDepth--;
  document.body.classList.toggle("dragging", dragDepth > 0);
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragDepth = 0;
  document.body.classList.remove("dragging");
  addDropped(event.dataTransfer).catch((error) =>
    report(`A dropped file cannot be read: ${error.message}`),
  );
});
addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  if (files.length) addFiles(files);
  else if (!(/** @type {Element} */ (event.target).matches("input")))
    report("Paste an image, not text: this page loads nothing from other addresses.");
});

onChange("info", showModel);
onChange("images current", () => {
  find("pixel-size").hidden = state.current?.status !== "done";
});
onChange("key", () => askForKey("The server did not accept this key."));
start();
