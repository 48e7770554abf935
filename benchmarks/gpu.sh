#!/usr/bin/env bash
# All benchmarks on a bare GPU machine within 10 minutes; needs jax with CUDA, flax, optax, absl-py, numpy, and for the peer torch.
#
#   benchmarks/gpu.sh [interpreter with PyTorch]
set -uo pipefail
cd "$(dirname "$0")/.."
TORCH_PYTHON="${1:-python3}"
python3 -c 'import jax; print(jax.__version__, jax.devices())' || exit 1

failed=0
run() { # run SECONDS SCRIPT ARGUMENTS...; a script that another release lacks is passed over
  [ -f "benchmarks/$2" ] || return 0
  echo "== $2 ${*:3}"
  timeout "$1" python3 "benchmarks/$2" "${@:3}" || { echo "failed: $2 ${*:3}" >&2; failed=1; }
}

run 150 step.py --model=resnet50 --batch=256 --dtype=bfloat16 --rounds=7 --steps=10
run 180 peers.py --model=resnet50 --batch=256 --dtype=bfloat16 --rounds=7 --steps=10 --mode=train --mode=joint \
  --torch_python="$TORCH_PYTHON" --torch_compile --noall_kept
run 120 peers.py --model=resnet50 --batch=256 --dtype=bfloat16 --rounds=7 --steps=10 --mode=infer \
  --torch_python="$TORCH_PYTHON" --noall_kept
run 60 sweep.py
run 60 input.py
exit "$failed"
