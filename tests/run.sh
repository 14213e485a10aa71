#!/usr/bin/env bash
# Builds and runs all tests, in several configurations, installing what is missing (Debian and its like).
#
#   tests/run.sh               the unit and stress tests with g++: some minutes
#   tests/run.sh --all         everything, in several configurations, as the CI does; some only run by name
#   tests/run.sh NAME...       these
#   tests/run.sh --list        names them all
#   --strict                   warnings are errors, and what cannot be built on this machine is a failure
#
# Under ThreadSanitizer, and with the benchmarks, only the stress tests and the unit tests that use threads are built;
# under ASan all tests, but no headers, consumers and blocks of the README and the guides. UBSan's checks for null and
# alignment are off: they double the time to compile, and what they find ASan finds as well. The programs of
# examples/production are built and tested in gcc-20, as far as their packages are there, and in production-*.
#
# COBATCH_BUILD_DIR (build): where the build folders go. COBATCH_JOBS: how many at once.
# COBATCH_GXX, COBATCH_CLANGXX: the compilers. The last line is "N passed, M failed", over all configurations.
set -euo pipefail
build_root=$(mkdir -p "${COBATCH_BUILD_DIR:=$(dirname "${BASH_SOURCE[0]}")/../build}" && cd "$COBATCH_BUILD_DIR" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/support/install.sh

# name | when | compiler | standard library | C++ | build type | sanitizers | more of cmake's options
configurations() {
  cat <<'TABLE'
gcc-20-quick           | quick    | gcc   | libstdc++ | 20 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_TEST_PARTS=programs -DCOBATCH_BUILD_EXAMPLES=OFF
gcc-20                 | all      | gcc   | libstdc++ | 20 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0
gcc-20-tsan            | all      | gcc   | libstdc++ | 20 | Release | thread            | -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCOBATCH_TEST_PARTS=threads -DCOBATCH_BUILD_PRODUCTION=OFF
clang-libcxx-20-asan   | all      | clang | libc++    | 20 | Debug   | address,undefined | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_TEST_PARTS=programs -DCOBATCH_BUILD_PRODUCTION=OFF
gcc-20-asan            | named    | gcc   | libstdc++ | 20 | Debug   | address,undefined | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_TEST_PARTS=programs -DCOBATCH_BUILD_PRODUCTION=OFF -DCOBATCH_TEST_ASIO=OFF
gcc-23-asan            | all      | gcc   | libstdc++ | 23 | Debug   | address,undefined | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_TEST_PARTS=programs -DCOBATCH_BUILD_PRODUCTION=OFF -DCOBATCH_TEST_ASIO=OFF
gcc-20-benchmarks      | all      | gcc   | libstdc++ | 20 | Release |                   | -DCMAKE_CXX_FLAGS_RELEASE=-O2 -DCOBATCH_TEST_PARTS=threads -DCOBATCH_BUILD_BENCHMARKS=ON -DCOBATCH_BUILD_PRODUCTION=OFF -DCOBATCH_TEST_ASIO=OFF
gcc-23                 | named    | gcc   | libstdc++ | 23 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_BUILD_PRODUCTION=OFF
clang-libstdcxx-20     | named    | clang | libstdc++ | 20 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_BUILD_PRODUCTION=OFF
clang-libstdcxx-23     | named    | clang | libstdc++ | 23 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_BUILD_PRODUCTION=OFF
clang-libcxx-20        | named    | clang | libc++    | 20 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_BUILD_PRODUCTION=OFF
clang-libcxx-23        | all      | clang | libc++    | 23 | Debug   |                   | -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCOBATCH_TEST_PARTS=threads -DCOBATCH_BUILD_PRODUCTION=OFF -DCOBATCH_TEST_ASIO=OFF
production-asan        | named    | gcc   | libstdc++ | 20 | Debug   | address,undefined | -DCMAKE_CXX_FLAGS_DEBUG=-O1 -DCOBATCH_TEST_PARTS=none
production-tsan        | named    | gcc   | libstdc++ | 20 | Release | thread            | -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCOBATCH_TEST_PARTS=none
TABLE
}

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p}' tests/run.sh; }

# ---- The command line ----

wanted='quick'
strict=
names=()
for argument in "$@"; do
  case $argument in
    --all) wanted='all' ;;
    --strict) strict=1 ;;
    --list) configurations; exit ;;
    --help | -h) usage; exit ;;
    -*) usage >&2; exit 2 ;;
    *)
      if ! configurations | grep -q "^$argument  *|"; then
        echo "no configuration is named $argument; tests/run.sh --list names them" >&2
        exit 2
      fi
      names+=("$argument")
      ;;
  esac
done

