#!/usr/bin/env bash
# One part of what a machine with an NVIDIA GPU is wanted for; needs nothing from a network.
#
#   benchmarks/on_gpu.sh build-test | bench | sanitize | train | dali | all
#
# `all` takes at most eight minutes and runs the most valuable parts first: tests, then benchmarks, then the rest.
# Results, logs and a marker for each finished part go to $OUT, or benchmarks/results/<GPU name>; a finished part is not
# run again (remove DIR/<part>.done for that), and `bench` goes on at the case where it stopped. A part that failed, or
# that lacks a tool, runs again. PYTHON names another interpreter. FASTMTL_DATA, a folder CLASS/{image,label}, replaces
# the demo's synthetic tiles in `train`. Ends with 1 when something failed, with 3 when something was only left out.
set -euo pipefail

# Paths are the caller's, who may stand in another folder.
absolute() { if [[ -z $1 || $1 == /* ]]; then printf '%s' "$1"; else printf '%s/%s' "${PWD}" "$1"; fi; }
OUT=$(absolute "${OUT:-}")
FASTMTL_DATA=$(absolute "${FASTMTL_DATA:-}")
[[ ${PYTHON:-} != */* ]] || PYTHON=$(absolute "${PYTHON}")

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=${PYTHON:-python3}
readonly PARTS=(build-test bench sanitize train dali)
readonly -A SHARE=([build-test]=150 [bench]=200 [sanitize]=70 [train]=45 [dali]=15) # seconds of each part in `all`
# Another project's plugins may warn of what our own settings make an error.
readonly PYTEST=("${PYTHON}" -m pytest -W default -p no:cacheprovider)
LIMIT=${LIMIT:-460} # seconds a part may take
readonly LEFT_OUT=3          # as `fastmtl bench` ends when something is not installed
export PYTHONPATH="${PWD}${PYTHONPATH:+:${PYTHONPATH}}"

say() { printf 'on_gpu: %s\n' "$*"; }

usage() {
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' benchmarks/on_gpu.sh
    exit 2
}

# left_out LOG REASON: the status of a part that cannot run here.
left_out() {
    say "left out: $2" | tee -a "${OUT}/$1.log"
    return "${LEFT_OUT}"
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
    limited "${OUT}/build.log" "${PYTHON}" setup.py build_ext --inplace --parallel "$(nproc)"
}

build_test() {
    build || return 1
    local chosen=(tests/*/test_*_on_gpu.py) mark=gpu
    if [[ -z ${GPU} ]]; then
        chosen=(tests/ops)
        mark="not slow"
    fi
    local workers=()
    ! has xdist || workers=(-n 8 --dist worksteal) # compiling kernels takes most of the time, and the CPU's cores do it
    limited "${OUT}/tests.log" "${PYTEST[@]}" "${workers[@]}" "${chosen[@]}" -m "${mark}" || return 1
}

sanitize() {
    if [[ -z ${GPU} ]]; then
        left_out sanitize "compute-sanitizer needs a GPU" || return
    fi
    if ! command -v compute-sanitizer >/dev/null; then
        left_out sanitize "compute-sanitizer is not installed" || return
    fi
    # Without torch's cache each tensor is a block of its own: a read past its end is seen.
    local -x PYTORCH_NO_CUDA_MEMORY_CACHING=1
    local tool
    for tool in memcheck racecheck; do
        limited "${OUT}/sanitize.log" compute-sanitizer --tool "${tool}" --error-exitcode 1 \
            "${PYTEST[@]}" tests/*/test_*_on_gpu.py -m 'gpu and not unsanitized' || return 1
    done
}

# Every case on its own, so that a stop loses one case at most; first all cases warm, as graph replays, then cold, then
# with the latency of eager launches.
bench() {
    has fastmtl._C || build || return 1
    local titles title setting marker status worst=0
    local rounds=${ROUNDS:-$([[ -n ${GPU} ]] && echo 30 || echo 3)}
    titles=$("${PYTHON}" -m benchmarks.run --list)
    local settings=(warm cold)
    [[ -z ${GPU} ]] || settings+=(eager)
    for setting in "${settings[@]}"; do
        while IFS= read -r title; do
            marker="${OUT}/.bench.$(printf '%s %s' "${title}" "${setting}" | cksum | cut -d' ' -f1)"
            [[ ! -e ${marker} ]] || continue
            if ((SECONDS > LIMIT - 30)); then
                say "out of time; run this part again, it goes on at: ${title} (${setting})"
                return 1
            fi
            local options=(--rounds "${rounds}" --out "${OUT}/rows.csv")
            [[ ${setting} == warm ]] || options+=("--${setting}")
            status=0
            limited "${OUT}/bench.log" "${PYTHON}" -m benchmarks.run "${title}" "${options[@]}" || status=$?
            case ${status} in
            0 | "${LEFT_OUT}") touch "${marker}" ;; # a peer that is not installed will not be there next time either
            124 | 137)
                say "out of time in: ${title} (${setting}); run this part again, or with a larger LIMIT (now ${LIMIT})"
                return 1
                ;;
            *)
                say "failed, and will run again: ${title} (${setting})"
                worst=1
                ;;
            esac
        done <<<"${titles}"
    done
    if has matplotlib; then
        limited "${OUT}/bench.log" "${PYTHON}" -m benchmarks.run --plot --out "${OUT}/rows.csv" || say "no plots"
    fi
    return "${worst}"
}

dali() {
    if ! has nvidia.dali; then
        left_out dali "DALI is not installed" || return
    fi
    local status=0
    if [[ -n ${GPU} ]]; then
        limited "${OUT}/dali.log" "${PYTEST[@]}" tests/*/test_*_on_gpu.py -m gpu -k decoded || return 1
    fi
    limited "${OUT}/dali.log" "${PYTHON}" -m benchmarks.run TileLoader --rounds 5 --out "${OUT}/dali.csv" || status=$?
    ((status == 0 || status == LEFT_OUT)) # a peer that is not installed is named in the table
}

train() {
    local module
    for module in nvidia.dali tomli_w torchmetrics safetensors tensorboard; do
        if ! has "${module}"; then
            left_out train "training needs ${module}, which is not installed" || return
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
    elif ((status == LEFT_OUT)); then
        say "${part}: left out"
        return "${LEFT_OUT}"
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
    for part in "${PARTS[@]}"; do
        LIMIT=${SHARE[${part}]}
        run_part "${part}" || status=$((status == 1 ? 1 : $?))
    done
else
    run_part "$1" || status=$?
fi
exit "${status}"
