#!/usr/bin/env bash
# Make an environment for the LeRobot reader under the given folder. Its pins exclude ours, hence --no-deps and the versions
# here; from datasets 4.4 on LeRobot reads 4 to 6 times more slowly, so that 4.3 is the fair one.
set -euo pipefail
python3 -m venv "$1"
install() { "$1/bin/python" -m pip install --quiet "${@:2}"; }
install "$1" 'torch==2.13.0'
install "$1" --no-deps torchvision==0.28.0 lerobot==0.4.4
install "$1" 'datasets==4.3.0' 'huggingface-hub>=0.34.2,<0.36' 'av>=15,<16' 'accelerate>=1.10,<2' pandas pillow 'numpy>=2.3,<2.4'
