/** Images from the camera. */

import { find, make } from "./dom.js";
import { addFiles } from "./intake.js";

const dialog = find("camera");
const video = find("camera-video");
const take = find("take");
/** @type {MediaStream|null} */
let stream = null;
let count = 0;

/** What can go wrong, by the name of the browser's error. */
const REASONS = {
  NotAllowedError:
    "The camera is blocked. Allow it in the browser's settings for this site, then try again.",
  NotFoundError: "No camera was found.",
  NotReadableError:
    "Another program is using the camera. Close that program, then open the camera again.",
};

/** @param {string} [device] id of a camera; by default the one that looks away from the user */
async function start(device) {
  stop();
  find("camera-message").textContent = "";
  if (!navigator.mediaDevices?.getUserMedia) {
    find("camera-message").textContent =
      "Browsers allow the camera only on https or localhost.";
    return;
  }
  try {
    const wish = device
      ? { deviceId: { exact: device } }
      : { facingMode: "environment", width: { ideal: 1920 } };
    const started = await navigator.mediaDevices.getUserMedia({ video: wish });
    if (!dialog.open) {
      for (const track of started.getTracks()) track.stop();
      return;
    }
    stream = started;
    video.srcObject = stream;
    await video.play();
    take.disabled = false;
    take.focus();
    await listCameras();
  } catch (error) {
    if (dialog.open)
      find("camera-message").textContent =
        REASONS[error.name] ?? `The camera cannot be used: ${error.message}`;
  }
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  video.srcObject = null;
  take.disabled = true;
}

/** Offers a choice where there are several cameras. */
async function listCameras() {
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(
    ({ kind }) => kind === "videoinput",
  );
  const used = stream?.getVideoTracks()[0].getSettings().deviceId;
  find("camera-choice").hidden = cameras.length < 2;
  find("cameras").replaceChildren(
    ...cameras.map(({ deviceId, label }, n) =>
      make("option", { value: deviceId, selected: deviceId === used }, label || `Camera ${n + 1}`),
    ),
  );
}

async function takeImage() {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  dialog.close();
  count++;
  addFiles([new File([blob], `camera_${count}.png`, { type: "image/png" })]);
}

find("use-camera").addEventListener("click", () => {
  dialog.showModal();
  start();
});
find("cameras").addEventListener("change", (event) => start(event.target.value));
find("close-camera").addEventListener("click", () => dialog.close());
take.addEventListener("click", takeImage);
dialog.addEventListener("close", stop);
