#!/bin/sh
# Has dracut wait for the root that cowbird-map.sh makes. Where systemd mounts it,
# root=/dev/cowbird/root must be on the command line too.

if [ -n "$(getarg cowbird.root=)" ]; then
  # shellcheck disable=SC2034  # dracut reads both
  root=block:/dev/cowbird/root rootok=1
  wait_for_dev /dev/cowbird/root
fi
