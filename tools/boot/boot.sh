# shellcheck shell=sh
# Maps the partitions of the running slot, in an initramfs. It is no program: the
# hooks of initramfs-tools and dracut read it, and call cowbird_boot, which sets
# COWBIRD_ROOT to the device that cowbird.root= on the kernel's command line names
# without its slot, or to nothing if there is none.
#
# Everything here works with klibc's and busybox's programs. COWBIRD_TOP is for tests.

COWBIRD_TOP=${COWBIRD_TOP:-}
COWBIRD_LIST=$COWBIRD_TOP/run/cowbird-partitions
COWBIRD_RULES=$COWBIRD_TOP/run/udev/rules.d/61-cowbird-root.rules

cowbird_say() { echo "cowbird: $*" >>"$COWBIRD_TOP/dev/kmsg"; }

# cowbird_argument NAME prints the value of the last NAME=VALUE on the command line.
cowbird_argument() {
  cowbird_value=
  read -r cowbird_line <"$COWBIRD_TOP/proc/cmdline" || true
  for cowbird_word in $cowbird_line; do
    case $cowbird_word in "$1="*) cowbird_value=${cowbird_word#*=} ;; esac
  done
  echo "$cowbird_value"
}

cowbird_read_conf() {
  DEVICES='' WAIT=30 MOUNTS='' MODULES=''
  if [ -r "$COWBIRD_TOP/etc/cowbird/boot.conf" ]; then
    # shellcheck source=tools/boot/boot.conf
    . "$COWBIRD_TOP/etc/cowbird/boot.conf"
  fi
}

# A carrier's module that is missing is no error here: the daemon takes what there is.
cowbird_load() {
  for cowbird_module in dm_mod ublk_drv fuse loop nbd $MODULES; do
    modprobe -q "$cowbird_module" || true
  done
}

cowbird_present() {
  for cowbird_device in $DEVICES; do
    [ -e "$COWBIRD_TOP$cowbird_device" ] || return 1
  done
}

cowbird_wait() {
  cowbird_left=$WAIT
  until cowbird_present; do
    if [ "$cowbird_left" -le 0 ]; then
      cowbird_say "waited $WAIT seconds, and $cowbird_device is not there"
      return 1
    fi
    sleep 1
    cowbird_left=$((cowbird_left - 1))
  done
}

# cowbird_each COMMAND runs it for each line of MOUNTS, and ends with the first failure.
cowbird_each() {
  while read -r cowbird_dev cowbird_dir cowbird_type cowbird_options; do
    [ -z "$cowbird_dev" ] || "$1" || return 1
  done <<END
$MOUNTS
END
}

cowbird_mount() {
  mkdir -p "$COWBIRD_TOP$cowbird_dir"
  mount -t "$cowbird_type" -o "$cowbird_options" "$cowbird_dev" "$COWBIRD_TOP$cowbird_dir" ||
    { cowbird_say "cannot mount $cowbird_dev on $cowbird_dir"; return 1; }
}

cowbird_umount() { umount "$COWBIRD_TOP$cowbird_dir" || true; }

# cowbird_find NAME prints the device of a partition in the running slot.
cowbird_find() {
  cowbird_found=
  while read -r cowbird_name _; do
    case $cowbird_name in "$1" | "$1"_?) cowbird_found="$cowbird_found /dev/mapper/$cowbird_name" ;; esac
  done <"$COWBIRD_LIST"
  case ${cowbird_found# } in
  '' | *' '*) cowbird_say "expected one partition called $1 with a slot, found:$cowbird_found"; return 1 ;;
  esac
  echo "${cowbird_found# }"
}

# The name by which systemd and dracut wait for the root: it is the same in each slot.
cowbird_link() {
  mkdir -p "${COWBIRD_RULES%/*}" "$COWBIRD_TOP/dev/cowbird"
  echo "SUBSYSTEM==\"block\", ATTR{dm/name}==\"${COWBIRD_ROOT##*/}\", SYMLINK+=\"cowbird/root\", TAG+=\"systemd\"" >"$COWBIRD_RULES"
  ln -sf "../mapper/${COWBIRD_ROOT##*/}" "$COWBIRD_TOP/dev/cowbird/root"
  if command -v udevadm >/dev/null; then
    udevadm control --reload
    udevadm trigger --action=change --sysname-match='dm-*'
    udevadm settle --timeout=30 || true
  fi
}

# What is mounted in /run/initramfs systemd leaves alone until the very end.
cowbird_map() {
  cowbird_each cowbird_mount || return 1
  cowbird_status=0
  otactl boot --timeout 30s --daemon /sbin/snapuserd --daemon-root /run/initramfs/cowbird \
    >"$COWBIRD_LIST" 2>"$COWBIRD_LIST.errors" || cowbird_status=$?
  while read -r cowbird_line; do cowbird_say "$cowbird_line"; done <"$COWBIRD_LIST.errors"
  cowbird_each cowbird_umount
  return $cowbird_status
}

cowbird_boot() {
  COWBIRD_ROOT=
  cowbird_read_conf
  cowbird_load
  cowbird_wait || return 1
  cowbird_map || { cowbird_say "the partitions of this slot cannot be mapped"; return 1; }
  cowbird_wanted=$(cowbird_argument cowbird.root)
  [ -n "$cowbird_wanted" ] || return 0
  COWBIRD_ROOT=$(cowbird_find "$cowbird_wanted") || return 1
  cowbird_link
  cowbird_say "the root is $COWBIRD_ROOT"
}
