#!/usr/bin/env bash
# What ldm-mini can do in the ten environments that it was not trained on after fine-tuning: on the 20 best recorded episodes, all weights
# or LoRA, and on its own rollouts. An argument limits it to one environment; resumable.
set -euo pipefail
model=${MODEL:-pretrained/ldm-mini}
environments=("${@:-
    gym-classics/WindyGridworldKings-v0 gym-electric-motor/Finite-CC-PermExDc-v0 gym-maze/maze-sample-3x3-v0
    gymnasium/LunarLanderContinuous-v3 minigrid/MiniGrid-Empty-8x8-v0 nasim/TinySmallVA-v0 panda-gym/PandaReachDense-v3
    pybullet-envs-gymnasium/InvertedPendulumBulletEnv-v0 pybullet-envs-gymnasium/InvertedPendulumSwingupBulletEnv-v0
    pybullet-envs-gymnasium/ReacherBulletEnv-v0}")
settings=(--steps 200 --learning_rate 1e-3 --warmup_steps 10 --decay_fraction 0.5 --report_to none)
for environment in ${environments[*]}; do
    name=${environment//\//--}
    tune() { # way, options: nothing to learn from is no failure
        ldm finetune "$model" "$environment" --output "runs/held-out/$1/$name" "${settings[@]}" "${@:2}" || return 0
        ldm evaluate "runs/held-out/$1/$name/model" --data runs/references --environments "$environment" \
            --output "runs/held-out/$1/$name/evaluation"
    }
    tune full --data runs/references --episodes 20
    tune lora --data runs/references --episodes 20 --lora
    tune own --episodes 32 --rounds 2
done
