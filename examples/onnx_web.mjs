// Objects in an image, with onnxruntime-web alone, in Node.js or a browser:
//   npm install onnxruntime-web
//   node onnx_web.mjs MODEL.onnx IMAGE HEIGHT WIDTH
// MODEL.onnx: what `maskrcnn export MODEL OUT.onnx` wrote. IMAGE: a file of HEIGHT x WIDTH x 3
// bytes, RGB. In a browser, `getImageData` of a canvas has the pixels; leave out every fourth byte.
// Prints one line of JSON per object. onnxruntime-web shows no metadata; the names of the
// categories are in OUT.onnx: `onnx.load("OUT.onnx").metadata_props` in Python.
import { readFile } from "node:fs/promises";

const ort = await import(process.env.ONNXRUNTIME_WEB ?? "onnxruntime-web");
ort.env.wasm.numThreads = 1;

export async function detect(session, pixels, height, width) {
  const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const outputs = await session.run({ images });
  const objects = [];
  for (let i = 0; i < outputs.valid.data.length && outputs.valid.data[i]; i++) {
    const of = (name) => {
      const [, , ...sides] = outputs[name].dims;
      const size = sides.reduce((a, b) => a * b, 1);
      return Array.from(outputs[name].data.slice(i * size, (i + 1) * size));
    };
    objects.push({
      label: Number(of("labels")[0]), // 64-bit numbers are BigInt in JavaScript
      score: of("scores")[0],
      box: of("boxes"),
      // Probabilities over the box; draw them where they are above the mask threshold.
      mask: outputs.masks ? of("masks") : [],
      keypoints: outputs.keypoints ? of("keypoints") : [],
    });
  }
  return objects;
}

const [model, image, height, width] = process.argv.slice(2);
const session = await ort.InferenceSession.create(await readFile(model));
const pixels = new Uint8Array(await readFile(image));
for (const object of await detect(session, pixels, Number(height), Number(width))) {
  console.log(JSON.stringify(object));
}
