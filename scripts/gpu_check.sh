#!/usr/bin/env bash
# Everything about vitcop-cuda that needs a GPU: build, cross-checks, compute-sanitizer, benches.
#
#   bash scripts/gpu_check.sh [output folder, docs/benchmarks/gpu by default]
#
# Needs python3 with torch for CUDA, setuptools, ninja, pybind11, pytest, hypothesis and numpy, nvcc under CUDA_HOME or on
# the path, and no network. The whole takes about a quarter of an hour. Every step goes on where one before it failed; the last
# lines say which did, and the exit status is their number. No setting of the GPU is touched.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/benchmarks/gpu}
mkdir -p "$out"
failed=()

# step NAME COMMAND...: runs it, with its output in the log of that name, and says how long it took.
step() {
    local name=$1 started=$SECONDS status=0
    shift
    "$@" >"$out/$name.log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        echo "passed  $name ($((SECONDS - started)) s)"
    else
        echo "FAILED  $name ($((SECONDS - started)) s, status $status); the end of $out/$name.log:"
        tail -n 15 "$out/$name.log"
        failed+=("$name")
    fi
}

# watched TOOL ARGUMENTS...: the driver under a tool of compute-sanitizer. Torch's own kernels are none of our business:
# what counts is a report that names one of ours. Without torch's cache every tensor is an allocation of its own, so
# that an access just beyond one is seen.
watched() {
    local tool=$1
    shift
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 150 compute-sanitizer --show-backtrace no --tool "$tool" "$@" \
        python3 scripts/sanitized_driver.py >"$out/$tool.report" 2>&1
    local status=$?
    cat "$out/$tool.report"
    grep -q 'calls agree with the reference' "$out/$tool.report" || return 1
    grep -q 'ERROR SUMMARY\|RACECHECK SUMMARY' "$out/$tool.report" || return 2
    ! grep -E 'vitcop::|6vitcop' "$out/$tool.report" || return 3
    return "$((status == 124))"
}

benches() {
    local prefill=() failed=0 stored="$out/bench-llava-1.5-7b.json"
    local bench=(python3 -c 'from vitcop_llava.cli import main; main()' bench --device cuda --dtype bfloat16 --force)
    if "${bench[@]}" --shape llava-1.5-7b --out "$stored"; then
        prefill=(--prefill "$stored")
    else
        failed=1
    fi
    "${bench[@]}" --shape llava-1.5-7b --batch 8 --out "$out/bench-llava-1.5-7b-batch-8.json" || failed=1
    "${bench[@]}" --shape llava-next-13b --retain 80 --out "$out/bench-llava-next-13b.json" || failed=1
    if python3 -c 'import flash_attn' 2>/dev/null; then
        "${bench[@]}" --shape llava-1.5-7b --attention flash_attention_2 --out "$out/bench-llava-1.5-7b-flash.json" ||
            failed=1
    fi
    python3 -m vitcop_cuda.bench --device cuda --repeats 30 "${prefill[@]}" --out "$out/kernels.json" || failed=1
    return "$failed"
}

if [ -z "${CUDA_HOME:-}" ]; then
    nvcc=$(command -v nvcc) || { echo "no nvcc: set CUDA_HOME"; exit 99; }
    CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
capability='import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))'
TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c "$capability")} || { echo "torch finds no GPU"; exit 98; }
export TORCH_CUDA_ARCH_LIST MAX_JOBS="${MAX_JOBS:-$(nproc)}" PYTHONUNBUFFERED=1

{
    date -u +%FT%TZ
    nvidia-smi
    nvcc --version
    python3 -c 'import sys, torch; print(sys.version); print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())'
} >"$out/machine.log" 2>&1

# The repository's settings for pytest are those of its pinned versions; these versions are the machine's own.
pytest=(python3 -m pytest -c /dev/null --rootdir . --import-mode=importlib -p no:cacheprovider -q --require-cuda
    -o "pythonpath=$PWD/packages/vitcop-cuda/tests/support")

# Whatever is no package of this repository must be there already: nothing is fetched.
step build python3 -m pip install --no-index --no-build-isolation --no-deps ./packages/vitcop-*
step information python3 -c 'import vitcop_cuda as v; print(v.build_information()); assert v.build_information().cuda'
step cross_check "${pytest[@]}" --durations 10 packages/vitcop-cuda
step launches "${pytest[@]}" -s -k launches packages/vitcop-cuda/tests/test_cuda.py
for tool in memcheck racecheck synccheck initcheck; do
    step "$tool" watched "$tool"
done
step benches benches

echo "results and logs: $out"
if [ "${#failed[@]}" -gt 0 ]; then
    echo "failed: ${failed[*]}"
fi
exit "${#failed[@]}"
