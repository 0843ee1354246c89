/**
 * Requests to the service, on addresses relative to the page.
 *
 * Everything that goes wrong is a ServerError whose message can be shown.
 */

/** @typedef {import("./state.js").Info} Info */

const KEY = "maskrcnn-api-key";
const MOST_TRIES = 20; // while the server's queue is full
const LONGEST_WAIT = 30; // seconds between two tries

/** What a status means, where a proxy answered instead of the service. */
const MEANINGS = {
  401: "The server needs an API key.",
  403: "The server refused the request.",
  404: "The service was not found at this address. Load the page again.",
  408: "The image did not arrive in time. Try again, or send a smaller image.",
  413: "The image is larger than the server accepts.",
  422: "The server could not read this image.",
  429: "Too many requests. Try again in a minute.",
  502: "The service behind this address does not answer. Try again in a minute.",
  503: "The server is busy. Try again in a minute.",
  504: "The prediction took too long. Try again, or send a smaller image.",
};

/** A failure with a sentence for the user. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} status 0: no response
   * @param {number} retryAfter seconds
   */
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** Whether the API key is missing or wrong. */
  get concernsKey() {
    return this.status === 401;
  }
}

let apiKey = stored() ?? "";

/** The key of this tab; browsers without storage forget it when the page is loaded again. */
function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** @param {string} key of the service; kept until the tab is closed */
export function useKey(key) {
  apiKey = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // See `stored`.
  }
}

export function hasKey() {
  return apiKey !== "";
}

/** @returns {Promise<Info>} */
export async function getInfo() {
  const response = await request("info");
  return json(response);
}

/**
 * Predicts the objects of one image. While the server's queue is full it waits and tries again.
 * @param {Blob} file
 * @param {string} name
 * @param {{min_score: number, [option: string]: string|number|boolean}} options of POST /predict
 * @param {AbortSignal} signal
 * @param {(seconds: number) => void} onBusy called before each wait
 */
export async function predict(file, name, options, signal, onBusy) {
  const query = new URLSearchParams(
    Object.entries(options).map(([key, value]) => [key, String(value)]),
  );
  for (let tries = 1; ; tries++) {
    const body = new FormData();
    body.append("files", file, name);
    try {
      return await json(await request(`predict?${query}`, { method: "POST", body, signal }));
    } catch (error) {
      const canWait = error instanceof ServerError && error.status === 503 && error.retryAfter > 0;
      if (!canWait || tries === MOST_TRIES) throw error;
      const seconds = Math.min(error.retryAfter, LONGEST_WAIT);
      onBusy(seconds);
      await pause(seconds, signal);
    }
  }
}

/**
 * @param {string} path relative to the page
 * @param {RequestInit} options
 */
async function request(path, options = {}) {
  const headers = apiKey ? { "X-API-Key": apiKey } : {};
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    const blob = options.body instanceof FormData ? options.body.get("files") : null;
    if (blob instanceof Blob && !(await isReadable(blob))) {
      throw new ServerError(
        "The browser could not read this file. It may have been moved or changed.",
      );
    }
    throw new ServerError("The server does not answer. Check that it is running, then try again.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** @param {Response} response */
async function json(response) {
  try {
    return await response.json();
  } catch {
    throw new ServerError("The connection ended before the response was complete. Try again.");
  }
}

/** @param {Response} response whose status is not 2xx */
async function failure(response) {
  const { status } = response;
  let error = null;
  try {
    ({ error } = await response.json());
  } catch {
    // A proxy's page, not the service's JSON.
  }
  let message =
    error?.message ?? MEANINGS[status] ?? `The server answered with status ${status}. Try again.`;
  message = asSentence(message);
  if (error?.id && status === 500) message += ` Its id is ${error.id}.`;
  const wait = Number(response.headers.get("Retry-After"));
  return new ServerError(message, status, Number.isFinite(wait) ? wait : 0);
}

/** With a capital and a full stop; a file name at the start stays as it is. @param {string} text */
function asSentence(text) {
  const start = /^[a-z]+ /.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

/** @param {Blob} blob */
async function isReadable(blob) {
  try {
    await blob.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

/** @param {number} seconds @param {AbortSignal} signal */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
