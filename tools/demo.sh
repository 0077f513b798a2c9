#!/usr/bin/env bash
# The demonstration: an update is built, served as a block device, mounted and
# compared with what it should be, then merged into the base while a reader
# checks it, through a daemon killed in the middle. `make demo` runs it.
#
# Everything happens in one temporary folder; whatever way this ends, nothing
# is left behind: no mount, no loop device, no process, no file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/bin:$PATH:/usr/sbin:/sbin

[ "$(id -u)" = 0 ] || { echo "demo: needs root (mounts, loop devices): try sudo make demo" >&2; exit 1; }

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
good() { printf '  %s✓%s %s\n' "$green" "$plain" "$*"; }
fail() { printf '  %s✗ %s%s\n' "$red" "$*" "$plain" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/cowbird-demo.XXXXXX")
socket=$work/snapuserd.socket
name=system
daemon='' reader='' merger='' device='' device_backing=''
declare -A seconds memory

# ---------------------------------------------------------------- clean-up

end_process() { # PID [SIGNAL]: ends a process that we started, waits for it
  [ -n "$1" ] && kill -0 "$1" 2>/dev/null || return 0
  kill "-${2:-TERM}" "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

daemon_log_errors() { [ ! -s "$work/daemon.log" ] || { echo "--- the daemon's last words"; tail -n 15 "$work/daemon.log"; } >&2; }

cleanup() {
  local code=$?
  trap '' INT TERM
  trap - EXIT
  [ $code = 0 ] || daemon_log_errors
  end_process "$reader"
  end_process "$merger"
  for m in device target; do umount "$work/$m" 2>/dev/null || true; done
  [ -z "$daemon" ] || ! kill -0 "$daemon" 2>/dev/null || otactl --socket "$socket" unmap "$name" >/dev/null 2>&1 || true
  end_process "$daemon"
  sweep
  rm -rf "$work"
  [ $code = 0 ] || printf '\n%sdemo failed%s\n' "$red" "$plain" >&2
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What a killed daemon leaves behind is cleared by the next daemon. This is for
# the case that there is no next one.
sweep() {
  [ -z "$device" ] || [ "$(backing "$device")" != "$device_backing" ] || losetup -d "$device" 2>/dev/null || true
}
backing() { losetup -n -O BACK-FILE "$1" 2>/dev/null || true; }

# ------------------------------------------------------------------- tools

now() { date +%s.%N; }
timed() { # KEY COMMAND...: runs it, keeps its wall time in seconds[KEY]
  local key=$1 start
  shift
  start=$(now)
  "$@"
  seconds[$key]=$(awk -v a="$start" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }')
}
megabytes() { awk -v b="$1" 'BEGIN { printf "%.2f", b / 1e6 }'; }
rate() { awk -v b="$1" -v s="$2" 'BEGIN { printf "%.0f", b / 1e6 / (s > 0 ? s : 0.01) }'; }
size() { stat -L -c %s "$1"; }
device_checksum() { dd if="$device" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1 >"$work/device.sum"; }
checksum() { sha256sum "$1" | cut -d' ' -f1; }

start_daemon() {
  snapuserd --socket "$socket" --carrier auto >>"$work/daemon.log" 2>&1 &
  daemon=$!
  for _ in $(seq 100); do
    otactl --socket "$socket" status >/dev/null 2>&1 && return
    kill -0 "$daemon" 2>/dev/null || fail "the daemon did not start"
    sleep 0.1
  done
  fail "the daemon does not answer on its socket"
}

map_snapshot() {
  device=$(otactl --socket "$socket" map "$name" --base "$work/base.img" --cow "$work/update.cow")
  [ -b "$device" ] || fail "expected a block device, found: $device"
  device_backing=$(backing "$device")
}

percent() { # merge progress, whole percent
  otactl --socket "$socket" status "$name" --json 2>/dev/null |
    sed -n 's/.*"\(merge_percent\|percent\|progress\)": *\([0-9]*\).*/\2/p' | head -n 1
}

listing() { (cd "$1" && find . -xdev -printf '%p %y %m %U:%G %s %T@ %l\n' | LC_ALL=C sort); }
contents() { (cd "$1" && find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum); }

idle_memory() { # of the daemon, into memory[]
  local before after
  memory[rss]=$(awk '$1 == "Rss:" { print $2 * 1024 }' "/proc/$daemon/smaps_rollup")
  memory[anonymous]=$(awk '$1 == "Anonymous:" { print $2 * 1024 }' "/proc/$daemon/smaps_rollup")
  memory[threads]=$(awk '$1 == "Threads:" { print $2 }' "/proc/$daemon/status")
  before=$(switches)
  sleep 10
  after=$(switches)
  memory[wakeups]=$((after - before))
}
switches() { cat /proc/"$daemon"/task/*/status | awk '$1 == "voluntary_ctxt_switches:" { n += $2 } END { print n }'; }

# --------------------------------------------------------------- the story

step "1. Two images: a system before and after an update"
kind=$(tools/images.sh "$work" | tail -n 1)
bytes=$(size "$work/target.img")
target_sum=$(checksum "$work/target.img")
note "$kind pair, $(megabytes "$(size "$work/base.img")") MB and $(megabytes "$bytes") MB"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$work/verifyreads" ./tools/verifyreads

step "2. The difference as a COW file"
timed lz4 cowtool create --compression lz4 --unit 64K -o "$work/lz4.cow" "$work/base.img" "$work/target.img" >/dev/null
timed zstd cowtool create --compression zstd --unit 64K -o "$work/update.cow" "$work/base.img" "$work/target.img" >/dev/null
for c in lz4 zstd; do
  file=$work/$c.cow
  [ -e "$file" ] || file=$work/update.cow
  memory[$c]=$(size "$file")
  good "$c: $(megabytes "${memory[$c]}") MB in ${seconds[$c]} s"
done
cowtool inspect "$work/update.cow" | sed 's/^/  | /'
cowtool check --base "$work/base.img" --target "$work/target.img" "$work/lz4.cow" >/dev/null
cowtool check --base "$work/base.img" --target "$work/target.img" "$work/update.cow" >/dev/null
good "both check out: base + COW is the target"

step "3. Served as a block device and mounted"
start_daemon
timed map map_snapshot
good "$device serves base + COW (mapped in ${seconds[map]} s)"
timed checksum device_checksum
[ "$(cat "$work/device.sum")" = "$target_sum" ] || fail "SHA-256 of the device: expected $target_sum, found $(cat "$work/device.sum")"
good "the device's SHA-256 is the target's, read at $(rate "$bytes" "${seconds[checksum]}") MB/s including the hashing"
mkdir "$work/device" "$work/target"
mount -t ext4 -o ro,noload "$device" "$work/device"
mount -t ext4 -o ro,noload,loop "$work/target.img" "$work/target"
listing "$work/target" >"$work/listing.target"
listing "$work/device" | cmp - "$work/listing.target" || fail "names, modes, owners, times or links differ"
contents "$work/target" >"$work/contents.target"
timed compare contents "$work/device" >"$work/contents.device"
cmp "$work/contents.device" "$work/contents.target" || fail "the contents of files differ"
good "all $(wc -l <"$work/contents.target") files on it equal the target's, byte for byte"
umount "$work/device" "$work/target"

step "4. Nothing is held while nothing happens"
note "waiting 20 s for the daemon to settle, then counting its wake-ups for 10 s"
sleep 20
idle_memory
good "RSS $(megabytes "${memory[rss]}") MB, of it anonymous $(megabytes "${memory[anonymous]}") MB, ${memory[threads]} threads, ${memory[wakeups]} wake-ups in 10 s"

step "5. The merge, killed in the middle"
"$work/verifyreads" -seed 1 "$device" "$work/target.img" >"$work/reader.log" 2>&1 &
reader=$!
otactl --socket "$socket" merge "$name" --rate 8M --wait >"$work/merge.log" 2>&1 &
merger=$!
at=0
for _ in $(seq 300); do
  at=$(percent)
  [ "${at:-0}" -lt 25 ] || break
  kill -0 "$merger" 2>/dev/null || break
  sleep 0.1
done
kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || true
daemon=
if [ "${at:-0}" -lt 1 ] || [ "$at" -gt 99 ]; then
  fail "expected the merge between 1 and 99 % when the daemon was killed, found ${at:-nothing}"
fi
good "SIGKILL at $at %"
if wait "$merger" 2>/dev/null; then fail "otactl merge --wait said that all is well, although the daemon was killed"; fi
merger=
code=0
wait "$reader" || code=$?
reader=
case $code in
3) good "the reader until then: $(head -n 1 "$work/reader.log"), all equal to the target" ;;
*) cat "$work/reader.log" >&2; fail "the reader ended with code $code; expected read errors once the daemon is dead, and no difference before" ;;
esac
cmp -s "$work/base.img" "$work/target.img" && fail "the base is the target already: the merge was over before the kill"
good "the base is now neither the old nor the new image"

step "6. Started again, and finished"
start_daemon
map_snapshot
good "$device is back"
device_checksum
[ "$(cat "$work/device.sum")" = "$target_sum" ] || fail "after the crash the device is not the target"
good "half merged, it still reads as the target"
"$work/verifyreads" -seed 2 "$device" "$work/target.img" >"$work/reader.log" 2>&1 &
reader=$!
at=$(percent)
timed merge otactl --socket "$socket" merge "$name" --wait
kill -TERM "$reader"
wait "$reader" || { cat "$work/reader.log" >&2; fail "the reader found a difference during the merge"; }
reader=
good "the merge went on from ${at:-0} % and ended after ${seconds[merge]} s"
good "the reader meanwhile: $(head -n 1 "$work/reader.log"), all equal to the target"
otactl --socket "$socket" unmap "$name" >/dev/null
[ -z "$(backing "$device")" ] || fail "$device is still there after unmap"
device=
timed stop end_process "$daemon"
daemon=
cmp "$work/base.img" "$work/target.img" || fail "the base differs from the target"
good "the base is the target, byte for byte"

step "7. Once more: nothing to do"
before=$(stat -c '%y %z' "$work/base.img")
cow_sum=$(checksum "$work/update.cow")
timed again cowtool merge --base "$work/base.img" "$work/update.cow" >/dev/null
[ "$(checksum "$work/base.img")" = "$target_sum" ] || fail "a second merge changed the base"
[ "$(checksum "$work/update.cow")" = "$cow_sum" ] || fail "a second merge changed the COW"
[ "$(stat -c '%y %z' "$work/base.img")" = "$before" ] || fail "a second merge wrote to the base"
good "a second merge wrote nothing (${seconds[again]} s)"

step "In figures"
row() { printf '  %-38s %12s %10s %10s\n' "$@"; }
row what MB seconds MB/s
row "images, each" "$(megabytes "$bytes")" "" ""
row "create lz4, 64K units" "$(megabytes "${memory[lz4]}")" "${seconds[lz4]}" "$(rate $((2 * bytes)) "${seconds[lz4]}")"
row "create zstd, 64K units" "$(megabytes "${memory[zstd]}")" "${seconds[zstd]}" "$(rate $((2 * bytes)) "${seconds[zstd]}")"
row "map" "" "${seconds[map]}" ""
row "read and hash the device" "$(megabytes "$bytes")" "${seconds[checksum]}" "$(rate "$bytes" "${seconds[checksum]}")"
row "rest of the merge, with a reader" "" "${seconds[merge]}" ""
printf '\n'
row "daemon, idle" MB "" ""
row "RSS" "$(megabytes "${memory[rss]}")" "" ""
row "anonymous" "$(megabytes "${memory[anonymous]}")" "" ""
row "threads" "${memory[threads]}" "" ""
row "wake-ups in 10 s" "${memory[wakeups]}" "" ""
printf '\nDone in %d s. MB are millions of bytes; create reads two images.\n' "$SECONDS"
