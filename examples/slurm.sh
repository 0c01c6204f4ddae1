#!/bin/bash
# Two machines with four GPUs each, and one folder that both see: sbatch examples/slurm.sh
# What is stopped, killed or requeued goes on where it was: the command is the same every time.
#SBATCH --job-name=multimix
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Without it torch 2.14 does not let a machine back in: who stayed does not tell it where they meet.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$first:29500" --rdzv-id="$SLURM_JOB_ID" \
    train.py --model resnet50 --multimix dense --data-dir imagenet -b 128 --amp --channels-last \
    --output "${OUTPUT:-output}" --experiment "$SLURM_JOB_NAME" --resume auto --recovery-interval 500
