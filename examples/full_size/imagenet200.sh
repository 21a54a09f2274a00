#!/usr/bin/env bash
# SONA and what it is compared with on ImageNet-200, as in the paper. All that is set here may be set in the environment;
# steps.sh has the rest.
set -euo pipefail

DATA=${DATA:-data}            # OpenOOD's data folder
OUT=${OUT:-runs/imagenet200}  # for everything that is made

lists=$DATA/benchmark_imglist/imagenet200
REAL_OUTLIERS=${REAL_OUTLIERS:-$lists/train_imagenet800.txt}
images=(--data "$lists/train_imagenet200.txt" --image-root "$DATA/images_largescale")
prompts=(--prompt "a photo of a {}")
recipe=(--recipe imagenet200 --validation "$lists/val_imagenet200.txt")
tests=(--benchmark imagenet200 --root "$DATA" --full-spectrum)

source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
