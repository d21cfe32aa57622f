# ./dev gpu: what to do on a machine with an NVIDIA GPU, which may have no network and may be lent for minutes only.
# Sourced by ./dev, whose functions and variables (root, packages) it uses.  Every phase has a time limit and writes what it has as it goes, so that a run that
# is cut short still brings something back.

gpu_usage() {
    cat <<'EOF'
usage: ./dev gpu [PHASE ...] [--quick] [--minutes M] [--results DIR]
  build     build the library, its tests and the micro-benchmarks with nvcc
  test      all tests of kernels, of the CUDA backend and of the stand-in driver's conformance, on the device
  bench     micro-benchmarks against cuBLASLt, then nibble bench of --shape models
  sanitize  the kernel tests under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
  all       the four, in this order (default)
  carry     on a machine with network: gather in .carry what a bare machine lacks (GoogleTest, libraries, headers)
  --quick       tiny shapes: a rehearsal, which also runs on the stand-in driver (NB_CUDA_DRIVER=build/libptxemu.so)
  --minutes M   end after M minutes (default 9.5)
  --results DIR where results go (default benchmarks/results; with --quick build/gpu-rehearsal); NB_RESULTS does the same
The results are DIR/GPU/DATE.json, and DATE.md for people; a second run of a day is appended.
EOF
}

gpu_note() { echo "dev gpu: $*"; }
gpu_left() { echo $((gpu_end - $(date +%s))); } # seconds

# Seconds for a phase: `share` percent of what is left.
gpu_share() { echo $(($(gpu_left) * $1 / 100)); }

gpu_record() { python3 benchmarks/gpu/report.py "$gpu_json" "$@"; } # a section; JSON lines come from stdin

# ---- a bare machine: what was carried stands in for packages -----------------------------------------------------------
gpu_use_carry() {
    [ -d .carry ] || return 0
    local had=${LD_LIBRARY_PATH:-}
    if ! pkg-config --exists jansson libpcre2-8 libutf8proc 2>/dev/null; then
        gpu_note "libraries and headers come from .carry"
        export PATH=$PATH:$root/.carry/bin LD_LIBRARY_PATH=$root/.carry/lib${had:+:$had}
        export PKG_CONFIG_PATH=$root/.carry/lib/pkgconfig CMAKE_PREFIX_PATH=$root/.carry
    fi
    need() { :; }
}

gpu_carry() {
    need "${packages[@]}" googletest
    rm -rf .carry
    mkdir -p .carry/bin .carry/include .carry/lib/pkgconfig
    cp -r /usr/src/googletest .carry/googletest
    cp -L /usr/bin/pkg-config .carry/bin/
    local name lib
    for lib in $(ldd .carry/bin/pkg-config | sed -n 's/.*=> \(.*libpkgconf[^ ]*\).*/\1/p'); do cp -L "$lib" .carry/lib/; done
    cp /usr/include/jansson*.h /usr/include/pcre2.h /usr/include/utf8proc.h .carry/include/
    for name in jansson pcre2-8 utf8proc; do
        lib=$(readlink -f "$(gcc -print-file-name="lib$name.so")")
        cp "$lib" ".carry/lib/lib$name.so"
        ln -s "lib$name.so" ".carry/lib/$(objdump -p "$lib" | sed -n 's/ *SONAME *//p')"
    done
    cat >.carry/lib/pkgconfig/nibble-carry.in <<'EOF'
prefix=${pcfiledir}/../..
Name: NAME
Description: carried along
Version: 0
Libs: -L${prefix}/lib -lNAME
Cflags: -I${prefix}/include
EOF
    for name in jansson:jansson libpcre2-8:pcre2-8 libutf8proc:utf8proc; do
        sed "s/NAME/${name#*:}/" .carry/lib/pkgconfig/nibble-carry.in >".carry/lib/pkgconfig/${name%:*}.pc"
    done
    rm .carry/lib/pkgconfig/nibble-carry.in
    gpu_note "$(du -sh .carry | cut -f1) in .carry: take this folder along with the repository"
}

# ---- phases ------------------------------------------------------------------------------------------------------------
gpu_build() {
    local began=$SECONDS
    need_nvcc
    timeout "$(gpu_left)" "$root/dev" gpu-build-steps || { gpu_note "the build failed or ran out of time"; return 1; }
    gpu_note "built in $((SECONDS - began)) s"
}

# The name of the GPU as a folder, the file of the day, and the conditions.
gpu_open_results() {
    [ -n "${gpu_json:-}" ] && return 0
    local about
    about=$(build/nibble_gpu_bench --about) || { gpu_note "the device cannot be opened"; return 1; }
    gpu_json=$gpu_results/$(python3 -c 'import json,re,sys; print(re.sub("[^a-z0-9]+", "-", json.loads(sys.argv[1])["gpu"].lower()).strip("-"))' "$about")/$(date +%F).json
    mkdir -p "$(dirname "$gpu_json")"
    echo "$about" | gpu_record about "commit=$(git describe --always --dirty 2>/dev/null || echo unknown)"
    gpu_conditions before
}

