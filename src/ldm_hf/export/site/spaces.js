// Gymnasium spaces, as the JSON that ldm_hf writes, and their values as the slots that a model reads and writes: the same as
// SlotLayout of ldm_hf/modeling/spaces_ldm.py. A value is a number, a flat array (in C order), or an object or array of values.

export const CONTINUOUS = 1, DISCRETE = 2;

const LEAST_IMAGE_SIDE = 5, MOST_CHANNELS = 16;

/** How the values of a space map to slots, in a fixed order, and to at most one image. */
export class SlotLayout {
  /**
   * @param {object} space its JSON
   * @param {{maxSlots: number, numBins: number, imageSize: number}} limits of the model; actions have no image
   */
  constructor(space, { maxSlots, numBins, imageSize }) {
    this.imageSize = imageSize;
    this.leaves = leavesOf(space).map(([path, part]) => leaf(path, part, maxSlots));
    this.slots = this.leaves.flatMap((one) => one.slots);
    const images = this.leaves.filter((one) => one.image);
    if (images.length > 1) throw new Error(`a space has ${images.length} images; at most one fits`);
    if (this.slots.length > maxSlots) throw new Error(`a space takes ${this.slots.length} slots; the limit is ${maxSlots}`);
    if (this.slots.some((slot) => slot.count > numBins)) throw new Error(`a slot has at most ${numBins} choices here`);
    this.hasImage = images.length > 0;
  }

  /** The slots of a value, as 32-bit floats, and its image: bytes of shape (3, size, size), or null. */
  flatten(value) {
    const slots = new Float32Array(this.slots.length);
    let image = null, next = 0;
    for (const { path, shape, image: isImage, slots: own, space } of this.leaves) {
      const part = path.reduce((whole, key) => whole[key], value);
      if (isImage) image = resized(rgb(part, shape, space), shape, this.imageSize);
      else if (typeof part === "number") slots[next++] = part - own[0].start;
      else for (let i = 0; i < own.length; i++) slots[next++] = part[i] - own[i].start;
    }
    if (slots.some(Number.isNaN)) throw new Error("an observation is not a number");
    return { slots, image };
  }

  /** The value that slots stand for; of one array or number only. */
  unflatten(slots) {
    if (this.leaves.length !== 1 || this.leaves[0].path.length) throw new Error("actions are one array or one number");
    const [{ shape, slots: own }] = this.leaves;
    const values = own.map(({ kind, start, low, high }, i) =>
      kind === DISCRETE ? slots[i] + start : Math.fround(Math.min(Math.max(slots[i], low), high)));
    return shape.length ? values : values[0];
  }
}

/** The parts of a space that hold no others, each with its path; texts are not read. */
function leavesOf(space, path = []) {
  if (space.type === "Dict")
    return Object.keys(space.spaces).sort().flatMap((key) => leavesOf(space.spaces[key], [...path, key]));
  if (space.type === "Tuple") return space.spaces.flatMap((part, i) => leavesOf(part, [...path, i]));
  return space.type === "Text" && path.length ? [] : [[path, space]];
}

function leaf(path, space, maxSlots) {
  const shape = space.shape ?? (space.type === "MultiBinary" ? [space.n].flat() : space.nvec ? [space.nvec.length] : []);
  const size = shape.reduce((product, side) => product * side, 1);
  const at = (values, i) => (Array.isArray(values) ? values[i] : values);
  const isBox = space.type === "Box" && space.dtype !== "bool";
  if (size > maxSlots && isImage(shape, space)) return { path, space, shape, image: true, slots: [] };
  const slot = (_, i) => {
    if (isBox) return { kind: CONTINUOUS, start: 0, count: 0, low: bound(at(space.low, i)), high: bound(at(space.high, i)) };
    const count = space.nvec ? space.nvec[i] : space.type === "Discrete" ? space.n : 2;
    return { kind: DISCRETE, start: at(space.start ?? 0, i), count, low: 0, high: count - 1 };
  };
  if (!isBox && !["Box", "Discrete", "MultiDiscrete", "MultiBinary"].includes(space.type))
    throw new Error(`a ${space.type} space does not fit a model`);
  return { path, space, shape, image: false, slots: Array.from({ length: size }, slot) };
}

const bound = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);

/** Whether an array is an image that is read here: bytes from 0 to 255 or truth values, the channels last. */
const isImage = ([height, width, channels], { dtype, low, high }) =>
  channels <= MOST_CHANNELS && Math.min(height, width) >= LEAST_IMAGE_SIDE &&
  (dtype === "bool" || (dtype === "uint8" && low === 0 && high === 255));

/** Bytes (height, width, 3) of an image (height, width, channels): planes of a board have evenly spaced hues. */
function rgb(values, [height, width, channels], { dtype }) {
  const bytes = new Uint8Array(height * width * 3), scale = dtype === "uint8" ? 1 : 255;
  if (channels === 1) return bytes.map((_, i) => values[Math.floor(i / 3)] * scale);
  if (channels === 3 || (channels === 4 && dtype === "uint8"))
    return bytes.map((_, i) => values[Math.floor(i / 3) * channels + (i % 3)] * scale);
  const hues = Array.from({ length: channels }, (_, i) => hue(i / channels));
  for (let pixel = 0; pixel < height * width; pixel++)
    for (let plane = 0; plane < channels; plane++)
      for (let colour = 0; colour < 3; colour++) {
        const place = pixel * 3 + colour;
        bytes[place] = Math.max(bytes[place], Math.round(values[pixel * channels + plane] * scale * hues[plane][colour]));
      }
  return bytes;
}

/** A colour of full strength, as Python's colorsys.hsv_to_rgb(hue, 1, 1). */
function hue(value) {
  const sector = Math.floor(value * 6), rise = value * 6 - sector;
  return [[1, rise, 0], [1 - rise, 1, 0], [0, 1, rise], [0, 1 - rise, 1], [rise, 0, 1], [1, 0, 1 - rise]][sector % 6];
}

/** Bytes (3, size, size) of an image (height, width, 3): boards are enlarged without blur. */
function resized(bytes, [height, width], size) {
  if (Math.max(height, width) > size) throw new Error(`images of more than ${size} pixels are not read here`);
  const made = new Uint8Array(3 * size * size), from = (place, side) => Math.floor((place + 0.5) * (side / size));
  for (let row = 0; row < size; row++)
    for (let column = 0; column < size; column++) {
      const pixel = (from(row, height) * width + from(column, width)) * 3;
      for (let colour = 0; colour < 3; colour++)
        made[(colour * size + row) * size + column] = bytes[pixel + colour];
    }
  return made;
}
