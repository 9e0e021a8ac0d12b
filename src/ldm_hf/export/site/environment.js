// What all environments of the page share. Each is checked against the Python environment of the same id, step by step.

import { Generator } from "./random.js";

/**
 * An environment: `reset(seed)` and `step(action)` as in Gymnasium. A class has
 *
 * - `id`, `title`, `spaces` (the JSON of ldm_hf), `limit` (steps of an episode) and `rate` (steps per second at normal speed);
 * - `actions`: names of its discrete actions, and `swapped`: which of them each becomes when they are swapped;
 * - `keys`: actions by the name of a key; `idle`: what is done while no key is held, or `waits`: nothing happens then;
 * - `push`: what the button says that disturbs it, and `disturb(direction)`, which does it;
 * - `size`: width and height of its drawing, `scenery(pen)` and `figure(pen)`, which draw what stands and what moves.
 */
export class Environment {
  static limit = Infinity;
  static random = (seed) => new Generator(seed);

  /** Begin an episode; a seed begins the one that it begins in Python. */
  reset(seed) {
    if (seed !== undefined) this.random = this.constructor.random(seed);
    this.steps = 0;
    this.begin();
    return this.observe();
  }

  /** Act: the next observation, and what the action brought. */
  step(action) {
    const { reward, terminated } = this.advance(action);
    this.steps++;
    return { observation: this.observe(), reward, terminated, truncated: this.steps >= this.constructor.limit };
  }
}

/** A number within bounds. */
export const clip = (value, low, high) => Math.min(Math.max(value, low), high);

/** The index that a draw falls on, of outcomes with these probabilities: Gymnasium's `categorical_sample`. */
export function sample(probabilities, random) {
  let sum = 0;
  const draw = random.random(), sums = probabilities.map((one) => (sum += one));
  return Math.max(sums.findIndex((one) => one > draw), 0);
}

/** A box of 32-bit floats. */
export const box = (low, high) => ({ type: "Box", shape: [low.length], dtype: "float32", low, high });

/** Choices from 0 to n - 1. */
export const discrete = (n) => ({ type: "Discrete", n, start: 0 });
