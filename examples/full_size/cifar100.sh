#!/usr/bin/env bash
# SONA and what it is compared with on CIFAR-100. All that is set here may be set in the environment; steps.sh has the
# rest.
set -euo pipefail

DATA=${DATA:-data}         # OpenOOD's data folder
OUT=${OUT:-runs/cifar100}  # for everything that is made

here=$(dirname "${BASH_SOURCE[0]}")
lists=$DATA/benchmark_imglist/cifar100
REAL_OUTLIERS=${REAL_OUTLIERS:-$lists/train_tin597.txt}
images=(--data "$lists/train_cifar100.txt" --image-root "$DATA/images_classic")
prompts=(--class-names "$here/cifar100_classes.txt")
recipe=(--recipe small --network resnet18 --epochs 100 --batch-size 128 --schedule cosine --min-strength 0
    --validation "$lists/val_cifar100.txt")
tests=(--benchmark cifar100 --root "$DATA")

source "$here/steps.sh"
