// CartPole, Acrobot, Pendulum and MountainCarContinuous of Gymnasium, in the same order of operations.

import { Environment, box, clip, discrete } from "./environment.js";

const f = Math.fround, { PI, cos, sin } = Math;

export class CartPole extends Environment {
  static id = "gymnasium/CartPole-v1";
  static title = "CartPole";
  static limit = 500;
  static rate = 50;
  static size = [600, 400];
  static actions = ["push left", "push right"];
  static swapped = [1, 0];
  static keys = { ArrowLeft: 0, ArrowRight: 1 };
  static push = "push the pole";
  static #bounds = [f(4.8), Infinity, f((24 * 2 * PI) / 360), Infinity].map((one) => (one === Infinity ? "inf" : one));
  static spaces = { observation: box(CartPole.#bounds.map((one) => (one === "inf" ? "-inf" : -one)), CartPole.#bounds), action: discrete(2) };

  begin() {
    this.state = Array.from({ length: 4 }, () => this.random.uniform(-0.05, 0.05));
  }

  observe() {
    return this.state.map(f);
  }

  advance(action) {
    let [x, speed, angle, spin] = this.state;
    const force = action === 1 ? 10 : -10, mass = 0.1 + 1, poleMass = 0.1 * 0.5;
    const cosine = cos(angle), sine = sin(angle);
    const shared = (force + poleMass * (spin * spin) * sine) / mass;
    const turning = (9.8 * sine - cosine * shared) / (0.5 * (4 / 3 - (0.1 * (cosine * cosine)) / mass));
    const pushing = shared - (poleMass * turning * cosine) / mass;
    x += 0.02 * speed;
    speed += 0.02 * pushing;
    angle += 0.02 * spin;
    spin += 0.02 * turning;
    this.state = [x, speed, angle, spin];
    const widest = (12 * 2 * PI) / 360;
    return { reward: 1, terminated: x < -2.4 || x > 2.4 || angle < -widest || angle > widest };
  }

  disturb(direction) {
    this.state[3] += direction * 0.7;
  }

  scenery(pen) {
    pen.line("line", 2, [[0, 300], [600, 300]]);
    for (const edge of [-2.4, 2.4]) pen.line("line", 2, [[300 + edge * 125, 294], [300 + edge * 125, 306]]);
  }

  figure(pen) {
    const [x, , angle] = this.state, at = [300 + x * 125, 285];
    pen.box("figure", at[0] - 30, 270, 60, 30, 5);
    pen.line("accent", 9, [at, [at[0] + 130 * sin(angle), at[1] - 130 * cos(angle)]]);
    pen.disc("line", ...at, 4);
  }
}

export class Acrobot extends Environment {
  static id = "gymnasium/Acrobot-v1";
  static title = "Acrobot";
  static limit = 500;
  static rate = 15;
  static size = [600, 400];
  static actions = ["turn left", "nothing", "turn right"];
  static swapped = [2, 1, 0];
  static keys = { ArrowLeft: 0, ArrowRight: 2 };
  static idle = 1;
  static push = "push the arms";
  static #bounds = [1, 1, 1, 1, f(4 * PI), f(9 * PI)];
  static spaces = { observation: box(Acrobot.#bounds.map((one) => -one), Acrobot.#bounds), action: discrete(3) };

  begin() {
    this.state = Array.from({ length: 4 }, () => f(this.random.uniform(-0.1, 0.1)));
  }

  observe() {
    const [first, second, spin, secondSpin] = this.state;
    return [cos(first), sin(first), cos(second), sin(second), spin, secondSpin].map(f);
  }

  advance(action) {
    const [first, second, spin, secondSpin] = rungeKutta((state) => Acrobot.#derivatives(state, action - 1), this.state, 0.2);
    this.state = [wrapped(first), wrapped(second), clip(spin, -4 * PI, 4 * PI), clip(secondSpin, -9 * PI, 9 * PI)];
    const terminated = -cos(this.state[0]) - cos(this.state[1] + this.state[0]) > 1;
    return { reward: terminated ? 0 : -1, terminated };
  }

  static #derivatives([first, second, spin, secondSpin], torque) {
    const d1 = 0.25 + (1 + 0.25 + 2 * 0.5 * cos(second)) + 1 + 1;
    const d2 = 0.25 + 0.5 * cos(second) + 1;
    const phi2 = 0.5 * 9.8 * cos(first + second - PI / 2);
    const phi1 = -0.5 * secondSpin ** 2 * sin(second) - 2 * 0.5 * secondSpin * spin * sin(second)
      + (0.5 + 1) * 9.8 * cos(first - PI / 2) + phi2;
    const second2 = (torque + (d2 / d1) * phi1 - 0.5 * spin ** 2 * sin(second) - phi2) / (0.25 + 1 - d2 ** 2 / d1);
    return [spin, secondSpin, -(d2 * second2 + phi1) / d1, second2];
  }

  disturb(direction) {
    this.state[2] = clip(this.state[2] + direction * 1.5, -4 * PI, 4 * PI);
  }

  scenery(pen) {
    pen.line("muted", 2, [[0, 200 - 75], [600, 200 - 75]], [8, 8]);
    pen.text("muted", "the tip has to rise above this line", 8, 117);
  }

  figure(pen) {
    const [first, second] = this.state, root = [300, 200];
    const elbow = [root[0] + 75 * sin(first), root[1] + 75 * cos(first)];
    const tip = [elbow[0] + 75 * sin(first + second), elbow[1] + 75 * cos(first + second)];
    pen.line("figure", 14, [root, elbow]);
    pen.line("accent", 14, [elbow, tip]);
    for (const joint of [root, elbow]) pen.disc("line", ...joint, 5);
  }
}

export class Pendulum extends Environment {
  static id = "gymnasium/Pendulum-v1";
  static title = "Pendulum";
  static limit = 200;
  static rate = 30;
  static size = [600, 400];
  static keys = { ArrowLeft: [2], ArrowRight: [-2] };
  static idle = [0];
  static push = "push the pendulum";
  static spaces = { observation: box([-1, -1, -8], [1, 1, 8]), action: box([-2], [2]) };

  begin() {
    this.state = [this.random.uniform(-PI, PI), this.random.uniform(-1, 1)];
  }

  observe() {
    const [angle, spin] = this.state;
    return [f(cos(angle)), f(sin(angle)), f(spin)];
  }

  advance([wanted]) {
    const [angle, spin] = this.state, torque = clip(f(wanted), -2, 2);
    const cost = (remainder(angle + PI, 2 * PI) - PI) ** 2 + 0.1 * spin ** 2 + f(f(0.001) * f(torque ** 2));
    const next = clip(spin + (15 * sin(angle) + f(3 * torque)) * 0.05, -8, 8);
    this.state = [angle + next * 0.05, next];
    this.torque = torque;
    return { reward: -cost, terminated: false };
  }

  disturb(direction) {
    this.state[1] = clip(this.state[1] - direction * 3, -8, 8);
  }

  scenery(pen) {
    pen.line("muted", 2, [[300, 60], [300, 30]], [6, 6]);
  }

  figure(pen) {
    const [angle] = this.state, tip = [300 - 140 * sin(angle), 200 - 140 * cos(angle)];
    pen.line("accent", 22, [[300, 200], tip]);
    pen.disc("line", 300, 200, 6);
    const torque = this.steps ? (this.torque ?? 0) : 0;
    if (torque) pen.arc("figure", 3, 300, 200, 34, -PI / 2, -PI / 2 - torque);
  }
}

export class MountainCarContinuous extends Environment {
  static id = "gymnasium/MountainCarContinuous-v0";
  static title = "Mountain car";
  static limit = 999;
  static rate = 50;
  static size = [600, 400];
  static keys = { ArrowLeft: [-1], ArrowRight: [1] };
  static idle = [0];
  static push = "push the car";
  static spaces = { observation: box([f(-1.2), f(-0.07)], [f(0.6), f(0.07)]), action: box([-1], [1]) };

  begin() {
    this.state = [this.random.uniform(-0.6, -0.4), 0];
  }

  observe() {
    return this.state.map(f);
  }

  // NumPy 2 computes with the 32-bit floats of the state and of the action, but for the first step's state, which has 64.
  advance([wanted]) {
    let [position, speed] = this.state;
    const round = this.steps ? f : (value) => value;
    const force = clip(f(wanted), -1, 1);
    speed = round(speed + f(f(force * f(0.0015)) - f(0.0025 * cos(round(3 * position)))));
    speed = clip(speed, round(-0.07), round(0.07));
    position = clip(round(position + speed), round(-1.2), round(0.6));
    if (position === round(-1.2) && speed < 0) speed = 0;
    const terminated = position >= round(0.45) && speed >= 0;
    this.state = [f(position), f(speed)];
    return { reward: (terminated ? 100 : 0) - f(wanted) ** 2 * 0.1, terminated };
  }

  disturb(direction) {
    this.state[1] = f(clip(this.state[1] + direction * 0.03, -0.07, 0.07));
  }

  static #place = (position) => [((position + 1.2) / 1.8) * 600, 330 - (sin(3 * position) * 0.45 + 0.55) * 230];

  scenery(pen) {
    const road = Array.from({ length: 101 }, (_, i) => MountainCarContinuous.#place(-1.2 + (1.8 * i) / 100));
    pen.line("line", 3, road);
    const [x, y] = MountainCarContinuous.#place(0.45);
    pen.line("line", 2, [[x, y], [x, y - 46]]);
    pen.fill("good", [[x, y - 46], [x + 26, y - 38], [x, y - 30]]);
  }

  figure(pen) {
    const [x, y] = MountainCarContinuous.#place(this.state[0]), slope = cos(3 * this.state[0]) * 1.35 * 230 / (600 / 1.8);
    pen.turned(x, y, -Math.atan(slope), () => {
      pen.box("figure", -22, -26, 44, 18, 5);
      for (const wheel of [-12, 12]) pen.disc("accent", wheel, -7, 7);
    });
  }
}

function rungeKutta(derivatives, state, step) {
  const moved = (slopes, time) => state.map((value, i) => value + time * slopes[i]);
  const k1 = derivatives(state);
  const k2 = derivatives(moved(k1, step / 2));
  const k3 = derivatives(moved(k2, step / 2));
  const k4 = derivatives(moved(k3, step));
  return state.map((value, i) => value + (step / 6) * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]));
}

function wrapped(angle) {
  while (angle > PI) angle -= 2 * PI;
  while (angle < -PI) angle += 2 * PI;
  return angle;
}

/** Python's `value % divisor`. */
function remainder(value, divisor) {
  const rest = value % divisor;
  return rest < 0 ? rest + divisor : rest;
}
