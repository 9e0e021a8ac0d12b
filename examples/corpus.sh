#!/usr/bin/env bash
# A corpus of 43 environments of 14 libraries that four cores build in under an hour; resumable. Arguments go to `ldm build`.
set -euo pipefail
ldm build --budget small --output runs/corpus "$@" \
    gymnasium/CartPole-v1 gymnasium/Acrobot-v1 gymnasium/Pendulum-v1 gymnasium/Blackjack-v1 gymnasium/Taxi-v4 \
    gymnasium/FrozenLake-v1 gymnasium/MountainCarContinuous-v0 \
    minigrid/MiniGrid-Empty-5x5-v0 minigrid/MiniGrid-Empty-Random-5x5-v0 minigrid/MiniGrid-DoorKey-5x5-v0 \
    minatar/MinAtar/Breakout-v1 minatar/MinAtar/SpaceInvaders-v1 minatar/MinAtar/Freeway-v1 minatar/MinAtar/Asterix-v1 \
    gym-algorithmic/Copy-v0 gym-algorithmic/Reverse-v0 gym-algorithmic/DuplicatedInput-v0 \
    gym-classics/ClassicGridworld-v0 gym-classics/WindyGridworld-v0 gym-classics/DynaMaze-v0 gym-classics/FourRooms-v0 \
    gym-simplegrid/SimpleGrid-4x4-v0 gym-simplegrid/SimpleGrid-8x8-v0 \
    gym-legacy-toytext/NChain-v0 gym-legacy-toytext/HotterColder-v0 \
    bsuite/bsuite/cartpole-v0 bsuite/bsuite/catch-v0 bsuite/bsuite/mountain_car-v0 \
    gym-maze/maze-sample-3x3-v0 gym-maze/maze-sample-5x5-v0 \
    popgym/popgym-PositionOnlyCartPoleEasy-v0 popgym/popgym-HigherLowerEasy-v0 popgym/popgym-RepeatFirstEasy-v0 \
    mdp-playground/RLToy-v0 mdp-playground/RLToyFiniteHorizon-v0 \
    gym-anytrading/stocks-v0 nasim/TinyVA-v0 slimevolleygym/SlimeVolley-v0 \
    gymnasium/CliffWalking-v1 gymnasium/InvertedPendulum-v5 minigrid/MiniGrid-Empty-6x6-v0 gym-classics/SparseGridworld-v0 \
    bsuite/bsuite/catch_noise-v0
