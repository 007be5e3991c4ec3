// Resizes images as Pillow does, bit for bit: a separable convolution whose kernel is stretched where an image shrinks, in whole
// numbers with 22 bits behind the point, each pass rounded to 8 bits.

const POINT_BITS = 22;
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const KERNELS = {
  box: { reach: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, weight: keys },
  lanczos: { reach: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/** The cubic kernel of Keys (1981) with a = -1/2. */
function keys(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

/**
 * The image {height, width, channels, data: Uint8 [H, W, C]} in another size, by one of KERNELS or "nearest".
 *
 * Pillow 13 shrinks columns first where the height loses more than twice as many pixels as the width, older versions never do;
 * it matters, because each pass is rounded.
 */
function resize(image, height, width, filter, columnsFirst) {
  if (image.height === height && image.width === width) return image;
  if (filter === "nearest") return nearest(image, height, width);
  if (!Object.hasOwn(KERNELS, filter)) throw new Error(`the filter ${filter} is not known`);
  const tall = columnsFirst && image.height > height && image.height - height > 2 * (image.width - width);
  const passes = [(out) => wider(out, width, filter), (out) => taller(out, height, filter)];
  return (tall ? passes.reverse() : passes).reduce((out, pass) => pass(out), image);
}

function wider(image, width, filter) {
  if (width === image.width) return image;
  const { height, channels } = image;
  const data = new Uint8ClampedArray(height * width * channels);
  const taps = tapsOf(image.width, width, KERNELS[filter]);
  for (let y = 0; y < height; y++) {
    convolve(image.data, data, taps, y * image.width * channels, y * width * channels, channels, channels);
  }
  return { ...image, width, data };
}

function taller(image, height, filter) {
  if (height === image.height) return image;
  const row = image.width * image.channels;
  const data = new Uint8ClampedArray(height * row);
  const taps = tapsOf(image.height, height, KERNELS[filter]);
  for (let x = 0; x < row; x += image.channels) convolve(image.data, data, taps, x, x, row, image.channels);
  return { ...image, height, data };
}

/** For each new pixel of a line, which old ones count, and how much. */
function tapsOf(size, wanted, { reach, weight }) {
  const ratio = size / wanted;
  const stretch = Math.max(ratio, 1);
  const taps = [];
  for (let place = 0; place < wanted; place++) {
    const center = (place + 0.5) * ratio;
    const first = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
    const end = Math.min(size, Math.trunc(center + reach * stretch + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(weight((x - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, each) => total + each, 0);
    taps.push({ first, weights: Int32Array.from(weights, (each) => roundedAway((each / sum) * 2 ** POINT_BITS)) });
  }
  return taps;
}

/** Rounded to the nearest whole number, halves away from 0. */
function roundedAway(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

/** One line of pixels, which begins at `from` and is written at `to`; neighbors in it are `step` values apart. */
function convolve(source, target, taps, from, to, step, channels) {
  for (let place = 0; place < taps.length; place++) {
    const { first, weights } = taps[place];
    for (let channel = 0; channel < channels; channel++) {
      let sum = 1 << (POINT_BITS - 1);
      let at = from + first * step + channel;
      for (let k = 0; k < weights.length; k++, at += step) sum += source[at] * weights[k];
      target[to + place * step + channel] = sum >> POINT_BITS; // clamped to 0..255 by the array
    }
  }
}

function nearest(image, height, width) {
  const { channels, data } = image;
  const columns = placesOf(image.width, width);
  const rows = placesOf(image.height, height);
  const out = new Uint8ClampedArray(height * width * channels);
  let at = 0;
  for (const y of rows) {
    for (const x of columns) {
      const from = (y * image.width + x) * channels;
      for (let channel = 0; channel < channels; channel++) out[at++] = data[from + channel];
    }
  }
  return { ...image, height, width, data: out };
}

/** The old place of each new pixel of a line. Steps are added up as Pillow adds them, whose rounding is part of the result. */
function placesOf(size, wanted) {
  const step = size / wanted;
  const places = [];
  for (let at = step * 0.5; places.length < wanted; at += step) places.push(Math.min(size - 1, Math.trunc(at)));
  return places;
}
