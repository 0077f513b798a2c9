#!/usr/bin/env bash
# Writes a pair of ext4 images, base.img and target.img, into DIR: a system
# before and after an update.
#
#   tools/images.sh DIR
#
# The ready-made pair is taken when there is one: $COWBIRD_FIXTURES/images, or
# ../shared/fixtures/images beside the checkout. Else a pair of 256 MiB is made
# from this machine's own trees (needs root, for mounting). The last line of
# output says which: "fixture" or "built".
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# = 1 ] || { echo "usage: tools/images.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
fixtures=${COWBIRD_FIXTURES:-$here/../../shared/fixtures}/images

if [ "${COWBIRD_IMAGES:-}" != built ] && [ -f "$fixtures/unpack.sh" ]; then
  sh "$fixtures/unpack.sh" "$dir"
  chmod u+w "$dir/base.ext4" "$dir/target.ext4"
  mv "$dir/base.ext4" "$dir/base.img"
  mv "$dir/target.ext4" "$dir/target.img"
  echo fixture
  exit
fi

megabytes=256
tree=$dir/tree
mounted=
cleanup() {
  [ -z "$mounted" ] || umount "$tree" || true
  rm -rf "$tree"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Real files in a fixed order, until $1 bytes are reached after skipping $2.
pick() {
  find /usr/bin /usr/lib /usr/share /usr/include -xdev -type f -size -4M -printf '%s %p\n' 2>/dev/null | LC_ALL=C sort -k2 |
    awk -v want="$1" -v skip="$2" '{ seen += $1 } seen <= skip { next } seen <= skip + want { print substr($0, index($0, " ") + 1) }'
}

# Copies the listed files below $1, with their paths.
copy_list() { tar -cf - --no-recursion -T - 2>/dev/null | tar -xf - -C "$1"; }

base_bytes=$((150 << 20))
new_bytes=$((40 << 20))
mkdir -p "$tree"
pick $base_bytes 0 | copy_list "$tree"
mkfs.ext4 -q -F -b 4096 -U 6b8f2f0e-5d1c-4a7e-9d0f-0c0b1d000001 -E lazy_itable_init=0,lazy_journal_init=0 -d "$tree" "$dir/base.img" ${megabytes}M >/dev/null
find "$tree" -mindepth 1 -delete

# The update happens to a copy in place, as on a device, so that what did not
# change stays where it is.
cp --sparse=never "$dir/base.img" "$dir/target.img"
mount -o loop "$dir/target.img" "$tree"
mounted=1

nth() { find "$tree" -xdev -type f -size "$2" -printf '%P\n' | LC_ALL=C sort | awk -v n="$1" 'NR % n == 0'; }

nth 5 +16k | while read -r f; do # changed: some in the middle, others rewritten longer
  printf 'patched' | dd of="$tree/$f" bs=1 seek=8192 conv=notrunc status=none
done
nth 11 +0 | while read -r f; do
  { cat "$tree/$f"; echo "changed by the update"; } >"$tree/$f.new" && mv "$tree/$f.new" "$tree/$f"
done
nth 29 +4k | while read -r f; do # moved
  mkdir -p "$tree/moved/$(dirname "$f")" && mv "$tree/$f" "$tree/moved/$f"
done
nth 53 +4k | while read -r f; do rm "$tree/$f"; done # removed
pick $new_bytes $base_bytes | copy_list "$tree"     # added

umount "$tree"
mounted=
echo built
