#!/usr/bin/env bash
# Builds one of the programs here, with what it needs (Debian and its like), and shows it working on loopback.
#
#   examples/production/run.sh inference_server
#   examples/production/run.sh bulk_job
#   examples/production/run.sh queue_worker
#   examples/production/run.sh queue_worker_kafka
#   examples/production/run.sh scale_out
#   examples/production/run.sh monitoring
#   examples/production/run.sh engine_opencv
#   examples/production/run.sh engine_torch
#
# COBATCH_BUILD_DIR (build): where it is built.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/support/install.sh"

server_packages=(libboost1.81-dev nlohmann-json3-dev python3)
case ${1:-} in
  inference_server) packages=("${server_packages[@]}") targets=(inference_server) ;;
  bulk_job) packages=("${server_packages[@]}" libcurl4-openssl-dev) targets=(bulk_job inference_server) ;;
  queue_worker)
    packages=(librabbitmq-dev nlohmann-json3-dev python3 rabbitmq-server)
    targets=(queue_worker queue_client)
    ;;
  queue_worker_kafka)
    packages=(librdkafka-dev nlohmann-json3-dev python3)
    targets=(queue_worker_kafka queue_client_kafka)
    ;;
  scale_out)
    packages=("${server_packages[@]}" nginx-light librabbitmq-dev rabbitmq-server)
    targets=(inference_server queue_worker queue_client)
    ;;
  monitoring) packages=("${server_packages[@]}" prometheus) targets=(inference_server) ;;
  engine_opencv) packages=(libopencv-dnn-dev python3) targets=(engine_opencv) ;;
  engine_torch) packages=(libtorch-dev libopenblas0-pthread) targets=(engine_torch) ;;
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
for target in "${targets[@]}"; do
  cmake --build "$build" --target "$target" && continue
  echo "$target was not built: see examples/production/README.md for what it needs" >&2
  exit 1
done
programs=$build/examples/production
digits=$root/examples/data/digits/digits_test.csv

# Starts inference_server with these options; sets port.
start_server() {
  "$programs/inference_server" --port 0 --drain-grace-ms 0 "$@" >"$build/inference_server.log" &
  server=$!
  trap 'kill $server 2>/dev/null || true' EXIT
  until grep -q listening "$build/inference_server.log"; do sleep 0.1; kill -0 $server; done
  port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$build/inference_server.log")
}

stop_server() {
  kill -TERM $server
  wait $server
  trap - EXIT
}

show_inference_server() {
  say "What clients do to it"
  python3 "$root/examples/production/inference_server_test.py" "$programs/inference_server" "$digits"

  say "By hand"
  start_server
  local image
  image=$(head -n 1 "$digits" | cut -d, -f2-)
  echo "\$ curl -d '[an image]' http://127.0.0.1:$port/predict"
  python3 - "$port" "[$image]" <<'PYTHON'
import http.client, sys
client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
client.request("POST", "/predict", sys.argv[2])
print(client.getresponse().read().decode())
PYTHON
  stop_server
  tail -n 1 "$build/inference_server.log"
}

show_bulk_job() {
  say "An endpoint that fails in many ways, and kills at random moments"
  python3 "$root/examples/production/bulk_job_test.py" "$programs/bulk_job"

  say "By hand: 500 images, one request each; killed half way, and started again"
  start_server --engine accelerator
  local output=$build/digits.jsonl job
  rm -f "$output.job"
  : >"$output"
  job=("$programs/bulk_job" --input "$digits" --skip-columns 1 --output "$output" --rate 250
    --url "http://127.0.0.1:$port/predict" --metrics "$build/bulk_job.prom")
  echo "\$ ${job[*]}"
  "${job[@]}" &
  local running=$!
  until (($(wc -l <"$output") >= 250)); do sleep 0.01; kill -0 $running; done
  kill -KILL $running
  wait $running 2>/dev/null || true
  echo "killed; $output has $(wc -l <"$output") lines"
  "${job[@]}"
  head -n 2 "$output" | cut -c -120
  stop_server
}

show_queue_worker() {
  say "A broker, workers and clients, of which some are killed; then one message by hand"
  python3 "$root/examples/production/queue_worker_test.py" "$programs/queue_worker" "$programs/queue_client" --demo
}

show_queue_worker_kafka() {
  say "Three brokers, and workers of which one is killed, one ends and one comes later"
  python3 "$root/examples/production/queue_worker_kafka_test.py" "$programs/queue_worker_kafka" "$programs/queue_client_kafka"
}

show_scale_out() {
  say "Two servers of which one is killed and one drained; then 1, 2 and 4; workers on a queue of which one is killed"
  "$root/examples/production/scale_out.sh" "$programs"
}

show_monitoring() {
  say "Prometheus scrapes the server, and is asked what the dashboard asks"
  python3 "$root/examples/production/monitoring/monitoring_test.py" "$programs/inference_server" "$digits"
}

show_engine_opencv() {
  say "The digits network as ONNX, run by OpenCV"
  "$programs/engine_opencv"
}

show_engine_torch() {
  say "The digits network as TorchScript, run by libtorch"
  local module=$build/digits.pt
  "$programs/engine_torch" --write "$module"
  "$programs/engine_torch" --module "$module"
}

"show_$name"
