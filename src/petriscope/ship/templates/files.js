// Reads image files. Browsers decode JPEG and WebP alone, and only after everything was taken out of the file that would make them
// turn the image or convert its colors. What a browser would read otherwise than Petriscope does is refused.

const MOST_BYTES = 2 ** 30;
const MOST_PIXELS = 64_000_000;
const GRAYISH = 8; // how far the channels of a gray image that is stored in color may differ
const OTHERS = [
  ["TIFF", "II*\0"], ["TIFF", "MM\0*"], ["BigTIFF", "II+\0"], ["BigTIFF", "MM\0+"], ["GIF", "GIF8"], ["PSD", "8BPS"],
  ["JPEG 2000", "\0\0\0\x0cjP"], ["JPEG 2000", "\xff\x4f\xff\x51"], ["AVIF or HEIF", "\0\0\0"],
];
const INSTEAD = "save it as PNG, or use petriscope predict";

const textAt = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/**
 * An image file (a Blob) in the form of the model's input: {height, width, channels, data: Uint8 [H, W, C], notes: what is lost}.
 * Its error is a reason, without the name of the file.
 */
async function readImage(file, input) {
  if (file.size > MOST_BYTES) throw new Error("it has more than 1 GiB");
  const bytes = new Uint8Array(await file.arrayBuffer());
  const image = await decoded(bytes, input.bits);
  return { ...fitted(image, image.orientation, input), notes: notesOf(image, input) };
}

async function decoded(bytes, bits) {
  if (isPng(bytes)) {
    const image = await readPng(bytes, bits);
    return { ...image, orientation: image.exif === null ? 1 : orientationIn(image.exif) ?? 1 };
  }
  if (textAt(bytes, 0, 3) === "\xff\xd8\xff") return fromJpeg(bytes);
  if (textAt(bytes, 0, 4) === "RIFF" && textAt(bytes, 8, 4) === "WEBP") return fromWebp(bytes);
  if (textAt(bytes, 0, 2) === "BM") return { ...readBmp(bytes), orientation: 1 };
  const other = OTHERS.find(([, start]) => textAt(bytes, 0, start.length) === start);
  if (other) throw new Error(`${other[0]} files are not read by this page; ${INSTEAD}`);
  throw new Error("not an image in a format that this page reads (PNG, JPEG, WebP, BMP)");
}

/** What is lost on the way from the file to the model: keys of NOTES. */
function notesOf({ channels, data, opacity, frames }, input) {
  const notes = frames > 1 ? ["frames"] : [];
  if (opacity?.some((value) => value < 255)) notes.push(opacity.some((value) => value > 0) ? "transparent" : "blank");
  if (input.channels === 1 && !input.gray && channels === 3 && isColored(data)) notes.push("color");
  return notes;
}

function isColored(data) {
  for (let i = 0; i < data.length; i += 3) {
    const [a, b, c] = [data[i], data[i + 1], data[i + 2]];
    if (Math.max(a, b, c) - Math.min(a, b, c) > GRAYISH) return true;
  }
  return false;
}

/** JPEG: without EXIF data and color profiles. */
async function fromJpeg(bytes) {
  const view = viewOf(bytes);
  const kept = [bytes.subarray(0, 2)];
  let [at, frame, exif, xmp] = [2, null, null, ""];
  for (;;) {
    while (at < bytes.length && bytes[at] === 0xff && bytes[at + 1] === 0xff) at++; // fill bytes
    if (at + 4 > bytes.length || bytes[at] !== 0xff) throw new Error("its header is damaged");
    const marker = bytes[at + 1];
    if (marker === 0xda) break;
    const end = at + 2 + view.getUint16(at + 2);
    const body = bytes.subarray(at + 4, end);
    if (marker === 0xe1 && exif === null && textAt(body, 0, 6) === "Exif\0\0") exif = body.subarray(6);
    if (marker === 0xe1 && textAt(body, 0, 29) === "http://ns.adobe.com/xap/1.0/\0") xmp += textAt(body, 29, body.length);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) frame = { marker, body };
    if (marker < 0xe1 || marker > 0xef || marker === 0xee) kept.push(bytes.subarray(at, end));
    at = end;
  }
  if (frame === null || frame.body.length < 6) throw new Error("its header is damaged");
  const [depth, channels] = [frame.body[0], frame.body[5]];
  if (frame.marker > 0xc2 || depth !== 8) throw new Error(`a kind of JPEG that browsers do not read; ${INSTEAD}`);
  if (channels !== 1 && channels !== 3) throw new Error(`a JPEG of ${channels} channels, which browsers convert; ${INSTEAD}`);
  const [height, width] = [viewOf(frame.body).getUint16(1), viewOf(frame.body).getUint16(3)];
  if (!hasEnd(bytes, at)) throw new Error("the file ends before its image does");
  const image = await byBrowser([...kept, bytes.subarray(at)], "image/jpeg", height, width);
  const tagged = /tiff:Orientation(?:="|>)([0-9])/.exec(xmp);
  const orientation = exif === null ? 1 : orientationIn(exif) ?? (tagged ? Number(tagged[1]) : 1);
  return { ...(channels === 1 ? oneChannel(image) : image), orientation };
}

function hasEnd(bytes, from) {
  for (let at = bytes.length - 2; at >= from; at--) if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return true;
  return false;
}

