#!/bin/busybox sh
# First process of a guest's root file system: what tests need, the tests, and the end. Lines that begin with "matrix:" are
# for xtask/src/matrix/guest.rs. TESTS (words for the test binary) and LEAKTRACE_* come from the kernel's command line.
export PATH=/bin:/t HOME=/tmp
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mount -t tracefs none /sys/kernel/tracing
mount -t debugfs none /sys/kernel/debug
ip link set lo up
export LEAKTRACE_BIN=/t/leaktrace LEAKTRACE_TEST_PROGRAMS=/t/programs RUST_TEST_THREADS=1 RUST_BACKTRACE=0
echo "matrix: release $(uname -r)"
echo "matrix: preemption $(cat /sys/kernel/debug/sched/preempt 2>/dev/null)"
cd /tmp
export LEAKTRACE_TEST_DOCTOR=/tmp/doctor
# Words for the test binary, parted by commas: a kernel's command line has no quotes for its first process.
IFS=,
tests $TESTS
status=$?
[ -e /tmp/doctor ] && while read -r line; do echo "matrix: doctor $line"; done </tmp/doctor
echo "matrix: end $status"
echo b >/proc/sysrq-trigger
