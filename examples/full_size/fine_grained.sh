#!/usr/bin/env bash
# SONA and what it is compared with on a fine-grained set, with the paper's recipe for such. All that is set here may be
# set in the environment; steps.sh has the rest.
set -euo pipefail
shopt -s nullglob

DATA=${DATA:-data/fine-grained}  # folder with train, test, near and far, see README.md
OUT=${OUT:-runs/fine-grained}    # for everything that is made
TRAIN=${TRAIN:-$DATA/train}      # ID images: a folder with a sub-folder a class, or a Hub id with a split "train"
TEST=${TEST:-$DATA/test}         # the same classes: a folder, or a Hub id with a split "test"
CLASS_NAMES=${CLASS_NAMES:-}     # file with words for the classes, if their names are none

images=(--data "$TRAIN")
prompts=(--prompt "a photo of a {}")
[[ -z $CLASS_NAMES ]] || prompts+=(--class-names "$CLASS_NAMES")
recipe=(--recipe fine-grained)
tests=(--id "$TEST" --fit "$TRAIN")
for kind in near far; do
    for folder in "$DATA/$kind"/*/; do
        tests+=("--$kind" "$(basename "$folder")=$folder")
    done
done

source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
