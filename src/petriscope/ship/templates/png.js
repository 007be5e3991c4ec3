// Reads PNG files as Petriscope does with Pillow: all kinds of pixels, 16 bits, transparency, interlacing. Browsers are not asked,
// since they convert colors, multiply them by their opacity, and give 8 bits of 16.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const GRAY = 0, RGB = 2, PALETTE = 3, GRAY_ALPHA = 4, RGB_ALPHA = 6; // kinds of pixels
const SAMPLES = { [GRAY]: 1, [RGB]: 3, [PALETTE]: 1, [GRAY_ALPHA]: 2, [RGB_ALPHA]: 4 };
const DEPTHS = { [GRAY]: [1, 2, 4, 8, 16], [RGB]: [8, 16], [PALETTE]: [1, 2, 4, 8], [GRAY_ALPHA]: [8, 16], [RGB_ALPHA]: [8, 16] };
// First column and row, and steps, of the seven passes of interlaced images.
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

const isPng = (bytes) => SIGNATURE.every((value, index) => bytes[index] === value);

/**
 * A PNG file as {height, width, channels: 1 or 3, data: Uint8 [H, W, C], opacity: Uint8 [H, W] or null, exif: bytes or null,
 * frames}.
 *
 * @param bits significant bits of an image with 16 bits; its values are scaled by 255 / (2 ** bits - 1).
 */
async function readPng(bytes, bits) {
  const file = chunksOf(bytes);
  const { height, width, depth, kind, interlaced } = file.header;
  checkSize(height, width);
  const raw = await inflate(file.data, sizeOf(file.header));
  const Samples = depth === 16 ? Uint16Array : Uint8Array;
  const samples = new Samples(height * width * SAMPLES[kind]);
  let at = 0;
  for (const [x, y, right, down] of interlaced ? PASSES : [[0, 0, 1, 1]]) {
    const columns = Math.ceil((width - x) / right);
    const rows = Math.ceil((height - y) / down);
    if (columns <= 0 || rows <= 0) continue;
    at = readPass(raw, at, samples, file.header, { x, y, right, down, columns, rows });
  }
  return { ...colorsOf(samples, file, bits), exif: file.exif, frames: file.frames };
}

function chunksOf(bytes) {
  const view = viewOf(bytes);
  const file = { header: null, palette: null, clear: null, exif: null, frames: 1, data: [] };
  for (let at = 8; ; ) {
    if (at + 12 > bytes.length) throw new Error("the file ends before its image does");
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const end = at + 8 + length;
    if (end + 4 > bytes.length) throw new Error("the file ends before its image does");
    const body = bytes.subarray(at + 8, end);
    if (view.getUint32(end) !== checksum(bytes.subarray(at + 4, end))) throw new Error(`its part ${name} is damaged`);
    if (name === "IHDR") file.header = headerOf(body);
    else if (file.header === null) throw new Error("its header is damaged");
    else if (name === "PLTE") file.palette = body;
    else if (name === "tRNS") file.clear = body;
    else if (name === "eXIf") file.exif = body;
    else if (name === "IDAT") file.data.push(body);
    else if (name === "acTL") file.frames = viewOf(body).getUint32(0);
    else if (name === "IEND") break;
    at = end + 4;
  }
  if (file.header.kind === PALETTE && file.palette === null) throw new Error("it has no palette");
  return file;
}

function headerOf(body) {
  if (body.length < 13) throw new Error("its header is damaged");
  const view = viewOf(body);
  const [width, height, depth, kind, interlaced] = [view.getUint32(0), view.getUint32(4), body[8], body[9], body[12]];
  if (!width || !height || !DEPTHS[kind]?.includes(depth) || interlaced > 1) throw new Error("its header is damaged");
  return { width, height, depth, kind, interlaced };
}

const bytesPerRow = (columns, { depth, kind }) => Math.ceil((columns * depth * SAMPLES[kind]) / 8);

/** How many bytes all rows have, each with the number of its filter. */
function sizeOf(header) {
  const { width, height, interlaced } = header;
  let size = 0;
  for (const [x, y, right, down] of interlaced ? PASSES : [[0, 0, 1, 1]]) {
    const [columns, rows] = [Math.ceil((width - x) / right), Math.ceil((height - y) / down)];
    if (columns > 0 && rows > 0) size += rows * (1 + bytesPerRow(columns, header));
  }
  return size;
}