# Cards slow down when they are hot or at their power limit: what the clocks were belongs to a figure.
gpu_conditions() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu --format=csv,noheader |
        python3 -c 'import json,sys; print(json.dumps({"when": sys.argv[1], "nvidia_smi": sys.stdin.readline().strip()}))' "$1" | gpu_record conditions
}

# One GoogleTest program, serially: a test that fills the memory or faults on purpose must not meet another one.
gpu_run_test() { # section, program, seconds, prefix of the command
    local section=$1 program=$2 seconds=$3 name rc=0 began=$SECONDS
    shift 3
    name=$(basename "$program")
    rm -f "build/results/$name.json"
    GTEST_OUTPUT="json:$root/build/results/$name.json" timeout "$seconds" "$@" "$program" >"build/results/$name.log" 2>&1 || rc=$?
    gpu_record "$section" "gtest=build/results/$name.json" "program=$name" "rc=$rc" "seconds=$((SECONDS - began))" "tool=${gpu_tool:-}" </dev/null
    [ $rc = 0 ] && return
    gpu_note "$name ${gpu_tool:+under $gpu_tool }ended with status $rc$([ $rc = 124 ] && echo " (time limit)"):"
    grep -E '^\[  FAILED|Failure|^=========+ *[^C =]' "build/results/$name.log" | head -n 12
    return 1
}

gpu_test() {
    local end=$(($(date +%s) + $1)) program failed=0 n=0 skip=0
    mkdir -p build/results
    for program in build/cuda_*_test build/device_*_test build/emu_*_test; do
        case $program in *_unit_test | *'*'*) continue ;; esac
        if [ "$(date +%s)" -ge "$end" ]; then
            skip=$((skip + 1))
            continue
        fi
        n=$((n + 1))
        gpu_run_test tests "$program" $((end - $(date +%s) + 1)) env || failed=$((failed + 1))
    done
    gpu_note "tests: $n programs, $failed failed$([ $skip = 0 ] || echo ", $skip not started for lack of time")"
    [ $failed = 0 ]
}

gpu_sanitize() {
    local end=$(($(date +%s) + $1)) sanitizer="" tool program failed=0 n=0 skip=0
    for sanitizer in "$(command -v compute-sanitizer || true)" "${cuda_home:-/none}/bin/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer; do
        [ -n "$sanitizer" ] && [ -x "$sanitizer" ] && break
        sanitizer=""
    done
    if [ -z "$sanitizer" ]; then
        gpu_note "compute-sanitizer is not installed here: nothing was checked by it"
        echo '{"note": "compute-sanitizer is not installed"}' | gpu_record sanitize
        return 0
    fi
    for tool in memcheck racecheck synccheck initcheck; do
        for program in build/cuda_*_test; do
            # the failure tests provoke errors on purpose
            case $program in *_host_test | *_failure_test | *_bench_test | *'*'*) continue ;; esac
            if [ "$(date +%s)" -ge "$end" ]; then
                skip=$((skip + 1))
                continue
            fi
            n=$((n + 1))
            gpu_tool=$tool gpu_run_test sanitize "$program" 90 "$sanitizer" --tool "$tool" --error-exitcode 99 --report-api-errors no \
                --print-limit 5 --target-processes all || failed=$((failed + 1))
        done
    done
    gpu_note "compute-sanitizer: $n runs, $failed with findings$([ $skip = 0 ] || echo ", $skip not started for lack of time")"
    [ $failed = 0 ]
}

gpu_bench_kernels() { # seconds
    build/nibble_gpu_bench ${gpu_quick:+--quick} --seconds "$1" 2>build/gpu_bench.log | gpu_record kernels ||
        { gpu_note "the micro-benchmarks ended early:"; tail -n 3 build/gpu_bench.log; return 1; }
}

gpu_bench_model() { # shape, recipe, seconds
    local shape=$1 recipe=$2 sizes=(-p 512 -n 128 --batch 1,8,64 --repetitions 3) rc=0
    [ -n "$gpu_quick" ] && sizes=(-p 16 -n 2 --batch 1,2 --repetitions 1)
    [ "$recipe" = dense ] || sizes+=(--recipe "$recipe")
    timeout "$3" build/nibble bench --shape "configs/shapes/$shape.json" --device cuda:0 "${sizes[@]}" --json >build/gpu_model.json 2>build/gpu_model.log || rc=$?
    if [ $rc != 0 ]; then
        gpu_note "$shape $recipe: status $rc$([ $rc = 124 ] && echo " (time limit)"): $(tail -n 1 build/gpu_model.log)"
        return 1
    fi
    python3 -c 'import json,sys
for row in json.load(open("build/gpu_model.json")):
    print(json.dumps({"shape": sys.argv[1], "recipe": sys.argv[2], **row}))' "$shape" "$recipe" | gpu_record models
}

