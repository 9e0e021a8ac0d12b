// FrozenLake and CliffWalking of Gymnasium, Empty of MiniGrid.

import { Environment, clip, discrete, sample } from "./environment.js";

const THIRD = 1 / 3;

/** Draws a figure in a cell of a grid. */
const inCell = (pen, cell, row, column) => pen.disc("figure", (column + 0.5) * cell, (row + 0.5) * cell, cell * 0.3);

export class FrozenLake extends Environment {
  static id = "gymnasium/FrozenLake-v1";
  static title = "Frozen lake";
  static map = ["SFFF", "FHFH", "FFFH", "HFFG"];
  static limit = 100;
  static rate = 6;
  static size = [400, 400];
  static actions = ["left", "down", "right", "up"];
  static swapped = [2, 3, 0, 1];
  static waits = true;
  static keys = { ArrowLeft: 0, ArrowDown: 1, ArrowRight: 2, ArrowUp: 3 };
  static push = "slide to a side";
  static spaces = { observation: discrete(16), action: discrete(4) };

  begin() {
    this.random.random(); // the start is drawn too, from one
    this.cell = 0;
  }

  observe() {
    return this.cell;
  }

  advance(action) {
    const turns = [(action + 3) % 4, action, (action + 1) % 4];
    this.#move(turns[sample([(1 - THIRD) / 2, THIRD, (1 - THIRD) / 2], this.random)]);
    const letter = this.#letter(this.cell);
    return { reward: letter === "G" ? 1 : 0, terminated: letter === "G" || letter === "H" };
  }

  disturb(direction) {
    const before = this.cell;
    this.#move(direction > 0 ? 2 : 0);
    if ("GH".includes(this.#letter(this.cell))) this.cell = before; // an episode ends by a step only
  }

  get side() {
    return this.constructor.map.length;
  }

  #letter(cell) {
    return this.constructor.map[Math.floor(cell / this.side)][cell % this.side];
  }

  #move(direction) {
    const last = this.side - 1, row = Math.floor(this.cell / this.side), column = this.cell % this.side;
    const [down, right] = [[0, -1], [1, 0], [0, 1], [-1, 0]][direction];
    this.cell = clip(row + down, 0, last) * this.side + clip(column + right, 0, last);
  }

  scenery(pen) {
    const cell = 400 / this.side;
    const colours = { S: "ice", F: "ice", H: "hole", G: "good" };
    this.constructor.map.forEach((letters, row) =>
      [...letters].forEach((letter, column) =>
        pen.box(colours[letter], column * cell + 1, row * cell + 1, cell - 2, cell - 2, cell * 0.08)));
  }

  figure(pen) {
    inCell(pen, 400 / this.side, Math.floor(this.cell / this.side), this.cell % this.side);
  }
}

export class FrozenLake8x8 extends FrozenLake {
  static id = "gymnasium/FrozenLake8x8-v1";
  static title = "Frozen lake, 8 x 8";
  static limit = 200;
  static map = ["SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"];
  static spaces = { observation: discrete(64), action: discrete(4) };
}

export class CliffWalking extends Environment {
  static id = "gymnasium/CliffWalking-v1";
  static title = "Cliff walking";
  static rate = 6;
  static size = [600, 200];
  static actions = ["up", "right", "down", "left"];
  static swapped = [2, 3, 0, 1];
  static waits = true;
  static keys = { ArrowUp: 0, ArrowRight: 1, ArrowDown: 2, ArrowLeft: 3 };
  static push = "push to a side";
  static spaces = { observation: discrete(48), action: discrete(4) };

  begin() {
    this.random.random();
    this.place = [3, 0];
  }

  observe() {
    return this.place[0] * 12 + this.place[1];
  }

  advance(action) {
    this.random.random();
    const [down, right] = [[-1, 0], [0, 1], [1, 0], [0, -1]][action];
    const [row, column] = [clip(this.place[0] + down, 0, 3), clip(this.place[1] + right, 0, 11)];
    const fell = row === 3 && column > 0 && column < 11;
    this.place = fell ? [3, 0] : [row, column];
    return { reward: fell ? -100 : -1, terminated: row === 3 && column === 11 };
  }

  disturb(direction) {
    if (this.place[0] < 3) this.place[1] = clip(this.place[1] + direction, 0, 11);
  }

  scenery(pen) {
    for (let row = 0; row < 4; row++)
      for (let column = 0; column < 12; column++) {
        const colour = row < 3 || column === 0 ? "ice" : column === 11 ? "good" : "hole";
        pen.box(colour, column * 50 + 1, row * 50 + 1, 48, 48, 4);
      }
  }

