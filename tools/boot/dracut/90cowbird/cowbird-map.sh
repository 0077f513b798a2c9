#!/bin/sh
# Maps the partitions of the running slot, as soon as its devices are there. dracut
# calls it again and again until the root has appeared, or its own patience ends.

# shellcheck source=tools/boot/boot.sh
. /usr/lib/cowbird/boot.sh

if [ ! -e /run/cowbird-mapped ]; then
  cowbird_read_conf
  if cowbird_present && cowbird_boot; then
    : >/run/cowbird-mapped
  fi
fi
