#!/usr/bin/env bash
# What to run first where there is a GPU: the tables of benchmarks/README.md that want one, and the tests that are skipped
# without, in about ten minutes.
#   benchmarks/first_round.sh FOLDER                                          # an H200: 989 TFLOP/s, 4800 GB/s
#   PEAK_TFLOPS=312 PEAK_BANDWIDTH=2039 benchmarks/first_round.sh FOLDER      # an A100
#   DEVICE=cpu PRESET=nano CONTEXT=64 BATCH=2 benchmarks/first_round.sh FOLDER   # whether it runs at all
# Each part writes FOLDER/<part>.json and .log; one that fails does not keep the others from running.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
device=${DEVICE:-cuda} preset=${PRESET:-308m} context=${CONTEXT:-2048} batch=${BATCH:-16}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
status=0

part() {
    local name=$1
    shift
    echo "== $name: $*"
    timeout "${PART_SECONDS:-240}" "$@" >"$out/$name.log" 2>&1 || { echo "$name: exit status $?" >&2; status=1; }
    tail -n 25 "$out/$name.log"
}

on_gpu=()
if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,memory.total,clocks.max.sm --format=csv | tee "$out/gpu.csv"
    on_gpu=(--bf16)
fi
shape=(--preset "$preset" --context "$context" --device "$device" "${on_gpu[@]}")
tflops=(--peak-tflops "${PEAK_TFLOPS:-989}")
part training "$python" benchmarks/training.py "${shape[@]}" --batch "$batch" --compile --workers 4 --rounds 2 "${tflops[@]}" \
    --json "$out/training.json"
part rollout "$python" benchmarks/rollout.py "${shape[@]}" --rounds 1 --peak-bandwidth "${PEAK_BANDWIDTH:-4800}" \
    --json "$out/rollout.json"
part tests "$python" -m pytest -q -k "cuda or gpu or accelerator or devices" tests/test_policy.py tests/test_joint.py \
    tests/test_training.py tests/test_distributed.py tests/test_modeling.py
exit $status
