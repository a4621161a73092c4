#!/usr/bin/env bash
# Everything that needs a card, step by step: tests/gpu/on_a_card.sh [--rehearse] [STEP ...]
#
# For a machine with a card and, perhaps, nothing else: it takes python3 with PyTorch, Triton
# and pytest, and reaches no network. Each step has a time limit and ends for itself: one that
# fails or hangs loses no other's results. With --rehearse it runs without a card.
#
#   PYTHON    which Python (default: python3)
#   OUT       where results go (default: card-results): an environment, JUnit's XML, JSON lines
#   WHEELS    a folder of wheels that this machine lacks; large files in pieces, as `split` makes
#             them (NAME.part-aa, …). They are installed apart, into KEPT
#   KEPT      what stays for the next call (default: /tmp/shoal-card)
#   LIMIT_S   of a step, in seconds (default: 540)
set -uo pipefail
cd "$(dirname "$0")/../.."

STEPS=(env vectors models torch kernels faults jobs products rows minilm tiles)
PYTHON=${PYTHON:-python3} OUT=${OUT:-card-results} KEPT=${KEPT:-/tmp/shoal-card}
LIMIT_S=${LIMIT_S:-540}
export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1
BENCH=()
if [ "${1-}" = --rehearse ]; then
    shift
    export SHOAL_REHEARSE=1
    OUT=$OUT/rehearsal
fi
if [ "${SHOAL_REHEARSE-}" = 1 ]; then
    export TRITON_INTERPRET=1
    BENCH=(--rehearse)
fi
[ $# -gt 0 ] || set -- "${STEPS[@]}"
mkdir -p "$OUT" "$KEPT"
OUT=$(realpath "$OUT")
LOG=$OUT/log.txt

# What this machine lacks: bring no more than that, for it is found before what is there. What
# is a source is built here, if it can be; only the daemon's jobs want such a one.
install() {
    local pip=("$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade
        --no-build-isolation --disable-pip-version-check --root-user-action=ignore
        --target "$KEPT/site")
    mkdir -p "$KEPT/wheels" "$KEPT/site"
    cp "$WHEELS"/* "$KEPT/wheels/"
    for first in "$KEPT"/wheels/*.part-aa; do
        [ -e "$first" ] && cat "${first%aa}"* > "${first%.part-aa}"
    done
    "${pip[@]}" "$KEPT"/wheels/*.whl && wheels=() || wheels=("$KEPT"/wheels/*.whl)
    for wheel in "${wheels[@]}" "$KEPT"/wheels/*.tar.gz; do
        [ ! -e "$wheel" ] || "${pip[@]}" "$wheel" || echo "not installed: $(basename "$wheel")"
    done
}

tests() {  # NAME FILE [ARGUMENT ...]
    local name=$1 file=$2
    shift 2
    "$PYTHON" -m pytest "tests/gpu/$file" --junitxml="$OUT/$name.xml" -p no:cacheprovider -v "$@"
}

# Most of their time a compiler takes, hundreds of times: several processes share the card.
several() {
    local count=$(($(nproc) / 2))
    [ "$count" -ge 2 ] && "$PYTHON" -c 'import xdist' 2>/dev/null && echo "--numprocesses=$count"
}

exact() {  # NAME WHICH
    "$PYTHON" -m shoal.compute.exact.cpu  # the CPU's kernels, once, and not in every process
    tests "$1" test_exact_on_card.py -k "$2" $(several)
}

bench() {  # PART
    "$PYTHON" tests/bench/gpu_exact.py "${BENCH[@]}" --only "$1" --results "$OUT/times.jsonl"
}

step() {
    case $1 in
        env) "$PYTHON" tests/gpu/environment.py | tee "$OUT/environment.json" ;;
        vectors) exact vectors 'not whole_model' ;;
        models) exact models whole_model ;;
        torch) tests torch test_torch_on_card.py ;;
        kernels) tests kernels test_user_kernels_on_card.py ;;
        faults) tests faults test_faults_on_card.py ;;
        jobs) tests jobs test_kernel_jobs_on_card.py ;;
        products | rows | tiles) bench "$1" ;;
        minilm) bench models ;;
        *) echo "no step $1; there are: ${STEPS[*]}" >&2; return 2 ;;
    esac
}

if [ "${INSIDE-}" ]; then  # this very script, once more, so that `timeout` can end a step
    step "$1"
    exit
fi
[ -n "${WHEELS-}" ] && install 2>&1 | tee -a "$LOG"
export PYTHONPATH=$PWD/deploy/package${PYTHONPATH:+:$PYTHONPATH}:$KEPT/site
failed=()
for name in "$@"; do
    echo "== $name" | tee -a "$LOG"
    INSIDE=1 OUT=$OUT KEPT=$KEPT timeout --kill-after=10 "$LIMIT_S" \
        tests/gpu/on_a_card.sh "$name" 2>&1 | tee -a "$LOG"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || failed+=("$name ($status)")
done
if [ -e "$OUT/times.jsonl" ]; then
    "$PYTHON" tests/bench/gpu_exact.py "${BENCH[@]}" --results "$OUT/times.jsonl" --print
fi
echo "failed: ${failed[*]:-none}" | tee -a "$LOG"
[ ${#failed[@]} = 0 ]
