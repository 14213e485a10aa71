#!/usr/bin/env bash
# Instructions and calls of the heap per sample, against limits: the same on every machine, unlike times.
#
#   check.sh PROGRAM LIMITS [SLACK]   LIMITS: lines of "name instructions allocations"; fails if one is exceeded
#   check.sh PROGRAM --measure        prints such lines, with 15 % to spare
#
# Each work runs at two sizes under callgrind; the difference, by the difference of the sizes, is what one sample costs.
# SLACK (1.0) multiplies the limits of the instructions: another compiler than the one they were measured with.
set -euo pipefail
export LC_ALL=C
program=$1 limits=$2 slack=${3:-1.0}
few=2000 many=12000
works=(fan_out_inline fan_out_run_loop callable reschedule shared_semaphore shared_semaphore_reschedule
  semaphore_acquire semaphore_try_acquire semaphore_hand_over stream stream_two_stages observed await_task batch_of_one)

# counts WORK SAMPLES: "instructions allocations" of two runs and of the second
counts() {
  local output
  if ! output=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" 2>&1); then
    printf '%s\n' "$output" >&2
    echo "$1 with $2 samples failed" >&2
    return 1
  fi
  awk '/Collected :/ { instructions = $NF } $1 == "allocations" { allocations = $2 } END { print instructions, allocations }' <<<"$output"
}

# per_sample WORK: "instructions allocations"; each program runs its work twice
per_sample() {
  local small large
  small=$(counts "$1" "$few")
  large=$(counts "$1" "$many")
  awk -v n=$((many - few)) '{ printf "%.1f %.4f", ($3 - $1) / n / 2, ($4 - $2) / n }' <<<"$small $large"
}

if [[ $limits == --measure ]]; then
  echo '# work                        instructions  allocations   (the most that one sample may cost; see check.sh)'
  for work in "${works[@]}"; do
    awk -v work="$work" '{ printf "%-30s %11.0f %12.3f\n", work, $1 * 1.15 + 1, $2 * 1.15 + 0.001 }' <<<"$(per_sample "$work")"
  done
  exit
fi

failures=0
printf '%-30s %22s %22s\n' work 'instructions (limit)' 'allocations (limit)'
while read -r work instructions allocations _; do
  [[ -z $work || $work == \#* ]] && continue
  measured=$(per_sample "$work")
  awk -v work="$work" -v most="$instructions" -v heap="$allocations" -v slack="$slack" '{
    most *= slack
    bad = $1 > most || $2 > heap
    printf "%-30s %10.1f (%9.1f) %12.4f (%7.3f)%s\n", work, $1, most, $2, heap, bad ? "  EXCEEDED" : ""
    exit bad
  }' <<<"$measured" || failures=$((failures + 1))
done <"$limits"
if ((failures)); then
  echo "$failures of the limits in $limits are exceeded. If that is meant, raise them: check.sh $program --measure" >&2
  exit 1
fi
