#!/usr/bin/env bash
# The references of ldm-mini and of what it is evaluated on: 55 environments of 21 libraries, a run or a few of each, each with the
# configuration and length that gave a reference worth imitating. A few core hours; resumable. `ldm env add` installs the libraries.
set -euo pipefail
make() { # candidate, transitions, seed, environments
    ldm build --budget paper --candidates "$1" --transitions "$2" --seed "$3" --output "runs/references/$1-$(($2 / 1000))k-$3" "${@:4}"
}
make A2C 60000 0 gym-maze/maze-sample-3x3-v0 gymnasium/Acrobot-v1 gymnasium/CliffWalking-v1 gymnasium/FrozenLake-v1 \
    minigrid/MiniGrid-Empty-6x6-v0
make A2C-8-envs 60000 0 minigrid/MiniGrid-Empty-5x5-v0 minigrid/MiniGrid-Empty-Random-5x5-v0
make PPO 60000 0 bsuite/bsuite/cartpole-v0 bsuite/bsuite/catch-v0 gym-classics/ClassicGridworld-v0 \
    minigrid/MiniGrid-Empty-Random-5x5-v0
make PPO-long-rollouts 150000 0 gym-electric-motor/Finite-CC-ExtExDc-v0 gym-electric-motor/Finite-CC-PermExDc-v0
make PPO-long-rollouts 200000 0 bsuite/bsuite/cartpole_swingup-v0 mo-gymnasium/fishwood-v0 mo-gymnasium/mo-reacher-v5 \
    ns-gym/ns_gym/Bridge-v0 popgym/popgym-VelocityOnlyCartpoleEasy-v0
make PPO-long-rollouts 500000 0 gymnasium/LunarLander-v3
make PPO-long-rollouts 600000 0 gymnasium/Taxi-v4
make PPO-long-rollouts 600000 1 gymnasium/FrozenLake8x8-v1
make PPO-long-rollouts 800000 0 minatar/MinAtar/Freeway-v1
make PPO-normalized 100000 0 gymnasium-robotics/FetchReachDense-v4 panda-gym/PandaReachDense-v3
make PPO-normalized 150000 0 gym-trading-env/TradingEnv metaworld/MT1/reach-v3
make PPO-normalized 200000 0 building-energy-storage-simulation/BuildingEnergyStorage-v0 \
    gym-electric-motor/Cont-CC-PermExDc-v0 gymnasium-robotics/PointMaze_UMazeDense-v3 \
    gymnasium/InvertedDoublePendulum-v5 gymnasium/InvertedPendulum-v5 gymnasium/LunarLanderContinuous-v3 \
    gymnasium/Pendulum-v1 gymnasium/Reacher-v5 gymnasium/Walker2d-v5 \
    jsbgym/C172-HeadingControlTask-Shaping.STANDARD-NoFG-v0 pybullet-envs-gymnasium/InvertedPendulumBulletEnv-v0
make PPO-normalized 250000 0 dm-control/dm_control/cartpole-balance-v0 \
    pybullet-envs-gymnasium/InvertedPendulumSwingupBulletEnv-v0 pybullet-envs-gymnasium/ReacherBulletEnv-v0
make PPO-normalized 300000 0 gymnasium/HalfCheetah-v5 gymnasium/Hopper-v5
make PPO-images 250000 0 minigrid/MiniGrid-Empty-8x8-v0
make PPO-short-rollouts 60000 0 bsuite/bsuite/cartpole-v0 bsuite/bsuite/catch-v0 gym-classics/ClassicGridworld-v0 \
    gym-classics/WindyGridworld-v0 gym-maze/maze-sample-3x3-v0 gymnasium/CliffWalking-v1
make PPO-short-rollouts 200000 0 mo-gymnasium/deep-sea-treasure-v0 nasim/Tiny-v0
make PPO-short-rollouts 250000 0 minigrid/MiniGrid-LavaGapS5-v0
make PPO-short-rollouts 500000 0 minatar/MinAtar/Breakout-v1
make TRPO 60000 0 gym-legacy-toytext/NChain-v0
make TRPO-normalized 60000 0 gym-anytrading/stocks-v0 gymnasium/Acrobot-v1 gymnasium/CartPole-v1 \
    gymnasium/MountainCarContinuous-v0 nasim/TinyVA-v0
make TRPO-normalized 150000 0 nasim/TinySmallVA-v0
make TRPO-normalized 200000 0 gymnasium/Pendulum-v1
make TRPO-short-rollouts 60000 0 bsuite/bsuite/catch-v0 gym-classics/ClassicGridworld-v0 \
    gym-classics/WindyGridworld-v0 gym-maze/maze-sample-3x3-v0 gymnasium/CliffWalking-v1
make TRPO-short-rollouts 100000 0 gym-classics/CliffWalk-v0 gym-classics/WindyGridworldKings-v0
ldm references runs/references
