#!/usr/bin/env bash
# The references of the bank that are scripted experts, which libraries ship: the lines of environments.txt that end in "expert".
set -uo pipefail
cd "$(dirname "$0")/../.."
declare -A sources=([metaworld]=experts:metaworld [minigrid]=experts:babyai)
while read -r environment _; do
    # few transitions, because the bank keeps policies and no data
    .venv/bin/ldm adopt "$environment" "${sources[${environment%%/*}]}" --transitions 8000 --output runs/bank/experts ||
        echo "$environment: exit status $?" >&2
done < <(grep " expert$" recipes/bank/environments.txt)
