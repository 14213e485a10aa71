#!/usr/bin/env bash
# Several inference_servers behind nginx, and several workers on one broker: one of each is killed, and nothing is lost.
#
#   examples/production/scale_out.sh FOLDER [REQUESTS [SECONDS]]
#
# FOLDER: where inference_server was built, and queue_worker, if its packages are there. REQUESTS (20000): over two
# servers. SECONDS (5): how long the throughput of 1, 2 and 4 servers is measured.
# Needs nginx and python3, no root. All of it lives on loopback and in temporary folders, and ends by its pid.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $# -eq 0 || ! -x $1/inference_server ]]; then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
built=$1
shift

# Runs it; it ends with us, and ends what it has started.
run() {
  "$@" &
  part=$!
  trap 'kill $part 2>/dev/null || true' EXIT
  wait $part
  trap - EXIT
}
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Servers behind nginx"
run python3 "$here/scale_out_test.py" "$built/inference_server" "$here/../data/digits/digits_test.csv" "$@"

if [[ -x $built/queue_worker && -x $built/queue_client && -e $here/queue_worker_test.py ]]; then
  echo "Workers on one queue"
  run python3 "$here/queue_worker_test.py" "$built/queue_worker" "$built/queue_client" --long
fi
