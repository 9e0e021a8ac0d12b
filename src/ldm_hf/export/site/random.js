// NumPy's random numbers, bit for bit, so that a seed here begins the episode that it begins in Python.

const MASK32 = 0xffffffffn, MASK64 = (1n << 64n) - 1n, MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** `numpy.random.Generator(PCG64(SeedSequence(seed)))`, which Gymnasium's environments draw from. */
export class Generator {
  #state = 0n; #increment; #half = null;

  constructor(seed) {
    const words = seedWords(BigInt(seed), 8);
    const [high, low, incrementHigh, incrementLow] = [0, 2, 4, 6].map((i) => (words[i + 1] << 32n) | words[i]);
    this.#increment = ((((incrementHigh << 64n) | incrementLow) << 1n) | 1n) & MASK128;
    this.#step();
    this.#state = (this.#state + ((high << 64n) | low)) & MASK128;
    this.#step();
  }

  /** A number from 0 to 1, below 1. */
  random() {
    return Number(this.#next64() >> 11n) / 2 ** 53;
  }

  /** A number from `low` to `high`. */
  uniform(low, high) {
    return low + (high - low) * this.random();
  }

  /** An integer from `low` to `high - 1`: Lemire's method on 32 bits, two of which come from one draw of 64. */
  integers(low, high) {
    const count = BigInt(high - low);
    if (count === 1n) return low;
    let product = this.#next32() * count;
    if ((product & MASK32) < count) {
      const threshold = ((1n << 32n) - count) % count;
      while ((product & MASK32) < threshold) product = this.#next32() * count;
    }
    return low + Number(product >> 32n);
  }

  #step() {
    this.#state = (this.#state * MULTIPLIER + this.#increment) & MASK128;
  }

  #next64() {
    this.#step();
    const mixed = (this.#state >> 64n) ^ (this.#state & MASK64), turn = this.#state >> 122n;
    return ((mixed >> turn) | (mixed << (64n - turn))) & MASK64;
  }

  #next32() {
    if (this.#half !== null) {
      const half = this.#half;
      this.#half = null;
      return half;
    }
    const both = this.#next64();
    this.#half = both >> 32n;
    return both & MASK32;
  }
}

/** `numpy.random.SeedSequence(seed).generate_state(count)`: 32-bit words. */
function seedWords(seed, count) {
  const entropy = [];
  for (let rest = seed; rest > 0n || !entropy.length; rest >>= 32n) entropy.push(rest & MASK32);
  let constant = 0x43b0d7e5n;
  const hash = (value) => {
    value = ((value ^ constant) & MASK32);
    constant = (constant * 0x931e8875n) & MASK32;
    value = (value * constant) & MASK32;
    return value ^ (value >> 16n);
  };
  const mix = (left, right) => {
    const value = (0xca01f9ddn * left - 0x4973f715n * right) & MASK32;
    return value ^ (value >> 16n);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0n));
  for (let from = 0; from < 4; from++)
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  for (const word of entropy.slice(4)) for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  constant = 0x8b51f9ddn;
  return Array.from({ length: count }, (_, i) => {
    let value = (pool[i % 4] ^ constant) & MASK32;
    constant = (constant * 0x58f38dedn) & MASK32;
    value = (value * constant) & MASK32;
    return value ^ (value >> 16n);
  });
}

/** `numpy.random.RandomState(seed)`, which MinAtar draws from. */
export class RandomState {
  #words = new Uint32Array(624); #next = 624;

  constructor(seed) {
    this.#words[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.#words[i - 1] ^ (this.#words[i - 1] >>> 30);
      this.#words[i] = Math.imul(before, 1812433253) + i;
    }
  }

  /** A number from 0 to 1, below 1. */
  rand() {
    return ((this.#next32() >>> 5) * 67108864 + (this.#next32() >>> 6)) / 9007199254740992;
  }

  /** An integer from 0 to `count - 1`: bits of a draw, drawn again while they are too large. */
  randint(count) {
    const mask = 2 ** Math.ceil(Math.log2(count)) - 1;
    let value;
    do value = this.#next32() & mask; while (value >= count);
    return value;
  }

  #next32() {
    if (this.#next === 624) this.#twist();
    let word = this.#words[this.#next++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  }

  #twist() {
    const words = this.#words;
    for (let i = 0; i < 624; i++) {
      const both = (words[i] & 0x80000000) | (words[(i + 1) % 624] & 0x7fffffff);
      words[i] = words[(i + 397) % 624] ^ (both >>> 1) ^ (both & 1 ? 0x9908b0df : 0);
    }
    this.#next = 0;
  }
}