  figure(pen) {
    inCell(pen, 50, ...this.place);
  }
}

const EMPTY = [1, 0, 0], WALL = [2, 5, 0], GOAL = [8, 1, 0];
const VIEW = 7;

export class MiniGridEmpty extends Environment {
  static id = "minigrid/MiniGrid-Empty-5x5-v0";
  static title = "MiniGrid, 5 x 5";
  static side = 5;
  static rate = 6;
  static size = [400, 400];
  static actions = ["turn left", "turn right", "forward", "pick up", "drop", "toggle", "done"];
  static swapped = [1, 0, 2, 3, 4, 5, 6];
  static waits = true;
  static keys = { ArrowLeft: 0, ArrowRight: 1, ArrowUp: 2 };
  static push = "turn it";
  static spaces = {
    observation: {
      type: "Dict",
      spaces: {
        direction: discrete(4),
        image: { type: "Box", shape: [VIEW, VIEW, 3], dtype: "uint8", low: 0, high: 255 },
        mission: { type: "Text" },
      },
    },
    action: discrete(7),
  };

  static get limit() {
    return 4 * this.side ** 2;
  }

  begin() {
    [this.x, this.y, this.direction] = [1, 1, 0];
  }

  observe() {
    return { direction: this.direction, image: this.#view() };
  }

  advance(action) {
    if (action < 2) this.direction = (this.direction + (action ? 1 : 3)) % 4;
    if (action !== 2) return { reward: 0, terminated: false };
    const [right, down] = this.#ahead, cell = this.#cell(this.x + right, this.y + down);
    if (cell === WALL) return { reward: 0, terminated: false };
    this.x += right;
    this.y += down;
    if (cell !== GOAL) return { reward: 0, terminated: false };
    return { reward: 1 - 0.9 * ((this.steps + 1) / this.constructor.limit), terminated: true };
  }

  disturb(direction) {
    this.direction = (this.direction + direction + 4) % 4;
  }

  get #ahead() {
    return [[1, 0], [0, 1], [-1, 0], [0, -1]][this.direction];
  }

  #cell(x, y) {
    const last = this.constructor.side - 1;
    if (x <= 0 || y <= 0 || x >= last || y >= last) return WALL;
    return x === last - 1 && y === last - 1 ? GOAL : EMPTY;
  }

  /** What it sees: 7 x 7 cells, itself in the middle of the last row and facing up; columns first, as MiniGrid has them. */
  #view() {
    const [ahead, below] = this.#ahead, image = [];
    for (let i = 0; i < VIEW; i++)
      for (let j = 0; j < VIEW; j++) {
        const far = VIEW - 1 - j, aside = i - (VIEW - 1) / 2;
        const cell = this.#cell(this.x + far * ahead - aside * below, this.y + far * below + aside * ahead);
        image.push(...(far === 0 && aside === 0 ? EMPTY : cell));
      }
    return image;
  }

  scenery(pen) {
    const { side } = this.constructor, cell = 400 / side;
    for (let x = 0; x < side; x++)
      for (let y = 0; y < side; y++) {
        const found = this.#cell(x, y), colour = found === WALL ? "hole" : found === GOAL ? "good" : "ice";
        pen.box(colour, x * cell + 1, y * cell + 1, cell - 2, cell - 2, 4);
      }
  }

  figure(pen) {
    const cell = 400 / this.constructor.side, size = cell * 0.34;
    pen.turned((this.x + 0.5) * cell, (this.y + 0.5) * cell, (this.direction * Math.PI) / 2, () =>
      pen.fill("figure", [[size, 0], [-size, size * 0.8], [-size, -size * 0.8]]));
  }
}

export class MiniGridEmptyRandom extends MiniGridEmpty {
  static id = "minigrid/MiniGrid-Empty-Random-5x5-v0";
  static title = "MiniGrid, 5 x 5, random start";

  begin() {
    const { side } = this.constructor;
    do [this.x, this.y] = [this.random.integers(0, side), this.random.integers(0, side)];
    while (this.#isTaken());
    this.direction = this.random.integers(0, 4);
  }

  #isTaken() {
    const last = this.constructor.side - 1;
    const isWall = [this.x, this.y].some((place) => place === 0 || place === last);
    return isWall || (this.x === last - 1 && this.y === last - 1);
  }
}

export class MiniGridEmpty6x6 extends MiniGridEmpty {
  static id = "minigrid/MiniGrid-Empty-6x6-v0";
  static title = "MiniGrid, 6 x 6";
  static side = 6;
}
