#!/usr/bin/env bash
# What made this folder, from the root of the repository: a few core hours for the references, 74 minutes of three cores for the
# training, 8 core minutes for the evaluation. The libraries are installed by `ldm env add`, or run in Docker (docs/environments.md).
set -euo pipefail
recipes/ldm-mini/references.sh
OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 3 -m ldm_hf.training --config recipes/ldm-mini/train.yaml
cp runs/ldm-mini/model/* runs/ldm-mini/training.yaml pretrained/ldm-mini
sed -i '2i license: apache-2.0' pretrained/ldm-mini/README.md  # which later cards keep
ldm evaluate pretrained/ldm-mini --data runs/references --environments all --videos 10 --output runs/ldm-mini/evaluation
cp runs/ldm-mini/evaluation/{README.md,report.json,threshold_curve.png} pretrained/ldm-mini
