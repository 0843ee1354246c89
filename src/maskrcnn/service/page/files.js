/** Files made in the browser: a gray PNG, a ZIP, and saving them. */

/** @typedef {[number, 1|2|4][]} Fields numbers and their sizes in bytes */

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** CRC-32 of some parts, one after the other. @param {...Uint8Array} parts */
function crc32(...parts) {
  let crc = 0xffffffff;
  for (const part of parts) {
    for (const byte of part) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * Numbers as bytes.
 * @param {Fields} fields
 * @param {boolean} littleEndian
 */
function packed(fields, littleEndian) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let offset = 0;
  for (const [value, size] of fields) {
    if (size === 1) view.setUint8(offset, value);
    else if (size === 2) view.setUint16(offset, value, littleEndian);
    else view.setUint32(offset, value, littleEndian);
    offset += size;
  }
  return new Uint8Array(view.buffer);
}

/**
 * A PNG with one byte per pixel, as LabelMe stores masks. A canvas would write color.
 * Source: www.w3.org/TR/png.
 * @param {Uint8Array} pixels row by row
 * @param {number} width
 * @param {number} height
 */
export async function grayPng(pixels, width, height) {
  const rows = new Uint8Array((width + 1) * height); // each row starts with its filter, 0
  for (let y = 0; y < height; y++)
    rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(deflated).arrayBuffer());

  const chunk = (name, content) => {
    const type = new TextEncoder().encode(name);
    return [
      packed([[content.length, 4]], false),
      type,
      content,
      packed([[crc32(type, content), 4]], false),
    ];
  };
  const header = packed(
    [
      [width, 4],
      [height, 4],
      [8, 1],
      [0, 1],
      [0, 1],
      [0, 1],
      [0, 1],
    ],
    false,
  );
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const parts = [
    signature,
    ...chunk("IHDR", header),
    ...chunk("IDAT", data),
    ...chunk("IEND", new Uint8Array()),
  ];
  return new Blob(parts, { type: "image/png" });
}

/** @param {Blob} blob */
export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

/**
 * A ZIP of files that are stored as they are: images are compressed already.
 * Source: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16.
 * @param {{name: string, blob: Blob}[]} files
 */
export async function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const content = new Uint8Array(await blob.arrayBuffer());
    const label = new TextEncoder().encode(name);
    const utf8 = 0x0800;
    const january1980 = 0x0021;
    /** @type {Fields} */
    const common = [
      [20, 2],
      [utf8, 2],
      [0, 2],
      [0, 2],
      [january1980, 2],
      [crc32(content), 4],
      [content.length, 4],
      [content.length, 4],
      [label.length, 2],
      [0, 2],
    ];
    const local = packed([[0x04034b50, 4], ...common], true);
    parts.push(local, label, content);
    directory.push(
      packed(
        [[0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]],
        true,
      ),
      label,
    );
    offset += local.length + label.length + content.length;
  }

  const size = directory.reduce((sum, part) => sum + part.length, 0);
  if (offset + size > 0xffffffff || files.length > 0xffff) {
    throw new Error("These files are too large for one ZIP. Download the images one by one.");
  }
  const end = packed(
    [
      [0x06054b50, 4],
      [0, 2],
      [0, 2],
      [files.length, 2],
      [files.length, 2],
      [size, 4],
      [offset, 4],
      [0, 2],
    ],
    true,
  );
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Lets the browser save a file. @param {string} name @param {Blob} blob */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
