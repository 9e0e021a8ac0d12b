// A Large Decision Model that acts in JavaScript: what `ldm export --onnx` writes, on onnxruntime-web.
//
//   const model = await Model.load(ort, "model/");
//   const policy = new Policy(model, { observation: space, action: space });   // spaces as the JSON of ldm_hf
//   let { action } = await policy.act(observation);
//   ({ action } = await policy.act(observation, { reward, terminated, truncated }));

import { ActionCode } from "./code.js";
import { CONTINUOUS, SlotLayout } from "./spaces.js";

const NOT_DONE = 0, TERMINATED = 1, TRUNCATED = 2, START = 3;

/** The graphs of an exported model, and its settings. */
export class Model {
  /**
   * @param {object} ort onnxruntime-web
   * @param {string} folder address of the folder, with a slash at its end
   * @param {(name: string, onBytes: (bytes: number) => void) => Promise<Uint8Array>} [read] how a file is read
   */
  static async load(ort, folder, read = fetched(folder)) {
    const settings = JSON.parse(new TextDecoder().decode(await read("policy.json")));
    if (settings.format !== 1) throw new Error(`policy.json is of format ${settings.format}; this page reads 1`);
    return new Model(ort, settings, await session(ort, await read("step.onnx")), read);
  }

  constructor(ort, settings, step, read) {
    Object.assign(this, { ort, settings, step });
    this.code = new ActionCode(settings);
    this.images = async () => (this.imageSession ??= await session(ort, await read("image.onnx")));
  }

  /** Run a step over transitions, of whose fields each is an array of the transitions' values. */
  async run({ observations, actions, rewards, dones, images }, memory) {
    const { Tensor } = this.ort, now = rewards.length, { hidden_size, memory_shape } = this.settings;
    const whole = (values, shape) => new Tensor("int32", Int32Array.from(values), shape);
    const width = memory_shape.reduce((product, side) => product * side, 1);
    const feeds = {
      observations: whole(observations.flatMap((row) => [...row]), [now, observations[0].length]),
      previous_actions: whole(actions.flatMap((row) => [...row]), [now, actions[0].length]),
      previous_rewards: whole(rewards, [now]),
      previous_dones: whole(dones, [now]),
      images: new Tensor("float32", joined(images, hidden_size), [now, hidden_size]),
      memory: new Tensor("float32", memory, [memory.length / width, ...memory_shape]),
    };
    const { logits, attention, new_memory } = await this.step.run(feeds);
    return { logits: logits.data, attention: attention.data, memory: new_memory.data };
  }

  /** What an image adds to its transition. */
  async image(pixels) {
    const size = this.settings.image_size, network = await this.images();
    const { images } = await network.run({ pixels: new this.ort.Tensor("uint8", pixels, [1, 3, size, size]) });
    return images.data;
  }
}

const session = (ort, bytes) => ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });

