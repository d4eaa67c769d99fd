#!/bin/sh
# Installs what the engines of p2player need (runc with CRIU, LXD, libvirt with QEMU): as root, `sh scripts/engine-packages.sh`.
#
# Idempotent, and quick when nothing is to be done; says in one line each what it installs. For Debian and Ubuntu; where
# it cannot install, it prints what is missing and fails. Python's own packages are extras: pip install 'p2player[lxd,libvirt]'.
#
# CRIU must fit the kernel. When the distribution's does not work, that of Debian unstable goes into a folder of its own,
# with the libraries it was built for; failing that, that of Debian 13. The system's libraries stay as they are.
set -eu

packages="runc lxd lxd-client lxc libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils busybox-static
debootstrap squashfs-tools rsync dnsmasq-base uidmap nftables iproute2 e2fsprogs zstd
libvirt-dev pkg-config gcc python3-dev"
prefix=/usr/local/lib/p2player/criu
debian=http://deb.debian.org/debian # where a machine that is not Debian's gets CRIU

say() { echo "engine-packages: $*"; }
fail() { say "$*" >&2; exit 1; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

works() { command -v "$1" >/dev/null && "$1" check >/dev/null 2>&1; }

missing_packages() {
    for package in $packages; do
        installed "$package" || echo "$package"
    done
}

# Packages start daemons of the system when they are installed; here each node is to start its own.
forbid_daemons() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
}

# Ubuntu has LXD as a snap only.
available() {
    for package in $1; do
        if [ -n "$(apt-cache policy "$package" | sed -n 's/^ *Candidate: //p' | grep -v '(none)')" ]; then
            echo "$package"
        else
            say "this distribution has no package $package" >&2
        fi
    done
}

# The mirror that this machine uses already, when it is one of Debian.
mirror() {
    # shellcheck disable=SC2016
    found=$(apt-get indextargets --format '$(ORIGIN) $(SITE)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian \(.*\)$/\1/p' | grep -v security | head -1)
    echo "${found:-$debian}"
}

# install_criu SUITE: the package of a suite, with all libraries it needs, unpacked below $prefix.
install_criu() {
    suite=$1
    apt_home=$(mktemp -d)
    new=$prefix.new
    rm -rf "$new"
    mkdir -p "$new/root" "$new/sbin" "$apt_home/etc/apt.conf.d" "$apt_home/etc/preferences.d" \
        "$apt_home/etc/sources.list.d" "$apt_home/state/lists/partial" "$apt_home/cache/archives/partial"
    : >"$apt_home/status" # nothing is installed: apt gets every library, the C library too
    cat >"$apt_home/apt.conf" <<EOF
Dir::Etc "$apt_home/etc";
Dir::State "$apt_home/state";
Dir::State::status "$apt_home/status";
Dir::Cache "$apt_home/cache";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
EOF
    keys=/usr/share/keyrings/debian-archive-keyring.gpg # Ubuntu has them as a package
    [ -e "$keys" ] || apt-get $lock install -y -qq debian-archive-keyring >/dev/null
    echo "deb [signed-by=$keys] $(mirror) $suite main" >"$apt_home/etc/sources.list"
    ok=0
    if APT_CONFIG=$apt_home/apt.conf apt-get update -qq &&
        APT_CONFIG=$apt_home/apt.conf apt-get install -y -qq --download-only criu >/dev/null; then
        ok=1
        for package in "$apt_home"/cache/archives/*.deb; do
            dpkg-deb -x "$package" "$new/root"
        done
        loader=$(find "$new/root/usr/lib" "$new/root/lib" -name 'ld-linux*.so*' 2>/dev/null | head -1)
        libraries=$(dirname "$loader" | sed "s|^$new|$prefix|")
        rm -rf "$new/root/usr/share" "$new/root/usr/lib"/*/gconv "$new/root/usr/lib"/*/perl*
        cat >"$new/sbin/criu" <<EOF
#!/bin/sh
exec $libraries/${loader##*/} --library-path $libraries --argv0 criu $prefix/root/usr/sbin/criu "\$@"
EOF
        chmod 755 "$new/sbin/criu"
        rm -rf "$prefix"
        mv "$new" "$prefix"
    fi
    rm -rf "$apt_home" "$new"
    [ "$ok" = 1 ] && works "$prefix/sbin/criu"
}

command -v dpkg-query >/dev/null || fail "needs Debian or Ubuntu; the packages are: $(echo $packages) criu"
missing=$(missing_packages)
have_criu=0
if works criu || works "$prefix/sbin/criu"; then have_criu=1; fi
if [ -z "$missing" ] && [ "$have_criu" = 1 ]; then
    say "nothing to install"
    exit 0
fi
# `criu check` itself needs root.
[ "$(id -u)" = 0 ] || fail "missing: $(echo $missing) and perhaps a CRIU that works; run this as root"

export DEBIAN_FRONTEND=noninteractive
lock="-o DPkg::Lock::Timeout=300"
if [ -n "$missing" ]; then
    forbid_daemons
    # shellcheck disable=SC2086
    apt-get $lock update -qq
    wanted=$(available "$missing")
    if [ -n "$wanted" ]; then
        say "installing packages: $(echo $wanted)"
        # shellcheck disable=SC2086
        apt-get $lock install -y -qq --no-install-recommends $wanted >/dev/null
    fi
fi

if [ "$have_criu" = 0 ]; then
    mkdir -p "${prefix%/*}"
    for suite in sid trixie; do
        say "installing CRIU of Debian $suite below $prefix"
        if install_criu "$suite"; then
            have_criu=1
            break
        fi
        say "CRIU of Debian $suite does not work on this kernel" >&2
    done
    [ "$have_criu" = 1 ] || fail "no CRIU works on this kernel: runc and LXD cannot move memory here"
fi
