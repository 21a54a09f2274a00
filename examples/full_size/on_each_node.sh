#!/usr/bin/env bash
# Started by srun once on each node: the processes of that node, of all of which accelerate makes one run.
set -euo pipefail
exec accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * GPUS)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST_NODE" --main_process_port "${PORT:-29500}" "$@"
