// From what a file holds to what the model takes, as Petriscope does it: transparent parts on white, upright, gray or RGB, resized.

/** A decoded file as Uint8 [H, W, C] of the model's input {height, width, channels, filter, columns_first}. */
function fitted(image, orientation, input) {
  const upright = turned(onWhite(image), orientation);
  return resize(inColor(upright, input.channels), input.height, input.width, input.filter, input.columns_first);
}

/** Without its opacity, on white; in whole numbers as Pillow's alpha_composite has them. */
function onWhite(image) {
  const { opacity, channels, ...rest } = image;
  if (opacity === null || opacity === undefined) return image;
  const data = Uint8Array.from(image.data);
  for (let i = 0; i < opacity.length; i++) {
    for (let k = i * channels; k < (i + 1) * channels; k++) data[k] = blended(data[k], opacity[i]);
  }
  return { ...rest, channels, data, opacity: null };
}

/** A value on white, weighed with 7 bits behind the point, and divided by 255 by shifts. */
function blended(value, opacity) {
  if (opacity === 0) return 255;
  const sum = 128 * (value * opacity + 255 * (255 - opacity) + 128);
  return ((sum >> 8) + sum) >> 15;
}

/** The orientation of EXIF, 1 (upright) to 8, undone. */
function turned(image, orientation) {
  if (!(orientation >= 2 && orientation <= 8)) return image;
  const { height, width, channels, data } = image;
  const swapped = orientation >= 5;
  const size = swapped ? { height: width, width: height } : { height, width };
  const out = new Uint8Array(data.length);
  const right = [2, 3, 7, 8].includes(orientation); // read from the right
  const bottom = [3, 4, 6, 7].includes(orientation); // read from the bottom
  let at = 0;
  for (let y = 0; y < size.height; y++) {
    for (let x = 0; x < size.width; x++) {
      const [row, column] = swapped ? [x, y] : [y, x];
      const from = ((bottom ? height - 1 - row : row) * width + (right ? width - 1 - column : column)) * channels;
      for (let channel = 0; channel < channels; channel++) out[at++] = data[from + channel];
    }
  }
  return { ...image, ...size, data: out };
}

/** As gray (BT.601, with 16 bits behind the point) or RGB. */
function inColor(image, channels) {
  if (image.channels === channels) return image;
  const pixels = image.height * image.width;
  const { data } = image;
  const out = new Uint8Array(pixels * channels);
  for (let i = 0; i < pixels; i++) {
    if (channels === 1) out[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 32768) >> 16;
    else out.fill(data[i], 3 * i, 3 * i + 3);
  }
  return { ...image, channels, data: out };
}

/** The orientation in EXIF data, which begin with the header of a TIFF file; null if they have none. */
function orientationIn(exif) {
  try {
    const view = viewOf(exif);
    const little = exif[0] === 0x49;
    const start = view.getUint32(4, little);
    const entries = view.getUint16(start, little);
    for (let at = start + 2; at < start + 2 + 12 * entries; at += 12) {
      if (view.getUint16(at, little) !== 0x112) continue;
      const kind = view.getUint16(at + 2, little);
      return kind === 3 ? view.getUint16(at + 8, little) : kind === 4 ? view.getUint32(at + 8, little) : null;
    }
  } catch {
    return null; // damaged data say nothing
  }
  return null;
}
