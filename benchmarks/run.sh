#!/usr/bin/env bash
# Builds and runs all benchmarks side by side, installing what is missing (Debian and its like).
#
#   benchmarks/run.sh                 everything, some minutes
#   benchmarks/run.sh --quick         a short look: fewer samples, fewer repetitions
#   benchmarks/run.sh --filter=REGEX  only these (names as in the table, e.g. fan_out/coroutine)
#   benchmarks/run.sh --scaling [COUNT...]
#                                     only how each kind of work gets on with more threads: 1, 2, 4 and so on up to the
#                                     machine, or these; --quick and --filter=TEXT (of its CSV's first column) work, too
#   --patient                         with --scaling: what other programs disturb is measured again
#   --readme                          also puts the table into benchmarks/README.md and draws benchmarks/limits.svg (with
#                                     --scaling: benchmarks/scaling.svg)
#
# Several rounds, each of all programs in random order; within a program the repetitions are interleaved at random. The
# numbers are the medians over all of that. Writes results.json (Google Benchmark's format) and results.md to
# build/benchmarks. COBATCH_BUILD_DIR (build), COBATCH_GXX, CXX: as for tests/run.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tests/support/install.sh"

rounds=3 repetitions=3 quick='' readme='' filter='' scaling='' patient='' counts=()
for argument in "$@"; do
  case $argument in
    --scaling) scaling=1 ;;
    --patient) patient=1 ;;
    [1-9]*) counts+=("$argument") ;;
    --quick) quick=1 rounds=2 repetitions=1 ;;
    --readme) readme=1 ;;
    --filter=*) filter=${argument#*=} ;;
    --help | -h) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p}' "${BASH_SOURCE[0]}"; exit ;;
    *) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
