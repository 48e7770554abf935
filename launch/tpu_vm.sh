#!/usr/bin/env bash
# One run on all machines of a Cloud TPU slice, one process each.
#
#   launch/tpu_vm.sh NAME ZONE --config=configs/covid_ct.py --workdir=/shared/runs/covid_ct
#
# Before, once for each machine (--worker=all): mount a file system that all of them share, such as
# Filestore, and install medtl from a checkout there:
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="
#     sudo mkdir -p /shared && sudo mount ADDRESS:/SHARE /shared"
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="
#     python3 -m venv ~/medtl && ~/medtl/bin/pip install '/shared/medtl[tpu]'"
#
# $MEDTL_FOLDER is the checkout on the machines, $MEDTL_PYTHON the interpreter. When the slice is
# preempted and made again, the same command goes on.
set -euo pipefail

if [ "$#" -lt 3 ]; then
  echo "usage: launch/tpu_vm.sh NAME ZONE --config=FILE --workdir=FOLDER ..." >&2
  exit 2
fi
name="$1" zone="$2"
shift 2
folder="${MEDTL_FOLDER:-/shared/medtl}"
python="${MEDTL_PYTHON:-\$HOME/medtl/bin/python}"
arguments=""
for argument in "$@"; do
  arguments+=" $(printf '%q' "$argument")"
done

# JAX asks the machines' metadata for the others; every machine of the slice must run the command.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd $(printf '%q' "$folder") && exec $python launch.py --coordinator=auto$arguments"
