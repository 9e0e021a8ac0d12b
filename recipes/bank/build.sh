#!/usr/bin/env bash
# The references of the bank: one `ldm build` per library of environments.txt, cheap libraries first, with no settings for any environment.
# Resumable: what is done is not repeated. CORE_MINUTES, 3 at first, may be raised to give what is not solved more time. `ldm env install LIBRARY --provider venv` installs what is missing at first use.
set -euo pipefail
cd "$(dirname "$0")/../.."
libraries=(
    gym-classics gym-simplegrid bsuite mdp-playground ns-gym gym-legacy-toytext gym-maze gymnasium mo-gymnasium minigrid gym-minigrid
    panda-gym gymnasium-robotics pybullet-envs-gymnasium popgym nasim or-gym building-energy-storage-simulation gym-trading-env
    gym-anytrading gym-electric-motor jsbgym gymnasium-search-race highway-env minatar dm-control gymnax gym-pusht gym-xarm metaworld
    gym-simpletetris slimevolleygym vizdoom evogym jumanji pyflyt gl-gym simglucose procgen memory-gym ale-py crafter
    seals neurogym gym-algorithmic gym-classics2 bluesky-gym envpack flappy-bird-gymnasium gym-anm miniworld
)
for library in "${@:-${libraries[@]}}"; do
    mapfile -t environments < <(grep "^$library/" recipes/bank/environments.txt | grep -v " expert$")
    .venv/bin/ldm build "${environments[@]}" --core-minutes "${CORE_MINUTES:-3}" --output "runs/bank/$library" ||
        echo "$library: exit status $?" >&2
done
