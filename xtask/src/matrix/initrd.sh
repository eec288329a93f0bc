#!/bin/busybox sh
# First process of a guest: the disk's modules, then the root file system.
busybox=/bin/busybox
$busybox mount -t devtmpfs none /dev
for module in /modules/*; do
    $busybox insmod "$module" || echo "matrix: failed to load $module"
done
for try in 1 2 3 4 5 6 7 8 9 10; do
    [ -e /dev/vda ] && break
    $busybox sleep 0.3
done
$busybox mount -t ext4 -o ro /dev/vda /new
$busybox mount -o move /dev /new/dev
exec $busybox switch_root /new /init
