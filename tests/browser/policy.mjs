// Lets a model act in JavaScript; stdin: {"site", "runtime", "model": folders, "runs": [{"id" or "spaces" and "steps"}]}.
// A run with `id` plays that environment, one with `steps` reads what was recorded. stdout: what was done.
import { readFileSync } from "node:fs";

const { site, runtime, model: folder, runs } = JSON.parse(readFileSync(0, "utf8"));
const files = [`${runtime}/ort.js`, `${site}/policy.js`, `${site}/player.js`, `${site}/environments.js`];
const [ort, { Model, Policy }, { Player }, { ENVIRONMENTS }] = await Promise.all(files.map((path) => import(path)));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync(`${runtime}/ort-wasm-simd-threaded.wasm`);
const model = await Model.load(ort, "", async (name) => new Uint8Array(readFileSync(`${folder}/${name}`)));

/** Read recorded observations and outcomes; the action before each is the recorded one. `draws` stand in for chance. */
async function read({ spaces, steps, temperature, draws = [] }) {
  const policy = new Policy(model, spaces, { temperature, random: () => draws.shift() }), logits = [], actions = [];
  for (const { observation, outcome, action } of steps) {
    const decision = await policy.act(observation, outcome);
    logits.push(decision.slots.map(({ first, probabilities }, i) =>
      [...decision.logits.subarray(i * model.code.numBins + first, i * model.code.numBins + first + probabilities.length)]));
    actions.push(decision.action);
    policy.took(action);
  }
  return { logits, actions, rebuilds: policy.rebuilds };
}

/** Play an environment as the page does, from a seed. */
async function play({ id, seed, count, areSwapped = false }) {
  const player = new Player(model, ENVIRONMENTS.find((one) => one.id === id), { seed });
  player.areSwapped = areSwapped;
  const actions = [];
  for (let i = 0; i < count; i++) actions.push((await player.step()).action);
  return { actions, returns: player.returns.map(({ total }) => total), rebuilds: player.policy.rebuilds };
}

const done = [];
for (const run of runs) done.push(await (run.id ? play(run) : read(run)));
console.log(JSON.stringify(done));
