// Breakout of MinAtar.

import { Environment, discrete } from "./environment.js";
import { RandomState } from "./random.js";

const SIDE = 10, PADDLE = 0, BALL = 1, TRAIL = 2, BRICK = 3;

export class Breakout extends Environment {
  static id = "minatar/MinAtar/Breakout-v1";
  static title = "Breakout";
  static random = (seed) => new RandomState(seed);
  static rate = 12;
  static size = [400, 400];
  static actions = ["nothing", "left", "right"];
  static swapped = [0, 2, 1];
  static keys = { ArrowLeft: 1, ArrowRight: 2 };
  static idle = 0;
  static push = "push the paddle";
  static spaces = {
    observation: { type: "Box", shape: [SIDE, SIDE, 4], dtype: "bool", low: false, high: true },
    action: discrete(3),
  };

  begin() {
    const start = this.random.randint(2);
    this.ball = start ? [9, 3] : [0, 3]; // x, y
    this.heading = start ? [-1, 1] : [1, 1];
    this.before = this.ball;
    this.paddle = 4;
    this.wall = Array.from({ length: SIDE }, (_, row) => Array(SIDE).fill(row >= 1 && row <= 3));
    this.struck = false;
    this.last ??= 0; // of the episode before, whose last action may stick
  }

  observe() {
    const planes = new Uint8Array(SIDE * SIDE * 4), set = (x, y, plane) => (planes[(y * SIDE + x) * 4 + plane] = 1);
    set(...this.ball, BALL);
    set(this.paddle, SIDE - 1, PADDLE);
    set(...this.before, TRAIL);
    this.wall.forEach((row, y) => row.forEach((brick, x) => brick && set(x, y, BRICK)));
    return planes;
  }

  advance(action) {
    if (this.random.rand() < 0.1) action = this.last; // actions stick
    this.last = action;
    if (action) this.disturb(action === 1 ? -1 : 1);
    this.before = this.ball;
    let [x, y] = [this.ball[0] + this.heading[0], this.ball[1] + this.heading[1]];
    let reward = 0, terminated = false, isAtBrick = false;
    if (x < 0 || x >= SIDE) {
      x = x < 0 ? 0 : SIDE - 1;
      this.#turn(true, false);
    }
    if (y < 0) {
      y = 0;
      this.#turn(false, true);
    } else if (this.wall[y][x]) {
      isAtBrick = true;
      if (!this.struck) {
        reward = 1;
        this.struck = true;
        this.wall[y][x] = false;
        y = this.before[1];
        this.#turn(false, true);
      }
    } else if (y === SIDE - 1) {
      if (!this.wall.flat().includes(true)) for (let row = 1; row <= 3; row++) this.wall[row].fill(true);
      if (this.ball[0] === this.paddle || x === this.paddle) {
        this.#turn(this.ball[0] !== this.paddle, true);
        y = this.before[1];
      } else terminated = true;
    }
    if (!isAtBrick) this.struck = false;
    this.ball = [x, y];
    return { reward, terminated };
  }

  #turn(aside, upright) {
    this.heading = [aside ? -this.heading[0] : this.heading[0], upright ? -this.heading[1] : this.heading[1]];
  }

  disturb(direction) {
    this.paddle = Math.min(Math.max(this.paddle + direction, 0), SIDE - 1);
  }

  scenery(pen) {
    this.wall.forEach((row, y) => row.forEach((brick, x) => brick && pen.box("hole", x * 40 + 1, y * 40 + 1, 38, 38, 3)));
  }

  figure(pen) {
    pen.box("figure", this.paddle * 40, 366, 40, 34, 4);
    pen.disc("muted", this.before[0] * 40 + 20, this.before[1] * 40 + 20, 6);
    pen.disc("accent", this.ball[0] * 40 + 20, this.ball[1] * 40 + 20, 14);
  }
}
