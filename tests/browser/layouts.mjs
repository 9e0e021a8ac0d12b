// Values of spaces to slots and back; stdin: {"site", "cases": [{"space", "limits", "value" or "slots"}]}, stdout: the results.
import { readFileSync } from "node:fs";

const { site, cases } = JSON.parse(readFileSync(0, "utf8"));
const { SlotLayout } = await import(`${site}/spaces.js`);
const { ActionCode } = await import(`${site}/code.js`);

console.log(JSON.stringify(cases.map(({ space, limits, value, settings, values, bins }) => {
  const layout = new SlotLayout(space, limits);
  if (settings) {
    const code = new ActionCode(settings), [slot] = layout.slots;
    return { allowed: code.allowed(slot), values: bins.map((bin) => code.decode(bin, slot)), bins: values.map((one) => code.bin(one)) };
  }
  const { slots, image } = layout.flatten(value);
  return { slots: [...slots], image: image && [...image] };
})));
