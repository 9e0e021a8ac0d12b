// One rollout of the model in an environment, the visitor's hands in it, and the reference as a ghost beside it.

import { Policy } from "./policy.js";

/** Numbers of an observation, its parts in slot order: what an exported reference reads. */
function numbers(value) {
  if (typeof value === "number") return [value];
  if (ArrayBuffer.isView(value) || Array.isArray(value)) return [...value];
  return Object.keys(value).sort().flatMap((key) => numbers(value[key]));
}

/** A reference policy that plays the same environment from the same seed. */
class Ghost {
  constructor(kind, session, Tensor) {
    Object.assign(this, { kind, session, Tensor, env: new kind() });
  }

  start(seed) {
    this.observation = this.env.reset(seed);
    Object.assign(this, { total: 0, isDone: false });
  }

  async step() {
    if (this.isDone) return;
    const read = numbers(this.observation);
    const { action } = await this.session.run({ observation: new this.Tensor("float32", Float32Array.from(read), [read.length]) });
    const chosen = this.kind.actions ? action.data[0] : [...action.data];
    const { observation, reward, terminated, truncated } = this.env.step(chosen);
    this.observation = observation;
    this.total += reward;
    this.isDone = terminated || truncated;
  }
}

/** Lets a model act in an environment, episode after episode, in one context. */
export class Player {
  /**
   * @param {Model} model
   * @param {typeof Environment} kind
   * @param {{seed?: number, reference?: object}} options `seed` of the first episode, the next ones' are the numbers after it;
   *   `reference`: the session of an exported reference
   */
  constructor(model, kind, { seed = 0, reference } = {}) {
    Object.assign(this, { model, kind, seed, areSwapped: false, episodes: 0, returns: [], moves: [] });
    this.env = new kind();
    this.policy = new Policy(model, kind.spaces);
    this.ghost = reference && new Ghost(kind, reference, model.ort.Tensor);
    this.#begin();
  }

  /**
   * One step; after the end of an episode, the first of the next.
   * @param {*} [own] the visitor's action, in place of the model's
   * @returns what the model had decided
   */
  async step(own) {
    if (this.isOver) this.#begin();
    const decision = await this.policy.act(this.observation, this.outcome);
    const action = own ?? decision.action;
    if (own !== undefined) this.policy.took(own);
    const result = this.env.step(this.areSwapped ? this.#swapped(action) : action);
    await this.ghost?.step();
    this.#note(action, own !== undefined, result);
    return (this.decision = decision);
  }

  /** What is remembered: a mark for each transition of the context. */
  get context() {
    const { transitions } = this.policy;
    return this.moves.slice(-transitions.length);
  }

  /** Begin an episode, each by a seed of its own, so that the reference begins the same. */
  #begin() {
    const seed = this.seed + this.episodes++;
    this.observation = this.env.reset(seed);
    this.ghost?.start(seed);
    Object.assign(this, { steps: 0, total: 0, isOver: false });
  }

  #swapped(action) {
    return this.kind.actions ? this.kind.swapped[action] : action.map((part) => -part);
  }

  #note(action, isOwn, { observation, reward, terminated, truncated }) {
    Object.assign(this, { observation, outcome: { reward, terminated, truncated }, action });
    this.steps++;
    this.total += reward;
    this.isOver = terminated || truncated;
    this.moves.push({ isOwn, reward, isEnd: this.isOver });
    if (this.moves.length > this.policy.contextLength) this.moves.shift();
    if (this.isOver) this.returns.push({ total: this.total, steps: this.steps, seed: this.seed + this.episodes - 1 });
  }
}