/** Exactly `size` bytes out of compressed parts. */
async function inflate(parts, size) {
  const out = new Uint8Array(size);
  let at = 0;
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  try {
    for (let step = await reader.read(); !step.done && at < size; step = await reader.read()) {
      out.set(step.value.subarray(0, size - at), at);
      at += step.value.length;
    }
  } catch {
    if (at < size) throw new Error("its compressed pixels are damaged");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (at < size) throw new Error("it has fewer pixels than its header says");
  return out;
}

/** Undo the filters of one pass, and put its samples in their places. Returns where the next pass begins. */
function readPass(raw, at, samples, header, { x, y, right, down, columns, rows }) {
  const { width, depth, kind } = header;
  const each = SAMPLES[kind];
  const length = bytesPerRow(columns, header);
  const step = Math.max(1, (depth * each) >> 3);
  let before = new Uint8Array(length);
  for (let row = 0; row < rows; row++) {
    const line = raw.subarray(at + 1, at + 1 + length);
    unfilter(raw[at], line, before, step);
    at += 1 + length;
    before = line;
    const start = (y + row * down) * width * each;
    if (depth === 8 && right === 1) {
      samples.set(line, start + x * each);
      continue;
    }
    for (let column = 0, k = 0; column < columns; column++) {
      const to = start + (x + column * right) * each;
      for (let sample = 0; sample < each; sample++, k++) samples[to + sample] = sampleAt(line, k, depth);
    }
  }
  return at;
}

function sampleAt(line, k, depth) {
  if (depth === 8) return line[k];
  if (depth === 16) return (line[2 * k] << 8) | line[2 * k + 1];
  const place = k * depth;
  return (line[place >> 3] >> (8 - depth - (place & 7))) & ((1 << depth) - 1);
}

function unfilter(filter, line, before, step) {
  if (filter > 4) throw new Error("its rows are damaged");
  if (filter === 0) return;
  if (filter === 2) {
    for (let k = 0; k < line.length; k++) line[k] += before[k];
    return;
  }
  for (let k = 0; k < line.length; k++) {
    const left = k < step ? 0 : line[k - step];
    if (filter === 1) line[k] += left;
    else if (filter === 3) line[k] += (left + before[k]) >> 1;
    else line[k] += paeth(left, before[k], k < step ? 0 : before[k - step]);
  }
}

/** Of the left, upper and corner neighbor, the one nearest to left + up - corner. */
function paeth(left, up, corner) {
  const a = Math.abs(up - corner);
  const b = Math.abs(left - corner);
  const c = Math.abs(left + up - 2 * corner);
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/** Samples as gray or RGB with 8 bits, and their opacity. */
function colorsOf(samples, { header, palette, clear }, bits) {
  const { height, width, depth, kind } = header;
  const pixels = height * width;
  const size = { height, width };
  if (kind === PALETTE) return { ...size, ...fromPalette(samples, palette, clear) };
  const each = SAMPLES[kind];
  const alpha = kind === GRAY_ALPHA || kind === RGB_ALPHA;
  const channels = alpha ? each - 1 : each;
  let opacity = null;
  if (alpha) opacity = Uint8Array.from({ length: pixels }, (_, i) => eightBits(samples[i * each + channels], depth));
  const key = !alpha && clear !== null ? keyOf(clear, channels) : null;
  let data = samples;
  if (depth !== 8 || alpha) {
    const scale = depth === 16 ? scaleOf(samples, bits, kind, channels, each) : (value) => scaledUp(value, depth);
    data = new Uint8Array(pixels * channels);
    for (let i = 0; i < pixels; i++) {
      for (let channel = 0; channel < channels; channel++) data[i * channels + channel] = scale(samples[i * each + channel]);
    }
  }
  if (key !== null) {
    // Pillow compares the key with gray values that it has scaled to 8 bits.
    const plain = (value) => (depth < 8 ? scaledUp(value, depth) : value);
    const same = (i) => key.every((value, channel) => value === plain(samples[i * each + channel]));
    opacity = Uint8Array.from({ length: pixels }, (_, i) => (same(i) ? 0 : 255));
  }
  return { ...size, channels, data, opacity };
}

const eightBits = (value, depth) => (depth === 16 ? value >> 8 : value);
const scaledUp = (value, depth) => (depth < 8 ? Math.floor((value * 255) / ((1 << depth) - 1)) : value);

function keyOf(clear, channels) {
  if (clear.length < 2 * channels) throw new Error("its transparent color is damaged");
  return Array.from({ length: channels }, (_, k) => (clear[2 * k] << 8) | clear[2 * k + 1]);
}

/** How a value of 16 bits becomes one of 8. */
function scaleOf(samples, bits, kind, channels, each) {
  if (kind === GRAY_ALPHA) {
    if (bits < 16) throw new Error(`only the upper 8 of its 16 bits are read, so data.bits=${bits} does not apply`);
    return (value) => value >> 8;
  }
  const top = 2 ** bits - 1;
  checkBrightness(samples, bits, channels, each);
  return (value) => Math.floor((Math.min(value, top) * 255 + Math.floor(top / 2)) / top);
}

/** A few values, such as hot pixels, may be brighter than the bits allow. */
function checkBrightness(samples, bits, channels, each) {
  const top = 2 ** bits - 1;
  let [count, brightest] = [0, 0];
  for (let i = 0; i < samples.length; i += each) {
    for (let channel = 0; channel < channels; channel++) {
      const value = samples[i + channel];
      if (value > top) count++;
      if (value > brightest) brightest = value;
    }
  }
  if (count > Math.max(1, 0.01 * (samples.length / each) * channels)) {
    throw new Error(`its brightest pixel, ${brightest}, is more than data.bits=${bits} allows; increase data.bits`);
  }
}

function fromPalette(samples, palette, clear) {
  const colors = Math.floor(palette.length / 3);
  const is = (k, channel) => palette[3 * k + channel];
  let gray = true;
  for (let k = 0; k < colors; k++) gray &&= is(k, 0) === is(k, 1) && is(k, 0) === is(k, 2);
  const channels = gray ? 1 : 3;
  const data = new Uint8Array(samples.length * channels);
  samples.forEach((k, i) => {
    if (k >= colors) throw new Error(`it has a pixel of color ${k}, and its palette has ${colors}`);
    for (let channel = 0; channel < channels; channel++) data[i * channels + channel] = is(k, channel);
  });
  const opacity = clear === null ? null : Uint8Array.from(samples, (k) => clear[k] ?? 255);
  return { channels, data, opacity };
}

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let k = 0; k < 8; k++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** CRC-32. */
function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}