rows=()
while IFS= read -r row; do
  IFS='|' read -r name when _ <<<"${row// /}"
  if ((${#names[@]})); then
    [[ " ${names[*]} " == *" $name "* ]] && rows+=("$row")
  elif [[ $when =~ ^($wanted)$ ]]; then
    rows+=("$row")
  fi
done < <(configurations)

# ---- What they need ----

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

install_build_tools
clangxx=
find_clangxx() {
  local candidate
  for candidate in "${COBATCH_CLANGXX:-clang++-19}" clang++-19 clang++-20 clang++-21 clang++-18 clang++-17 clang++-16 clang++; do
    if command -v "$candidate" >/dev/null && version_at_least 16 "$("$candidate" -dumpversion)"; then
      clangxx=$candidate
      return 0
    fi
  done
  return 1
}

# compiles WHAT COMPILER FLAG...: whether a small program can be built (into $scratch/WHAT)
compiles() {
  local what=$1
  shift
  printf '#include <thread>\n#include <vector>\n#include <cstdlib>\nint main() { volatile char* p = static_cast<char*>(std::malloc(8)); p = nullptr; std::thread([] {}).join(); return p != nullptr; }\n' >"$scratch/$what.cpp"
  "$@" -std=c++20 -pthread "$scratch/$what.cpp" -o "$scratch/$what" >/dev/null 2>&1
}

# has_header PATTERN: whether a header lies where Debian or a hand-made installation puts it
has_header() { compgen -G "/usr/include/$1" >/dev/null || compgen -G "/usr/local/include/$1" >/dev/null; }

install_needs() {
  local all version packages=()
  all=$(printf '%s\n' "${rows[@]// /}")
  if ! has_header 'catch2/catch*.hpp'; then
    install_packages catch2 || warn "Without Catch2 there are no tests."
  fi
  if [[ $all == *BENCHMARKS=ON* ]] && ! has_header benchmark/benchmark.h; then
    install_packages libbenchmark-dev || warn "The benchmarks are not compiled."
  fi
  if [[ $all == *BENCHMARKS=ON* ]] && ! command -v valgrind >/dev/null; then
    install_packages valgrind || warn "Instructions and allocations per sample are not guarded."
  fi
  # Optional, and not for everybody's machine: the package comes with a server.
  if [[ -n $strict ]] && ! command -v promtool >/dev/null; then
    install_packages prometheus || warn "The Prometheus text is not checked by promtool."
  fi
  # Likewise, for <cobatch/asio.hpp> and the programs of examples/production.
  if [[ -n $strict && $wanted == all ]]; then
    install_packages libboost1.81-dev nlohmann-json3-dev python3 || warn "<cobatch/asio.hpp> may not be tested."
    install_packages libcurl4-openssl-dev librabbitmq-dev rabbitmq-server librdkafka-dev nginx-light libopencv-dnn-dev ||
      warn "Not all programs of examples/production are built and tested."
  fi
  if [[ $all == *'|clang|'* ]]; then
    find_clangxx || packages+=(clang-19)
    version=19
    if [[ -n $clangxx ]]; then version=$("$clangxx" -dumpversion | cut -d. -f1); fi
    if [[ $all == *'|libc++|'* ]] && { [[ -z $clangxx ]] || ! compiles libcxx "$clangxx" -stdlib=libc++; }; then
      packages+=("libc++-$version-dev" "libc++abi-$version-dev")
    fi
    if grep -qE '\|clang\|.*\|(address|thread)' <<<"$all" &&
      { [[ -z $clangxx ]] || ! compiles runtime "$clangxx" -fsanitize=thread; }; then
      packages+=("libclang-rt-$version-dev")
    fi
    if ((${#packages[@]})); then
      install_packages "${packages[@]}" || true
      find_clangxx || true
    fi
  fi
}
install_needs

launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi

export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
export TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1${TSAN_OPTIONS:+:$TSAN_OPTIONS}"
asan_options=${ASAN_OPTIONS:+:$ASAN_OPTIONS}
notes=()

# Some sandboxes forbid ptrace, which LeakSanitizer needs.
prepare_asan() {
  export ASAN_OPTIONS="detect_leaks=1$asan_options"
  compiles asan "$@" || return 1
  local output
  output=$("$scratch/asan" 2>&1) || true
  if [[ $output == *'LeakSanitizer has encountered a fatal error'* ]]; then
    notes+=("LEAKS WERE NOT LOOKED FOR: LeakSanitizer does not work here (ptrace is not allowed)")
    warn "${notes[-1]}"
    ASAN_OPTIONS="detect_leaks=0$asan_options"
  fi
}

# A kernel that spreads addresses widely breaks older ThreadSanitizers ("unexpected memory mapping"), now and then.
prepare_tsan() {
  compiles tsan "$@" || return 1
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if ! "$scratch/tsan" >/dev/null 2>&1; then
      runner=(setarch "$(uname -m)" -R)
      "${runner[@]}" "$scratch/tsan" >/dev/null 2>&1
      return
    fi
  done
}

# ---- One configuration ----

# run_configuration ROW: sets verdict, passed, failed
run_configuration() {
  local name compiler library standard type sanitize options build cxx flags=() runner=() log summary
  IFS='|' read -r name _ compiler library standard type sanitize options <<<"$1"
  name=${name// /} compiler=${compiler// /} library=${library// /} standard=${standard// /} type=${type// /} sanitize=${sanitize// /}
  read -ra options <<<"$options"
  build=$build_root/$name
  log=$build.log
  passed=0 failed=1
  : >"$log"

  case $compiler in gcc) cxx=$gxx ;; *) cxx=$clangxx ;; esac
  if [[ -z $cxx ]]; then
    verdict="skipped: no $compiler that knows C++20"
    return
  fi
  [[ $library == libc++ ]] && flags+=(-stdlib=libc++)
  if ! compiles plain "$cxx" "${flags[@]}" "-std=c++$standard"; then
    verdict="skipped: $cxx ${flags[*]} does not work here"
    return
  fi
  case $sanitize in
    address*) prepare_asan "$cxx" "${flags[@]}" "-fsanitize=$sanitize" ;;
    thread) prepare_tsan "$cxx" "${flags[@]}" -fsanitize=thread ;;
  esac || {
    verdict="skipped: $cxx has no working -fsanitize=$sanitize here"
    return
  }
  local option
  for option in "${!options[@]}"; do
    if [[ ${options[option]} == -DCMAKE_CXX_FLAGS=* ]]; then
      flags+=("${options[option]#-DCMAKE_CXX_FLAGS=}")
      unset "options[$option]"
    fi
  done

  local generator
  mapfile -t generator < <(generator_for "$build")
  if ! cmake -S . -B "$build" "${generator[@]}" "${launcher[@]}" -DCMAKE_CXX_COMPILER="$cxx" \
    -DCMAKE_CXX_FLAGS="${flags[*]}" -DCMAKE_CXX_STANDARD="$standard" -DCMAKE_BUILD_TYPE="$type" \
    -DCOBATCH_SANITIZE="$sanitize" -DCOBATCH_WERROR="${strict:+ON}" -DCOBATCH_BUILD_TESTS=ON \
    -DCOBATCH_BUILD_EXAMPLES=ON -DCOBATCH_BUILD_BENCHMARKS=OFF -DCOBATCH_INSTALL=ON "${options[@]}" >>"$log" 2>&1; then
    verdict='cmake failed'
    tail -n 40 "$log"
    return
  fi
  local go_on=(-k)
  [[ -e $build/build.ninja ]] && go_on=(-k 0)
  if ! cmake --build "$build" -j "$(jobs)" -- "${go_on[@]}" >>"$log" 2>&1; then
    verdict='build failed'
    grep -E -A 12 '(error|warning):|undefined reference' "$log" | head -n 150 || tail -n 60 "$log"
    return
  fi
  grep -A 6 'warning:' "$log" | head -n 100 || true

  "${runner[@]}" ctest --test-dir "$build" -j "$(jobs)" --output-on-failure --no-tests=error --timeout 600 \
    >"$build.ctest.log" 2>&1 && verdict=passed || verdict='tests failed'
  summary=$(grep -E '^[0-9]+% tests passed, [0-9]+ tests? failed out of [0-9]+' "$build.ctest.log" || true)
  if [[ $summary =~ ,\ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]; then
    failed=${BASH_REMATCH[1]}
    passed=$((BASH_REMATCH[2] - failed))
  fi
  if [[ $verdict == passed ]]; then
    echo "$summary"
  else
    grep -vE '^ *Start +[0-9]|\.\.\. +Passed ' "$build.ctest.log" | tail -n 400
    ((failed)) || failed=1
  fi
  if grep -q 'warning:' "$log"; then verdict+=', with warnings'; fi
}

# ---- All of them ----

total_passed=0 total_failed=0
table=()
for row in "${rows[@]}"; do
  say "$(sed -E 's/ +\| +/ | /g' <<<"$row")"
  begin=$SECONDS
  verdict='' passed=0 failed=0
  run_configuration "$row"
  if [[ $verdict == skipped* && -z $strict ]]; then failed=0; fi
  if [[ $verdict == skipped* ]]; then warn "$verdict"; fi
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  table+=("$(printf '%-22s %6d %6d %5ds  %s' "${row%% *}" "$passed" "$failed" $((SECONDS - begin)) "$verdict")")
done

say "Summary"
printf '%-22s %6s %6s %6s\n' configuration passed failed time
printf '%s\n' "${table[@]}"
for note in "${notes[@]}"; do warn "$note"; done
if ((total_passed == 0 && total_failed == 0)); then
  warn "No test could be run."
  total_failed=1
fi
printf '\n%d passed, %d failed\n' "$total_passed" "$total_failed"
((total_failed == 0))
