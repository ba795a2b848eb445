#!/bin/bash
# Two nodes of eight GPUs under SLURM: one torchrun a node, one process a GPU.
#
#     sbatch examples/slurm.sh paper-lcb-sdpo env.tasks=/shared/livecodebench_v6.jsonl run=/shared/runs/lcb
#
# The run's folder must be on a file system that all nodes see: every process writes its part of a
# checkpoint there. Ten minutes before the time limit SLURM sends SIGTERM; the run saves its last
# complete step and ends, and the job puts itself back into the queue: the same command continues it.
# Tested with stand-ins for SLURM's commands, not on a cluster.
#SBATCH --job-name=sdpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Wheels, models and data: see docs/install.md. Compute nodes often have no network.
source "${SDPO_VENV:-$HOME/sdpo/.venv}/bin/activate"
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=8

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node=8 \
    --rdzv-backend=c10d --rdzv-endpoint="$head_node:29500" --rdzv-id="$SLURM_JOB_ID" \
    --shutdown-timeout=540 \
    -m sdpo train "$@" &
step=$!

# SLURM signals this shell; the tasks, whose torchrun hands it to the workers, get it from scancel.
stopping=0
trap 'stopping=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
status=0
wait "$step" || status=$?
while [ "$stopping" = 1 ] && kill -0 "$step" 2>/dev/null; do
    wait "$step" || true  # the first wait ended with the signal, not with the tasks
done
if [ "$stopping" = 1 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
