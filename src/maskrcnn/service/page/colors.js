/** Colors of objects. */

/** As maskrcnn.draw.style.PALETTE: easy to tell apart on photographs; the first few differ most. */
export const PALETTE = [
  "#ff4040",
  "#00aeff",
  "#ffc400",
  "#40dc60",
  "#d65cff",
  "#ff8000",
  "#00e6d6",
  "#ff69b4",
  "#9ee000",
  "#6078ff",
  "#cd8550",
  "#96ffc8",
];
const REACH = 0.25; // boxes are neighbors if they are nearer than this part of the longer side

/**
 * A color for each box; neighbors have equal ones only if the palette is exhausted.
 * @param {number[][]} boxes x, y, width, height
 * @returns {string[]}
 */
export function distinctColors(boxes) {
  const reached = boxes.map(([x, y, width, height]) => {
    const reach = REACH * Math.max(width, height);
    return [x - reach, y - reach, x + width + reach, y + height + reach];
  });
  const chosen = [];
  const uses = PALETTE.map(() => 0);

  // Each box takes the color that is rarest among its neighbors, then rarest overall.
  for (const [left, top, right, bottom] of reached) {
    const taken = PALETTE.map(() => 0);
    chosen.forEach((color, n) => {
      const other = reached[n];
      if (other[0] < right && other[2] > left && other[1] < bottom && other[3] > top)
        taken[color]++;
    });
    let best = 0;
    for (let color = 1; color < PALETTE.length; color++) {
      if (taken[color] < taken[best] || (taken[color] === taken[best] && uses[color] < uses[best]))
        best = color;
    }
    uses[best]++;
    chosen.push(best);
  }
  return chosen.map((color) => PALETTE[color]);
}

/** Black or white, whichever is readable on a color. @param {string} color "#rrggbb" */
export function readableOn(color) {
  const [red, green, blue] = channels(color);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 120 ? "#000000" : "#ffffff";
}

/** A lighter color. @param {string} color "#rrggbb" @param {number} share 0..1 of white */
export function lighter(color, share) {
  const mixed = channels(color).map((channel) => Math.round(channel * (1 - share) + 255 * share));
  return `rgb(${mixed})`;
}

/** @param {string} color "#rrggbb" */
function channels(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}
