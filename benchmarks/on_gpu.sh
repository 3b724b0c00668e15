#!/usr/bin/env bash
# One part of what a machine with an NVIDIA GPU is wanted for; needs nothing from a network.
#
#   benchmarks/on_gpu.sh build-test | sanitize | bench | dali | train | all
#
# Results, logs and a marker for each finished part go to $OUT, or benchmarks/results/<GPU name>; a finished part is not
# run again (remove DIR/<part>.done for that), and `bench` goes on at the case where it stopped. PYTHON names another
# interpreter. FASTMTL_DATA, a folder CLASS/{image,label}, replaces the demo's synthetic tiles in `train`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=${PYTHON:-python3}
readonly PARTS=(build-test sanitize bench dali train)
# Another project's plugins may warn of what our own settings make an error.
readonly PYTEST=("${PYTHON}" -m pytest -W default -p no:cacheprovider)
readonly LIMIT=${LIMIT:-460} # seconds a part may take
export PYTHONPATH="${PWD}${PYTHONPATH:+:${PYTHONPATH}}"

say() { printf 'on_gpu: %s\n' "$*"; }

usage() {
    sed -n '2,9s/^# \{0,1\}//p' benchmarks/on_gpu.sh
    exit 2
}

# Whether a module is installed; importing it could fail for reasons that fastmtl knows how to mend.
has() { "${PYTHON}" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }

# The GPU's name; empty where torch sees none.
gpu_name() {
    "${PYTHON}" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")'
}

# limited LOG COMMAND...: within what is left of the part's time, output to the log and the terminal.
limited() {
    local log=$1 left=$((LIMIT - SECONDS))
    shift
    ((left > 5)) || left=5
    say "$*  (at most ${left} s, log ${log})"
    timeout --kill-after=10 "${left}" "$@" 2>&1 | tee -a "${log}"
}

build() {
    limited "${OUT}/build.log" "${PYTHON}" setup.py build_ext --inplace
}

build_test() {
    build || return 1
    local chosen=(tests/test_gpu.py -m gpu)
    [[ -n ${GPU} ]] || chosen=(tests/test_gram.py tests/test_combine.py tests/test_pcgrad.py -m "not slow")
    limited "${OUT}/tests.log" "${PYTEST[@]}" "${chosen[@]}"
}

sanitize() {
    if [[ -z ${GPU} ]]; then
        say "left out: compute-sanitizer needs a GPU" | tee -a "${OUT}/sanitize.log"
        return 0
    fi
    if ! command -v compute-sanitizer >/dev/null; then
        say "left out: compute-sanitizer is not installed" | tee -a "${OUT}/sanitize.log"
        return 0
    fi
    local tool
    for tool in memcheck racecheck; do
        limited "${OUT}/sanitize.log" compute-sanitizer --tool "${tool}" --error-exitcode 1 \
            "${PYTEST[@]}" tests/test_gpu.py -m gpu -k small || return 1
    done
}

# Every case on its own, warm and cold, so that a stop loses one case at most.
bench() {
    has fastmtl._C || build || return 1
    local titles title setting status=0 marker
    local rounds=${ROUNDS:-$([[ -n ${GPU} ]] && echo 30 || echo 3)}
    titles=$("${PYTHON}" -m benchmarks.run --list)
    while IFS= read -r title; do
        for setting in warm cold; do
            marker="${OUT}/.bench.$(printf '%s %s' "${title}" "${setting}" | cksum | cut -d' ' -f1)"
            [[ ! -e ${marker} ]] || continue
            if ((SECONDS > LIMIT - 30)); then
                say "out of time; run this part again, it goes on at: ${title} (${setting})"
                return 1
            fi
            local options=(--rounds "${rounds}" --out "${OUT}/rows.csv")
            [[ ${setting} == warm ]] || options+=(--cold)
            # 1 says that something was left out, a peer that is not installed as a rule: the log names it.
            status=0
            limited "${OUT}/bench.log" "${PYTHON}" -m benchmarks.run "${title}" "${options[@]}" || status=$?
            ((status <= 1)) || return "${status}"
            touch "${marker}"
        done
    done <<<"${titles}"
    if has matplotlib; then
        limited "${OUT}/bench.log" "${PYTHON}" -m benchmarks.run --plot --out "${OUT}/rows.csv" || say "no plots"
    fi
}

dali() {
    if ! has nvidia.dali; then
        say "left out: DALI is not installed" | tee -a "${OUT}/dali.log"
        return 0
    fi
    local status=0
    if [[ -n ${GPU} ]]; then
        limited "${OUT}/dali.log" "${PYTEST[@]}" tests/test_gpu.py -m gpu -k decoded || return 1
    fi
    limited "${OUT}/dali.log" "${PYTHON}" -m benchmarks.run TileLoader --rounds 5 --out "${OUT}/dali.csv" || status=$?
    ((status <= 1)) # 1 names what was left out
}

train() {
    local module
    for module in nvidia.dali tyro tomli_w torchmetrics safetensors tensorboard; do
        if ! has "${module}"; then
            say "left out: training needs ${module}, which is not installed" | tee -a "${OUT}/train.log"
            return 0
        fi
    done
    has fastmtl._C || build || return 1
    local arguments=(demo)
    [[ -z ${FASTMTL_DATA:-} ]] || arguments=(ebhi_joint_unet --data "${FASTMTL_DATA}")
    [[ -n ${GPU} ]] || arguments=(demo --epochs 1)
    # Stopped at the time limit, a run saves itself, and goes on from there.
    [[ ! -e ${OUT}/run/config.toml ]] || arguments=(--resume)
    limited "${OUT}/train.log" "${PYTHON}" -m fastmtl.cli train "${arguments[@]}" --out "${OUT}/run"
}

run_part() {
    local part=$1
    if [[ -e ${OUT}/${part}.done ]]; then
        say "${part} is done (${OUT}/${part}.done)"
        return 0
    fi
    SECONDS=0
    local status=0
    case ${part} in
    build-test) build_test || status=$? ;;
    sanitize) sanitize || status=$? ;;
    bench) bench || status=$? ;;
    dali) dali || status=$? ;;
    train) train || status=$? ;;
    esac
    if ((status == 0)); then
        date -u +%FT%TZ >"${OUT}/${part}.done"
        say "${part}: done"
    else
        say "${part}: not finished, see the logs in ${OUT}"
        return 1
    fi
}

[[ $# == 1 ]] || usage
[[ $1 == all || " ${PARTS[*]} " == *" $1 "* ]] || usage
has torch || { say "${PYTHON} has no torch; set PYTHON" && exit 2; }
GPU=$(gpu_name)
if [[ -n ${GPU} ]]; then
    say "GPU: ${GPU}"
else
    say "no GPU here: the CPU part runs"
fi
readonly GPU
name=$(printf '%s' "${GPU:-cpu}" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')
OUT=${OUT:-benchmarks/results/${name%-}}
readonly OUT
mkdir -p "${OUT}"

status=0
if [[ $1 == all ]]; then
    for part in "${PARTS[@]}"; do run_part "${part}" || status=1; done
else
    run_part "$1" || status=1
fi
exit "${status}"
