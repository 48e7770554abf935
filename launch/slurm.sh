#!/usr/bin/env bash
# One run over several nodes, a process for each GPU. From the project's folder:
#
#   sbatch launch/slurm.sh --config=configs/covid_ct.py --workdir=/shared/runs/covid_ct
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh ...
#
# The processes find each other through SLURM's environment, without a flag. The folder of the run
# must be on a file system that all nodes share. $MEDTL_SETUP is a shell file that is read before,
# to load modules and activate an environment.
#SBATCH --job-name=medtl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
# Not --gpus-per-task: JAX picks the GPU of each process among all of the node.
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM to the processes two minutes before the time is up: they save a checkpoint and end.
#SBATCH --signal=TERM@120
set -uo pipefail

if [ "$#" -eq 0 ]; then
  echo "usage: sbatch launch/slurm.sh --config=FILE --workdir=FOLDER ..." >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
if [ -n "${MEDTL_SETUP:-}" ]; then
  # shellcheck disable=SC1090
  source "$MEDTL_SETUP"
fi
# On clusters that reach other networks through a proxy, JAX would look for its peers there.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

# A process that ends by a fault takes the others with it.
srun --kill-on-bad-exit=1 python launch.py "$@"
code=$?

# 143: stopped by SIGTERM with a checkpoint; the same command goes on. Other faults need a person.
if [ "$code" -eq 143 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  echo "stopped by SIGTERM: job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
