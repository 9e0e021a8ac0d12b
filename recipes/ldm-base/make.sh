#!/usr/bin/env bash
# What makes pretrained/ldm-base from the bank, from the root of the repository; resumable, also in the middle of a training.
# Rollouts of 120 policies and training; then, three times, rollouts of the model labelled by the policies where it falls short,
# and training further; the average of the last two models; and two rollouts of ten episodes in each environment, and in eight that
# are held out.
set -euo pipefail
data=runs/base-data model=pretrained/ldm-base processes=${PROCESSES:-2}
mapfile -t environments < <(sed -n 's/^- //p' recipes/ldm-base/train.yaml)
mapfile -t held_out < recipes/ldm-base/held_out.txt
correct() { # MODEL RECIPE OUTPUT: where the model falls short, which the next recipe weights by 3 or more
  mapfile -t short < <(sed -n 's/^  \(.*\): [36]$/\1/p' "$2")
  ldm build "${short[@]}" --from-bank bank --actor "$1" --transitions 16000 --output "$3"
}
train() { OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true ldm launch --multi_gpu --num_processes "$processes" -m ldm_hf train --config "$1"; }
ldm build "${environments[@]}" --from-bank bank --transitions 30000 --output "$data"
ldm build "${held_out[@]}" --from-bank bank --transitions 2000 --output runs/base-held-out
train recipes/ldm-base/train.yaml
correct runs/ldm-base-1/model recipes/ldm-base/train-2.yaml runs/base-corrections
train recipes/ldm-base/train-2.yaml
correct runs/ldm-base-2/model recipes/ldm-base/train-3.yaml runs/base-corrections-2
train recipes/ldm-base/train-3.yaml
correct runs/ldm-base-3/model recipes/ldm-base/train-4.yaml runs/base-corrections-3
mapfile -t languages < <(sed -n 's/^  \(.*\): 6$/\1/p' recipes/ldm-base/train-4.yaml)
ldm build "${languages[@]}" --from-bank bank --transitions 200000 --seed 100 --output runs/base-missions
train recipes/ldm-base/train-4.yaml
ldm average runs/ldm-base-3/model runs/ldm-base-4/model --output "$model" --save-precision fp16
grep -q '^license' "$model/README.md" || sed -i '2i license: apache-2.0' "$model/README.md" # which later cards keep
ldm evaluate "$model" --data "$data" --data runs/base-held-out --environments all --output runs/ldm-base-evaluation
cp runs/ldm-base-evaluation/{README.md,report.json,threshold_curve.png} "$model"
