// The environments of the page, in the order of its menu.

import { Breakout } from "./breakout.js";
import { Acrobot, CartPole, MountainCarContinuous, Pendulum } from "./classic_control.js";
import { CliffWalking, FrozenLake, FrozenLake8x8, MiniGridEmpty, MiniGridEmpty6x6, MiniGridEmptyRandom } from "./grid_worlds.js";

export const ENVIRONMENTS = [
  ...[CartPole, Acrobot, Pendulum, MountainCarContinuous, FrozenLake, FrozenLake8x8, CliffWalking],
  ...[MiniGridEmpty, MiniGridEmpty6x6, MiniGridEmptyRandom, Breakout],
];