gpu_bench() {
    local end=$(($(date +%s) + $1)) shape recipe left failed=0 shapes=(tinyllama-1.1b llama-3-8b llama-2-7b)
    [ -n "$gpu_quick" ] && shapes=(tiny)
    gpu_bench_kernels $(($1 * 45 / 100)) || failed=1
    gpu_conditions "after the micro-benchmarks"
    for shape in "${shapes[@]}"; do
        for recipe in w4a16-g128 w8a8-dynamic w8a16 dense; do
            left=$((end - $(date +%s)))
            [ $left -gt 5 ] || { gpu_note "no time left for $shape $recipe"; continue; }
            gpu_bench_model "$shape" "$recipe" "$left" || failed=1
        done
    done
    [ $failed = 0 ]
}

gpu_main() {
    local phases=() phase rc=0 minutes=9.5
    gpu_quick="" gpu_results=${NB_RESULTS:-}
    while [ $# -gt 0 ]; do
        case $1 in
        build | test | bench | sanitize | carry) phases+=("$1") ;;
        all) phases+=(build test bench sanitize) ;;
        --quick) gpu_quick=1 ;;
        --minutes) minutes=$2 && shift ;;
        --results) gpu_results=$2 && shift ;;
        --help | -h) gpu_usage && return ;;
        *) gpu_usage >&2 && exit 2 ;;
        esac
        shift
    done
    [ ${#phases[@]} -gt 0 ] || phases=(build test bench sanitize)
    [ -n "$gpu_results" ] || gpu_results=$([ -n "$gpu_quick" ] && echo build/gpu-rehearsal || echo benchmarks/results)
    # of what is left when they begin
    local share_test=40 share_bench=65
    [ ${#phases[@]} -gt 1 ] || share_test=100 share_bench=100
    if [ "${phases[*]}" = carry ]; then
        gpu_carry
        return
    fi
    export NB_CUDA_DRIVER=${NB_CUDA_DRIVER:-libcuda.so.1} NB_TEST_DEVICE=cuda:0
    if ! has_driver && [ ! -e "$NB_CUDA_DRIVER" ]; then
        echo "dev: there is no libcuda.so.1 on this machine: ./dev gpu needs an NVIDIA GPU and its driver (or, for a rehearsal," \
            "NB_CUDA_DRIVER=build/libptxemu.so ./dev gpu bench --quick)" >&2
        exit 1
    fi
    gpu_end=$(($(date +%s) + $(python3 -c "print(int($minutes * 60))")))
    gpu_use_carry
    gpu_find_cublaslt
    for phase in "${phases[@]}"; do
        if [ "$phase" = build ]; then
            gpu_build || return 1
            continue
        fi
        find_nvcc || true
        [ -x build/nibble_gpu_bench ] || { echo "dev: build/nibble_gpu_bench is not there: ./dev gpu build comes first" >&2; return 1; }
        gpu_open_results || return 1
        case $phase in
        test) gpu_test "$(gpu_share "$share_test")" || rc=1 ;;
        bench) gpu_bench "$(gpu_share "$share_bench")" || rc=1 ;;
        sanitize) gpu_sanitize "$(gpu_left)" || rc=1 ;;
        esac
    done
    if [ -n "${gpu_json:-}" ]; then
        gpu_note "results: $gpu_json"
        cat "${gpu_json%.json}.md"
    fi
    return $rc
}

# cuBLASLt: as NB_CUBLASLT says, where the system looks, beside nvcc, or in PyTorch's packages.
gpu_find_cublaslt() {
    [ -n "${NB_CUBLASLT:-}" ] && return
    case $NB_CUDA_DRIVER in
    *ptxemu*)
        export NB_CUBLASLT=$root/build/libptxemu_cublaslt.so
        return
        ;;
    esac
    ldconfig -p | grep -q 'libcublasLt\.so\.1[23]' && return
    local place file
    find_nvcc || true
    for place in "$cuda_home"/lib64 "$cuda_home"/targets/x86_64-linux/lib \
        $(python3 -c 'import site,sys; print(*[p + "/nvidia/" + d + "/lib" for p in sys.path + site.getsitepackages() for d in ("cu13", "cublas")])'); do
        for file in "$place"/libcublasLt.so.13 "$place"/libcublasLt.so.12; do
            [ -e "$file" ] && export NB_CUBLASLT=$file && return
        done
    done
    gpu_note "libcublasLt was not found: no comparison with it (NB_CUBLASLT may name it)"
}
