// Classify one PNG image of the model's size: node classify.mjs PACKAGE IMAGE. Needs the npm packages onnxruntime-web and pngjs.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

const [folder, file] = process.argv.slice(2);
const facts = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
const { height, width, channels } = facts.input;

const image = PNG.sync.read(readFileSync(file));
if (image.width !== width || image.height !== height || channels !== 3) {
  throw new Error(`the model takes RGB images of ${width} x ${height} pixels; resize them as package.json says under input`);
}
const pixels = new Uint8Array(height * width * 3);
for (let i = 0; i < height * width; i++) pixels.set(image.data.subarray(4 * i, 4 * i + 3), 3 * i); // without opacity

const session = await ort.InferenceSession.create(readFileSync(join(folder, "model.onnx")));
const found = await session.run({ images: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });

const rate = facts.error_rates.findIndex((each) => each.max_error === 0.01); // at most 1 % of the answers are wrong
const answer = Number(found.answers.data[rate]);
const confidence = Math.max(...found.probabilities.data);
console.log(answer < 0 ? "not sure" : facts.classes[answer], confidence.toFixed(4));
