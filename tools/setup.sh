#!/usr/bin/env bash
# Installs what one of the make targets needs and this machine lacks.
#
#   tools/setup.sh build|test|demo|bench|vmtest|vmbench
#
# Quiet when nothing is missing. As root on Debian it installs the packages;
# elsewhere it says what to install and fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin

# What is needed, one line each: a command or a file, then the Debian packages
# that have it, tried in order (a file moves between packages from one release
# to the next).
image_needs='
zstd                    zstd
mkfs.ext4               e2fsprogs
losetup                 mount util-linux
mount                   mount
cmp                     diffutils
'
guest_needs='
gcc                     gcc
/usr/include/stdlib.h   libc6-dev
make                    make
flex                    flex
bison                   bison
bc                      bc
perl                    perl
xz                      xz-utils
/usr/include/libelf.h   libelf-dev
dpkg-deb                dpkg
qemu-system-x86_64      qemu-system-x86
dmsetup                 dmsetup
fio                     fio
mkfs.erofs              erofs-utils
nbd-client              nbd-client
mkfs.erofs              erofs-utils
/lib/systemd/systemd    systemd
busctl                  systemd
dbus-daemon             dbus-daemon dbus
veritysetup             cryptsetup-bin
/lib/systemd/systemd-udevd udev
'
case "${1:-}" in
build) needs='' ;;
test) needs="$image_needs
gcc                     gcc
/usr/include/stdlib.h   libc6-dev
bpfmt                   blueprint-tools
debugfs                 e2fsprogs
mkfs.erofs              erofs-utils
lz4                     lz4
xz                      xz-utils
qemu-img                qemu-utils
nbdinfo                 libnbd-bin
nbdkit                  nbdkit
veritysetup             cryptsetup-bin
protoc                  protobuf-compiler
mkenvimage              u-boot-tools
fw_setenv               libubootenv-tool
grub-editenv            grub-common
systemd-analyze         systemd
busctl                  systemd
dbus-daemon             dbus-daemon dbus
dbus-send               dbus-bin dbus
gdbus                   libglib2.0-bin
xmllint                 libxml2-utils
/usr/share/dbus-1/system.conf dbus-system-bus-common dbus
/usr/share/polkit-1/policyconfig-1.dtd polkitd policykit-1
mandoc                  mandoc
shellcheck              shellcheck
make-dynpart-mappings   make-dynpart-mappings
img2simg                android-sdk-libsparse-utils
python3                 python3
" ;;
demo) needs=$image_needs ;;
bench) needs="$image_needs
lz4                     lz4
xz                      xz-utils
bzip2                   bzip2
fio                     fio
qemu-img                qemu-utils
qemu-storage-daemon     qemu-utils qemu-system-common
taskset                 util-linux
xdelta3                 xdelta3
" ;;
vmtest) needs="$image_needs$guest_needs
dkms                    dkms
unshare                 util-linux
/usr/share/doc/linux-headers-cloud-amd64  linux-headers-cloud-amd64
" ;;
vmbench) needs="$image_needs$guest_needs
qemu-nbd                qemu-utils
nbdkit                  nbdkit
" ;;
*) echo "usage: tools/setup.sh build|test|demo|bench|vmtest|vmbench" >&2; exit 2 ;;
esac

say() { echo "setup: $*" >&2; }
have() { case $1 in /*) [ -e "$1" ] ;; *) command -v "$1" >/dev/null ;; esac; }

check_go() {
  have go || { say "Go is missing; install the version that go.mod names ($(awk '$1=="go"{print $2}' go.mod)) or newer"; exit 1; }
  # A toolchain that is too old says so itself, and names the version it wants.
  go list -m >/dev/null || exit 1
}

missing() { while read -r what packages; do [ -z "$what" ] || have "$what" || echo "$what $packages"; done <<<"$needs"; }

apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$log" 2>&1; }

install_one() {
  local what=$1 package
  shift
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ] || continue
    say "installing $package for $what"
    apt install --no-install-recommends "$package" || continue
    hash -r
    have "$what" && return 0
  done
  have "$what"
}

check_go
lacking=$(missing)
[ -n "$lacking" ] || exit 0
if ! have apt-get; then
  say "this is not Debian; install these by its own means and try again:"
  awk '{print "  " $1}' <<<"$lacking" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  say "these packages are missing; install them as root and try again:"
  say "  apt-get install $(awk '{ for (i = 2; i <= NF; i++) print $i }' <<<"$lacking" | sort -u | xargs)"
  exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
while read -r what packages; do
  # shellcheck disable=SC2086  # packages is a list
  install_one "$what" $packages && continue
  [ -n "${updated:-}" ] || { say "refreshing the package lists"; apt update || true; updated=1; }
  # shellcheck disable=SC2086
  install_one "$what" $packages && continue
  tail -n 20 "$log" >&2
  say "$what is still missing after trying: $packages"
  exit 1
done <<<"$lacking"
