#!/usr/bin/env bash
# Builds the examples and runs one, installing what is missing (Debian and its like).
#
#   examples/run.sh [ARGUMENT...]          runs 03_digits
#   examples/run.sh NN_name [ARGUMENT...]  runs another
#   examples/run.sh --list                 names them all
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tests/support/install.sh"

list() { (cd "$root/examples" && printf '%s\n' [0-9][0-9]_*.cpp) | sed 's/\.cpp$//'; }

example=03_digits
case ${1:-} in
  --list) list; exit ;;
  --help | -h) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
  [0-9][0-9]_*)
    if [[ -e $root/examples/$1.cpp || ! -e $1 ]]; then
      example=$1
      shift
    fi
    ;;
esac
if [[ ! -e $root/examples/$example.cpp ]]; then
  { echo "no example is named $example; there are:"; list; } >&2
  exit 2
fi

install_build_tools >&2
build=${COBATCH_BUILD_DIR:-$root/build}/examples
compiler=()
if [[ -n $gxx && -z ${CXX:-} ]]; then compiler=(-DCMAKE_CXX_COMPILER="$gxx"); fi
mapfile -t generator < <(generator_for "$build")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! {
  cmake -S "$root" -B "$build" "${generator[@]}" "${compiler[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DCOBATCH_BUILD_TESTS=OFF -DCOBATCH_BUILD_BENCHMARKS=OFF -DCOBATCH_BUILD_EXAMPLES=ON &&
    cmake --build "$build" -j "$(jobs)" --target "$example"
} >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
status=0
"$build/examples/$example" "$@" || status=$?
exit "$status"
