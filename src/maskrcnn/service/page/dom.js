/** Three words for working with the document. */

/**
 * Returns the element of an id.
 * @param {string} id
 * @returns {any} the element; its kind is known where it is used
 */
export function find(id) {
  return document.getElementById(id);
}

/**
 * Returns the elements that a selector matches.
 * @param {string} selector
 * @returns {any[]}
 */
export function findAll(selector) {
  return [...document.querySelectorAll(selector)];
}

/**
 * Makes an element.
 * @param {string} tag
 * @param {Object<string, any>} properties set on the element; names with a dash become attributes
 * @param {...(Node|string)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope")
      element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}
