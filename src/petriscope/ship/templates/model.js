// The model in the page, run by onnxruntime-web without threads and without network.

/** The bytes of a part of the page: compressed with gzip, as base64. The element is removed, since it takes memory. */
async function partOf(id) {
  const element = document.getElementById(id);
  const binary = atob(element.textContent);
  element.remove();
  const packed = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) packed[i] = binary.charCodeAt(i);
  return new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

async function loadModel(about) {
  // The address of a blob is the only one that a page from a file may import.
  const address = URL.createObjectURL(new Blob([await partOf("runtime")], { type: "text/javascript" }));
  const ort = await import(address);
  URL.revokeObjectURL(address);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await partOf("wasm")).buffer;
  const session = await ort.InferenceSession.create(await partOf("model"), { executionProviders: ["wasm"], logSeverityLevel: 3 });
  const read = { masks: maskAt, labels: labelsAt, class: resultAt }[about.kind];
  const { height, width, channels } = about.input;
  let last = Promise.resolve();
  return {
    ...about,
    likeness: readLikeness(about.likeness),
    /** Results of images, Uint8 [H, W, C] each, in their order. */
    run(images) {
      last = last.catch(() => {}).then(() => this.runAlone(images));
      return last;
    },
    async runAlone(images) {
      const pixels = new Uint8Array(images.length * height * width * channels);
      images.forEach((image, i) => pixels.set(image.data, i * image.data.length));
      const input = new ort.Tensor("uint8", pixels, [images.length, height, width, channels]);
      const outputs = await session.run({ images: input });
      const found = images.map((_, i) => read(outputs, i, about));
      Object.values(outputs).forEach((output) => output.dispose());
      return found;
    },
  };
}

/** One row of an output, as a copy. */
function rowOf(output, i) {
  const length = output.dims.slice(1).reduce((product, size) => product * size, 1);
  return output.data.slice(i * length, (i + 1) * length);
}

function resultAt(outputs, i) {
  return {
    ...commonAt(outputs, i),
    label: Number(outputs.label.data[i]),
    uncertainty: outputs.uncertainty.data[i],
    sets: rowOf(outputs.sets, i),
  };
}

/** The uncertainty is the mean over the labels of how near each probability is to 1/2, before scaling. */
function labelsAt(outputs, i) {
  return {
    ...commonAt(outputs, i),
    labels: Array.from(rowOf(outputs.labels, i), Number),
    uncertainty: outputs.plain_uncertainty.data[i],
  };
}

function commonAt(outputs, i) {
  return {
    probabilities: rowOf(outputs.probabilities, i),
    ood: outputs.ood.data[i],
    answers: Array.from(rowOf(outputs.answers, i), Number),
    points: rowOf(outputs.points, i),
    plain_label: Number(outputs.plain_label.data[i]),
    plain_uncertainty: outputs.plain_uncertainty.data[i],
    appearance: rowOf(outputs.appearance, i),
  };
}

function maskAt(outputs, i, { classes }) {
  const mask = rowOf(outputs.classes, i);
  const shares = new Array(classes.length).fill(0);
  for (const k of mask) shares[k]++;
  const confidences = rowOf(outputs.confidence, i);
  const confidence = confidences.reduce((total, value) => total + value, 0) / mask.length;
  return { mask, shares: shares.map((count) => count / mask.length), confidence, uncertainty: 1 - confidence };
}