function oneChannel(image) {
  return { ...image, channels: 1, data: Uint8Array.from({ length: image.data.length / 3 }, (_, i) => image.data[3 * i]) };
}

/** WebP: without EXIF data and color profiles. */
async function fromWebp(bytes) {
  const view = viewOf(bytes);
  const kept = [];
  let exif = null;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const name = textAt(bytes, at, 4);
    const length = view.getUint32(at + 4, true);
    const end = at + 8 + length + (length & 1);
    if (at + 8 + length > bytes.length) throw new Error("the file ends before its image does");
    const part = bytes.slice(at, end);
    if (name === "VP8X") {
      if (part[8] & 2) throw new Error(`an animated WebP file; ${INSTEAD}`);
      part[8] &= 0x10; // of what follows, only opacity is kept
    }
    if (name === "EXIF") exif = textAt(part, 8, 6) === "Exif\0\0" ? part.subarray(14) : part.subarray(8);
    else if (name !== "ICCP" && name !== "XMP ") kept.push(part);
    at = end;
  }
  const header = new Uint8Array(12);
  header.set(bytes.subarray(0, 12));
  viewOf(header).setUint32(4, 4 + kept.reduce((total, part) => total + part.length, 0), true);
  const image = await byBrowser([header, ...kept], "image/webp");
  return { ...image, orientation: exif === null ? 1 : orientationIn(exif) ?? 1 };
}

/** BMP without compression, of 8 bits per pixel with a palette, or 24. */
function readBmp(bytes) {
  const view = viewOf(bytes);
  const header = bytes.length < 54 ? 0 : view.getUint32(14, true);
  const [width, signed] = header < 40 ? [0, 0] : [view.getInt32(18, true), view.getInt32(22, true)];
  const [height, start] = [Math.abs(signed), header < 40 ? 0 : view.getUint32(10, true)];
  if (width <= 0 || height === 0) throw new Error(`its header is damaged, or of a kind that this page does not read; ${INSTEAD}`);
  checkSize(height, width);
  const [bits, packed] = [view.getUint16(28, true), view.getUint32(30, true)];
  if (packed !== 0 || (bits !== 8 && bits !== 24)) throw new Error(`a BMP file of ${bits} bits or compressed; ${INSTEAD}`);
  const row = Math.ceil((width * bits) / 32) * 4;
  if (start + row * height > bytes.length) throw new Error("the file ends before its image does");
  const samples = new Uint8Array((width * height * bits) / 8);
  const length = (width * bits) / 8;
  for (let y = 0; y < height; y++) {
    const from = start + (signed > 0 ? height - 1 - y : y) * row;
    samples.set(bytes.subarray(from, from + length), y * length);
  }
  const size = { height, width, opacity: null };
  if (bits === 24) return { ...size, channels: 3, data: samples.map((_, i) => samples[i + 2 - 2 * (i % 3)]) };
  const palette = new Uint8Array(3 * Math.min(view.getUint32(46, true) || 256, 256));
  for (let k = 0; k < palette.length; k++) palette[k] = bytes[14 + header + 4 * Math.floor(k / 3) + 2 - (k % 3)];
  return { ...size, ...fromPalette(samples, palette, null) };
}

/** Parts of a file decoded by the browser. Where parts of it are half transparent, it does not hand over the colors exactly. */
async function byBrowser(parts, type, height = 1, width = 1) {
  checkSize(height, width);
  if (!(await readsExactly())) {
    throw new Error("this browser alters the pixels that pages read, against fingerprinting; allow it here, or save it as PNG");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob(parts, { type }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("the browser cannot decode it");
  }
  checkSize(bitmap.height, bitmap.width);
  const pixels = readBack(bitmap);
  const size = { height: bitmap.height, width: bitmap.width };
  bitmap.close();
  const data = new Uint8Array((pixels.length / 4) * 3);
  const opacity = new Uint8Array(pixels.length / 4);
  let clear = false;
  for (let i = 0, from = 0, to = 0; i < opacity.length; i++, from += 4) {
    data[to++] = pixels[from];
    data[to++] = pixels[from + 1];
    data[to++] = pixels[from + 2];
    opacity[i] = pixels[from + 3];
    clear ||= opacity[i] < 255;
  }
  if (clear && opacity.some((value) => value > 0 && value < 255)) {
    throw new Error(`it has half-transparent pixels, whose colors browsers do not hand over; ${INSTEAD}`);
  }
  return { ...size, channels: 3, data, opacity: clear ? opacity : null };
}

function readBack(drawn) {
  const context = new OffscreenCanvas(drawn.width, drawn.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(drawn, 0, 0);
  return context.getImageData(0, 0, drawn.width, drawn.height).data;
}

let exact = null;

/** Whether pixels come back from a canvas as they were drawn: some browsers add noise, so that pages cannot recognize them. */
function readsExactly() {
  exact ??= (async () => {
    const pixels = Uint8ClampedArray.from({ length: 4 * 64 * 64 }, (_, i) => (i % 4 === 3 ? 255 : (i * 97 + (i >> 7)) % 256));
    const back = readBack(await createImageBitmap(new ImageData(pixels, 64, 64)));
    return pixels.every((value, index) => value === back[index]);
  })();
  return exact;
}

function checkSize(height, width) {
  if (height * width > MOST_PIXELS) throw new Error(`${width} x ${height} is more than ${MOST_PIXELS / 1e6} megapixels`);
}
