// Numbers as bins and back: ldm_hf/modeling/quantization_ldm.py, in the same 32-bit arithmetic.

import { CONTINUOUS } from "./spaces.js";

const f = Math.fround;

/** The mu-law, and actions as bins; made of a model's settings. */
export class ActionCode {
  constructor({ num_bins, mu, max_value, action_quantization }) {
    Object.assign(this, { numBins: num_bins, mu, maxValue: max_value, isUniform: action_quantization === "uniform" });
  }

  /** The bin of a number. */
  bin(value) {
    return this.#clamped(this.#muLawPosition(value));
  }

  /** The lowest and highest bin that an action slot may take. */
  allowed(slot) {
    if (slot.kind !== CONTINUOUS) return [0, Math.min(slot.high, this.numBins - 1)];
    return [slot.low, slot.high].map((value) => {
      const [low, high] = [f(slot.low), f(slot.high)];
      if (!this.#isCutEvenly(low, high)) return this.bin(value);
      return this.#clamped(f(f(f(f(value) - low) / f(high - low)) * this.numBins));
    });
  }

  /** The value of an action slot that a bin stands for: the middle of the bin, within the bounds; the symbol itself. */
  decode(bin, slot) {
    if (slot.kind !== CONTINUOUS) return bin;
    const [low, high] = [f(slot.low), f(slot.high)];
    const value = this.#isCutEvenly(low, high)
      ? f(low + f(f(bin + 0.5) * f(f(high - low) / this.numBins)))
      : this.#muLawValue(bin);
    return Math.min(Math.max(value, low), high);
  }

  #muLawPosition(value) {
    const clipped = f(Math.min(Math.max(f(value), -this.maxValue), this.maxValue));
    const logarithm = f(Math.log1p(f(this.mu * Math.abs(clipped))));
    const companded = f(f(Math.sign(clipped) * logarithm) / f(Math.log1p(this.mu * this.maxValue)));
    return f(f(companded + 1) * (this.numBins / 2));
  }

  #muLawValue(bin) {
    const companded = (bin + 0.5) * (2 / this.numBins) - 1;
    const magnitude = Math.expm1(Math.abs(companded) * Math.log1p(this.mu * this.maxValue)) / this.mu;
    return f(Math.sign(companded) * magnitude);
  }

  #clamped(position) {
    return Math.min(Math.max(Math.floor(position), 0), this.numBins - 1);
  }

  #isCutEvenly(low, high) {
    return this.isUniform && Math.max(Math.abs(low), Math.abs(high)) <= this.maxValue && high > low;
  }
}
