#!/usr/bin/env bash
# The references of the bank that are scripted experts, which libraries ship: the lines of environments.txt that end in "expert".
set -uo pipefail
cd "$(dirname "$0")/../.."
declare -A sources=([metaworld]=experts:metaworld [minigrid]=experts:babyai)
while read -r environment _; do
    .venv/bin/ldm adopt "$environment" "${sources[${environment%%/*}]}" --output runs/bank/experts ||
        echo "$environment: exit status $?" >&2
done < <(grep " expert$" recipes/bank/environments.txt)
