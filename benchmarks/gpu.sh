#!/usr/bin/env bash
# All benchmarks on a bare GPU machine within 10 minutes.
# Needs jax with CUDA, flax, optax, absl-py, jaxtyping, numpy, and for the peer torch.
# Skips the scripts that need more of medtl's dependencies where these are missing.
#
#   benchmarks/gpu.sh [interpreter with PyTorch]
set -uo pipefail
cd "$(dirname "$0")/.."
TORCH_PYTHON="${1:-python3}"
python3 - <<'EOF' || exit 1
import jax
print(jax.__version__, jax.devices())
assert jax.default_backend() != "cpu", "no accelerator"
EOF

# All scripts share compiled programs; step.py comes first and reports the time of compilation.
JAX_COMPILATION_CACHE_DIR="$(mktemp -d)"
export JAX_COMPILATION_CACHE_DIR
trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT

failed=0
run() { # run SECONDS SCRIPT ARGUMENTS...; at most the rest of the 10 minutes
  local left=$((595 - SECONDS))
  if [ "$left" -lt 10 ]; then
    echo "no time left: $2 ${*:3}" >&2
    failed=1
    return
  fi
  echo "== [$SECONDS s] $2 ${*:3}"
  if ! timeout "$(($1 < left ? $1 : left))" python3 "benchmarks/$2" "${@:3}" --write; then
    echo "failed: $2 ${*:3}" >&2
    failed=1
  fi
}
run_all() { # the same for a script that needs all of medtl's dependencies
  local missing
  if missing=$(PYTHONPATH=. python3 -c 'import grain, sklearn, medtl.experiment.experiment' 2>&1); then
    run "$@"
  else
    echo "skipped: $2 (${missing##*$'\n'})"
  fi
}

resnet50=(--model=resnet50 --batch=256 --dtype=bfloat16)
run 150 step.py "${resnet50[@]}" --rounds=7 --steps=10
run 300 peers.py "${resnet50[@]}" --rounds=7 --steps=10 --torch_python="$TORCH_PYTHON" \
  --torch_compile --noall_kept
run_all 120 end_to_end.py "${resnet50[@]}" --size=224 --train=1280 --val=128 --case joint \
  --feed streamed resident
run_all 100 end_to_end.py --case single --epochs=20 --feed streamed resident \
  --torch_python="$TORCH_PYTHON"
run_all 60 sweep.py
run_all 60 scaling.py "${resnet50[@]}" --size=224 --device_batch=256 --steps=10
run_all 60 input.py --batch=256
exit "$failed"
