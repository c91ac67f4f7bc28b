#!/usr/bin/env bash
# One target under the limits that every reader must keep: 5 seconds and 2 GiB. Further arguments go to libFuzzer:
#   fuzz/run.sh plan -runs=1000000
#   fuzz/run.sh import -max_total_time=3600
set -euo pipefail
cd "$(dirname "$0")"
target=$1
shift
dict=()
[ -f "dictionaries/$target.dict" ] && dict=(-dict="dictionaries/$target.dict")
# Long inputs cost time and find nothing that short ones do not.
case $target in import) most=16384 ;; tokenizer) most=16384 ;; npz) most=4096 ;; *) most=1024 ;; esac
# Files are made anew for each input: in memory where there is such a folder.
[ -z "${TMPDIR:-}" ] && [ -d /dev/shm ] && export TMPDIR=/dev/shm
mkdir -p "corpus/$target" "artifacts/$target"
# Leaks are looked for elsewhere (tests/endurance.rs): what a run keeps for the process looks like one here.
exec "target/x86_64-unknown-linux-gnu/release/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
  -timeout=5 -rss_limit_mb=2048 -malloc_limit_mb=2048 -detect_leaks=0 -max_len="$most" -print_final_stats=1 "${dict[@]}" "$@"
