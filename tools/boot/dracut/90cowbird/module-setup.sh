#!/bin/bash
# Puts into an initramfs what maps the partitions of the running slot.
# Install this folder as /usr/lib/dracut/modules.d/90cowbird.

check() {
  require_binaries otactl snapuserd || return 1
  # Only where dracut makes the initramfs of the machine that it runs on can it tell
  # whether it is wanted.
  [[ -e ${dracutsysrootdir-}/etc/cowbird/update.json ]] || return 255
}

depends() {
  echo dm
}

installkernel() {
  local MODULES=
  if [[ -r ${dracutsysrootdir-}/etc/cowbird/boot.conf ]]; then
    # shellcheck source=tools/boot/boot.conf
    . "${dracutsysrootdir-}/etc/cowbird/boot.conf"
  fi
  # shellcheck disable=SC2086  # a list
  instmods dm_mod ublk_drv fuse loop nbd ext4 $MODULES
}

install() {
  # shellcheck disable=SC2154  # dracut sets moddir
  inst_hook cmdline 30 "$moddir/parse-cowbird.sh"
  inst_hook initqueue/settled 30 "$moddir/cowbird-map.sh"
  dracut_need_initqueue # with systemd the queue is not run otherwise
  inst_multiple mount umount mkdir ln sleep
  inst "$(find_binary otactl)" /sbin/otactl
  inst "$(find_binary snapuserd)" /sbin/snapuserd
  inst_simple /usr/lib/cowbird/boot.sh
  inst_simple /usr/lib/udev/rules.d/59-cowbird.rules
  inst_multiple -o /etc/cowbird/update.json /etc/cowbird/boot.conf
}
