// Plays traces of Python environments again; stdin: {"site": folder, "traces": [...]}, stdout: the differences of each.
import { readFileSync } from "node:fs";

const { site, traces } = JSON.parse(readFileSync(0, "utf8"));
const { ENVIRONMENTS } = await import(`${site}/environments.js`);

/** An observation as one list; of MinAtar's planes a number is a cell: bit i of it is plane i. */
function flat(value) {
  if (typeof value === "number") return [value];
  if (value instanceof Uint8Array)
    return Array.from({ length: value.length / 4 }, (_, cell) =>
      [1, 2, 4, 8].reduce((sum, bit, plane) => sum + bit * value[cell * 4 + plane], 0));
  return "direction" in value ? [value.direction, ...value.image] : [...value];
}

/** The largest difference from a list, or from a text of digits. */
function apart(own, theirs) {
  if (own.length !== theirs.length) return Infinity;
  return Math.max(...own.map((one, i) => Math.abs(one - (typeof theirs === "string" ? parseInt(theirs[i], 16) : theirs[i]))));
}


const played = traces.map(({ id, seed, start, steps }) => {
  const kind = ENVIRONMENTS.find((one) => one.id === id), env = new kind();
  const off = { spaces: kind.spaces, observation: apart(flat(env.reset(seed)), start), reward: 0, ends: 0, oneStep: 0 };
  for (const { action, observation, reward, terminated = false, truncated = false, reset, state } of steps) {
    const got = env.step(action);
    off.observation = Math.max(off.observation, apart(flat(got.observation), observation));
    off.reward = Math.max(off.reward, Math.abs(got.reward - reward));
    off.ends += got.terminated !== terminated || got.truncated !== truncated;
    if (state) [off.oneStep, env.state] = [Math.max(off.oneStep, apart(env.state, state)), state];
    if (reset) off.observation = Math.max(off.observation, apart(flat(env.reset()), reset));
  }
  return off;
});
console.log(JSON.stringify(played));
