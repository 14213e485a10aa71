#!/usr/bin/env bash
# Builds one of the programs here, with what it needs (Debian and its like), and shows it working on loopback.
#
#   examples/production/run.sh inference_server
#   examples/production/run.sh scale_out
#   examples/production/run.sh monitoring
#
# COBATCH_BUILD_DIR (build): where it is built.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/support/install.sh"

server_packages=(libboost1.81-dev nlohmann-json3-dev python3)
case ${1:-} in
  inference_server) packages=("${server_packages[@]}") targets=(inference_server) ;;
  scale_out) packages=("${server_packages[@]}" nginx-light) targets=(inference_server) ;;
  monitoring) packages=("${server_packages[@]}" prometheus) targets=(inference_server) ;;
  *) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
name=$1

install_build_tools
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || install_packages "$package" || warn "$package could not be installed."
done

build=${COBATCH_BUILD_DIR:-$root/build}/production
mapfile -t generator < <(generator_for "$build")
cmake -S "$root" -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DCOBATCH_BUILD_TESTS=OFF \
  -DCOBATCH_BUILD_BENCHMARKS=OFF -DCMAKE_CXX_COMPILER="${CXX:-${gxx:-c++}}" >/dev/null
if ! cmake --build "$build" --target "${targets[@]}"; then
  echo "$name was not built: see examples/production/README.md for what it needs" >&2
  exit 1
fi
program=$build/examples/production/$name

if [[ $name == scale_out ]]; then
  say "Two servers of which one is killed and one drained; then 1, 2 and 4"
  exec "$root/examples/production/scale_out.sh" "${program%/*}"
fi
if [[ $name == monitoring ]]; then
  say "Prometheus scrapes the server, and is asked what the dashboard asks"
  exec python3 "$root/examples/production/monitoring/monitoring_test.py" "${program%/*}/inference_server" \
    "$root/examples/data/digits/digits_test.csv"
fi

say "What clients do to it"
python3 "$root/examples/production/${name}_test.py" "$program" "$root/examples/data/digits/digits_test.csv"

say "By hand"
"$program" --port 0 --drain-grace-ms 0 >"$build/$name.log" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until grep -q listening "$build/$name.log"; do sleep 0.1; kill -0 $server; done
port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$build/$name.log")
image=$(head -n 1 "$root/examples/data/digits/digits_test.csv" | cut -d, -f2-)
echo "\$ curl -d '[an image]' http://127.0.0.1:$port/predict"
python3 - "$port" "[$image]" <<'PYTHON'
import http.client, sys
client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
client.request("POST", "/predict", sys.argv[2])
print(client.getresponse().read().decode())
PYTHON
kill -TERM $server
wait $server
trap - EXIT
tail -n 1 "$build/$name.log"
