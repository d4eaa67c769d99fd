#!/bin/sh
# Installs the Debian packages that the benchmarks need: as root, `sh scripts/bench-packages.sh`. Idempotent.
# Without root, or where the distribution is not Debian's, it prints what is missing and fails when something is.
# The guest's kernel and CRIU are not installed: the makers of the data unpack them into their work folder.
set -eu

packages="rsync openssh-server openssh-client casync debootstrap e2fsprogs zstd iproute2
qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients busybox-static"

command -v dpkg-query >/dev/null || { echo "bench-packages: needs Debian; the packages are: $packages" >&2; exit 1; }

missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=absent
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "bench-packages: missing; as root: apt-get install$missing" >&2
    exit 1
fi

# libvirt's and ssh's packages would start daemons of the system: the benchmarks start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
fi

echo "bench-packages: installing$missing"
export DEBIAN_FRONTEND=noninteractive
lock="-o DPkg::Lock::Timeout=300"
apt-get $lock update -qq
# All of them by name, and not the missing ones only: rsync is compared in the distribution's newest version.
# shellcheck disable=SC2086
apt-get $lock install -y -qq --no-install-recommends $packages >/dev/null
