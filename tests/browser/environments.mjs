// Plays traces of Python environments again; stdin: {"site": folder, "traces": [...]}, stdout: the differences of each.
import { readFileSync } from "node:fs";

const { site, traces } = JSON.parse(readFileSync(0, "utf8"));
const { ENVIRONMENTS } = await import(`${site}/environments.js`);

const flat = (value) =>
  typeof value === "number" ? [value] : "direction" in value ? [value.direction, ...value.image] : [...value];
const apart = (own, theirs) =>
  own.length === theirs.length ? Math.max(...own.map((one, i) => Math.abs(one - Number(theirs[i])))) : Infinity;

const played = traces.map(({ id, seed, start, steps }) => {
  const kind = ENVIRONMENTS.find((one) => one.id === id), env = new kind();
  const off = { spaces: kind.spaces, observation: apart(flat(env.reset(seed)), start), reward: 0, ends: 0, oneStep: 0 };
  for (const { action, observation, reward, terminated, truncated, reset, state } of steps) {
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