done
if ((${#counts[@]})) && [[ -z $scaling ]]; then
  echo "numbers of threads are for --scaling" >&2
  exit 2
fi

# ---- What they need; the rivals are optional ----

has_header() { compgen -G "/usr/include/$1" >/dev/null || compgen -G "/usr/local/include/$1" >/dev/null; }

install_build_tools
command -v python3 >/dev/null || install_packages python3
if [[ -z $scaling ]]; then
  has_header benchmark/benchmark.h || install_packages libbenchmark-dev
  has_header tbb/tbb.h || install_packages libtbb-dev || warn "oneTBB is not among the rivals."
  # Channels came with Boost 1.80. An older one that is there stays.
  if ! has_header boost/asio.hpp; then
    boost=libboost-dev
    if [[ $(apt-cache show libboost1.81-dev 2>/dev/null) == *Version* ]]; then boost=libboost1.81-dev; fi
    install_packages "$boost" || true
  fi
  has_header boost/asio/experimental/concurrent_channel.hpp || warn "Boost.Asio (1.80 or newer) is not among the rivals."
fi

# ---- Building ----

build=${COBATCH_BUILD_DIR:-$root/build}/benchmarks
compiler=${CXX:-${gxx:-c++}}
mapfile -t generator < <(generator_for "$build")
mkdir -p "$build/runs"
say "Building"
if ! {
  cmake -S "$root" -B "$build" "${generator[@]}" -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CXX_FLAGS_RELEASE='-O3 -DNDEBUG' -DCOBATCH_BUILD_TESTS=OFF -DCOBATCH_BUILD_EXAMPLES=OFF \
    -DCOBATCH_BUILD_BENCHMARKS=ON &&
    cmake --build "$build" -j "$(jobs)" ${scaling:+--target scaling_benchmark}
} >"$build/build.log" 2>&1; then
  tail -n 40 "$build/build.log"
  exit 1
fi

# ---- Scaling ----

if [[ -n $scaling ]]; then
  "$build/benchmarks/scaling_benchmark" ${quick:+--quick} ${patient:+--patient} --only="$filter" --csv="$build/scaling.csv" "${counts[@]}" |
    tee "$build/scaling.txt"
  if [[ -n $readme ]]; then
    python3 "$root/benchmarks/report.py" --scaling "$build/scaling.txt" "$root/benchmarks/README.md"
  fi
  command -v gnuplot >/dev/null || install_packages gnuplot-nox || true
  if command -v gnuplot >/dev/null && python3 "$root/benchmarks/plot" "$build/scaling.csv" "$build/scaling.svg"; then
    if [[ -n $readme ]]; then cp "$build/scaling.svg" "$root/benchmarks/scaling.svg"; fi
  else
    warn "Not drawn: that needs gnuplot, and more than one number of threads."
  fi
  printf '\n%s\n' "All of it: $build/scaling.csv, $build/scaling.svg; the program, for another machine: $build/benchmarks/scaling_benchmark"
  exit
fi

# ---- How long it takes to compile ----

# compile_seconds NAME FILE: appends the times of three compilations
compile_seconds() {
  local begin end
  for _ in 1 2 3; do
    begin=$(date +%s%N)
    "$compiler" -std=c++20 -O2 -pthread -I "$root/include" -c "$2" -o /dev/null
    end=$(date +%s%N)
    printf '%s %d\n' "$1" $((end - begin))
  done >>"$build/runs/compile_times"
}
rm -f "$build"/runs/*
say "Compiling"
echo '#include <cobatch/cobatch.hpp>' >"$build/include_only.cpp"
cat >"$build/quickstart.cpp" <<'QUICKSTART'
#include <cobatch/cobatch.hpp>

#include <cstdio>
#include <vector>

cobatch::task<int> predict(int sample) { co_return sample * 2; }

int main() {
  cobatch::thread_pool pool;
  const std::vector<int> samples{1, 2, 3};
  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, samples, predict, {.max_concurrency = 64}));
  for (const auto& result : results) std::printf("%d\n", result.value_or(-1));
}
QUICKSTART
compile_seconds include "$build/include_only.cpp"
compile_seconds quickstart "$build/quickstart.cpp"

# ---- Running ----

if [[ -n $quick ]]; then export COBATCH_BENCHMARK_QUICK=1; fi
status=0
programs=(fan_out semaphore executor timer limits policies adaptive micro_batch stream observer gather.py)
for ((round = 1; round <= rounds; ++round)); do
  for program in $(printf '%s\n' "${programs[@]}" | shuf); do
    say "Round $round of $rounds: $program"
    out=$build/runs/$round.$program.json
    if [[ $program == gather.py ]]; then
      python3 "$root/benchmarks/gather.py" ${quick:+--quick} --repetitions="$repetitions" >"$out"
    else
      times=$repetitions
      case $program in policies | adaptive) times=1 ;; esac  # on the virtual clock: the same every time
      if ! "$build/benchmarks/${program}_benchmark" --benchmark_filter="${filter:-.}" --benchmark_repetitions="$times" \
        --benchmark_enable_random_interleaving=true --benchmark_out="$out" --benchmark_out_format=json \
        >"$build/runs/$round.$program.log" 2>&1; then
        warn "${program}_benchmark ended early:"
        tail -n 5 "$build/runs/$round.$program.log" >&2
        rm -f "$out"
        status=1
        continue
      fi
      # A filter may leave nothing of a program.
      if [[ ! -s $out ]]; then rm -f "$out"; fi
    fi
  done
done

python3 "$root/benchmarks/report.py" "$build/runs" "$build/results.json" "$build/results.md" ${quick:+--quick} \
  ${readme:+--readme="$root/benchmarks/README.md"} || status=1
cat "$build/results.md"
if [[ -n $readme ]]; then
  command -v gnuplot >/dev/null || install_packages gnuplot-nox
  python3 "$root/benchmarks/plot" "$build/results.json" "$root/benchmarks/limits.svg"
fi
echo
echo "All of it: $build/results.json"
exit "$status"
