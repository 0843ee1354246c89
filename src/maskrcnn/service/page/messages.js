/** Messages for the user: sentences that stay until they are closed. */

import { find, make } from "./dom.js";

/** @param {string} text one or two sentences */
export function report(text) {
  const messages = find("messages");
  if ([...messages.children].some((message) => message.firstChild.textContent === text)) return;
  const close = make("button", { type: "button", "aria-label": "Close this message" }, "×");
  const message = make("p", { className: "bar error" }, make("span", {}, text), close);
  close.addEventListener("click", () => message.remove());
  messages.append(message);
}

export function clearMessages() {
  find("messages").replaceChildren();
}