const fetched = (folder) => async (name) => {
  const answer = await fetch(folder + name);
  if (!answer.ok) throw new Error(`${name} cannot be read: HTTP ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
};

function joined(rows, width) {
  const all = new Float32Array(rows.length * width);
  rows.forEach((row, i) => row && all.set(row, i * width));
  return all;
}

/** Acts in one environment, one transition a step; the context is kept across episodes, as ldm_hf's LDMPolicy keeps it. */
export class Policy {
  /**
   * @param {Model} model
   * @param {{observation: object, action: object}} spaces
   * @param {{temperature?: number, contextLength?: number, random?: () => number}} [options] of temperature 0 the most likely
   *   action is taken; of others actions are drawn
   */
  constructor(model, spaces, { temperature = 0, contextLength = model.settings.context_length, random = Math.random } = {}) {
    const { num_bins: numBins, image_size: imageSize, memory_shape } = model.settings;
    const limits = { numBins, imageSize };
    this.observed = new SlotLayout(spaces.observation, { ...limits, maxSlots: model.settings.max_observation_slots });
    this.acted = new SlotLayout(spaces.action, { ...limits, maxSlots: model.settings.max_action_slots });
    Object.assign(this, { model, temperature, contextLength, random, transitions: [] });
    this.width = memory_shape.reduce((product, side) => product * side, 1);
    this.memory = new Float32Array(contextLength * this.width);
    this.lastAction = new Float32Array(this.acted.slots.length);
    this.rebuilds = 0;
  }

  /**
   * Choose an action.
   * @param {*} observation after the end of an episode, that of the reset
   * @param {{reward: number, terminated: boolean, truncated: boolean}} [outcome] of the last action; left out at first only
   * @returns action, its bins, probabilities of each slot's allowed bins (`first`: the lowest), attention of each transition
   */
  async act(observation, outcome) {
    if (!outcome !== !this.transitions.length) throw new Error("every call but the first is told an outcome");
    if (this.transitions.length === this.contextLength) await this.#rebuild();
    this.transitions.push(await this.#transition(observation, outcome));
    const { logits, attention } = await this.#read(this.transitions.slice(-1));
    const { num_bins: numBins } = this.model.settings;
    const slots = this.acted.slots.map((slot, i) => {
      const [lowest, highest] = this.model.code.allowed(slot);
      const allowed = logits.subarray(i * numBins + lowest, i * numBins + highest + 1);
      const bin = lowest + (this.temperature ? drawn(softmax(allowed, this.temperature), this.random()) : largest(allowed));
      return { bin, first: lowest, probabilities: softmax(allowed, this.temperature || 1) };
    });
    this.lastAction = Float32Array.from(slots, ({ bin }, i) => this.model.code.decode(bin, this.acted.slots[i]));
    return { action: this.acted.unflatten(this.lastAction), slots, attention, logits };
  }

  /** Tell which action was taken, if it is not the one that was chosen. */
  took(action) {
    this.lastAction = this.acted.flatten(action).slots;
  }

  async #transition(observation, outcome) {
    const { slots, image } = this.observed.flatten(observation), { code } = this.model;
    const { reward = 0, terminated = false, truncated = false } = outcome ?? {};
    return {
      observations: this.#rows(this.observed, slots),
      actions: this.#rows(this.acted, this.lastAction),
      rewards: code.bin(reward),
      dones: !outcome ? START : terminated ? TERMINATED : truncated ? TRUNCATED : NOT_DONE,
      images: image && (await this.model.image(image)),
      outcome,
    };
  }

  /** Rows of the model's slot table: bins of continuous slots, then symbols of discrete ones. */
  #rows(layout, slots) {
    const { code } = this.model;
    return Int32Array.from(slots, (value, i) =>
      layout.slots[i].kind === CONTINUOUS ? code.bin(value) : code.numBins + value);
  }

  async #read(transitions, before = this.transitions.length - transitions.length) {
    const inputs = {};
    for (const name of ["observations", "actions", "rewards", "dones", "images"])
      inputs[name] = transitions.map((one) => one[name]);
    // A copy: a runtime in a worker takes what it is given for its own.
    const read = await this.model.run(inputs, this.memory.slice(0, before * this.width));
    this.memory.set(read.memory, before * this.width);
    return read;
  }

  /** Forget the older half of the context and read the newer half again; nothing is before its first transition. */
  async #rebuild() {
    this.transitions = this.transitions.slice(-Math.floor(this.contextLength / 2));
    this.transitions[0] = { ...this.transitions[0], dones: START };
    await this.#read(this.transitions, 0);
    this.rebuilds++;
  }
}

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

function softmax(values, temperature) {
  const top = values[largest(values)], powers = Float32Array.from(values, (value) => Math.exp((value - top) / temperature));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

function drawn(probabilities, draw) {
  let sum = 0;
  const index = probabilities.findIndex((probability) => (sum += probability) > draw);
  return index < 0 ? largest(probabilities) : index;
}
