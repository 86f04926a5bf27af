#!/bin/sh
# Tries the README's two commands, `make up` and `make test`, on a bare Debian: python3, python3-venv, make and
# ca-certificates, nothing else. As root, on a Debian with debootstrap; `make test-bare` calls it.
#
#   --without-suite   leave `make test` out, which takes long
#   --suite NAME      Debian's release, trixie if not said
#   --mirror URL      where its packages are; else the mirror that apt uses here
#   --base FOLDER     keep the bare Debian there, or take the one that is there: saves minutes
#   --json            the figures once more, as the last line, for programs
#
# What pip needs here to reach its index (its files of settings, PIP_*, proxies, certificates, folders of
# packages) is handed in. TORCH=cpu or cuda is too. All that is mounted or started lives in namespaces
# of its own, which end with this script; its folder lies in TMPDIR, or /var/tmp, and is deleted.
set -eu

PACKAGES=python3,python3-venv,make,ca-certificates
NEEDED_GB=12  # with the CUDA build of torch, which a package index may have alone
HOME_INSIDE=/home/ordinary
PROMPT="What is a service tier?"

fail() {
    echo "try_bare: $1" >&2
    exit 1
}

read_arguments() {
    debian=trixie mirror="" base="" is_json="" has_suite=yes
    while [ $# -gt 0 ]; do
        case $1 in
            --json) is_json=yes ;;
            --without-suite) has_suite="" ;;
            --suite | --mirror | --base)
                [ $# -ge 2 ] || usage "$1 needs a value"
                case $1 in --suite) debian=$2 ;; --mirror) mirror=$2 ;; --base) base=$2 ;; esac
                shift ;;
            *) usage "unknown: $1" ;;
        esac
        shift
    done
}

usage() {
    echo "try_bare: $1 (the top of $0 lists the options)" >&2
    exit 2
}

check_machine() {
    [ "$(id -u)" -eq 0 ] || fail "only root can make a Debian of its own: sudo -E make test-bare"
    for program in debootstrap unshare git; do
        command -v $program >/dev/null || fail "there is no $program: apt install debootstrap util-linux git"
    done
    unshare --mount --pid --fork true 2>/dev/null \
        || fail "this machine allows no namespaces (in a container? start it with CAP_SYS_ADMIN)"
    free_gb=$(($(df --output=avail -k "$folder_of_all" | tail -n 1) / 1048576))
    [ "$free_gb" -ge $NEEDED_GB ] || fail "$folder_of_all has $free_gb GB, $NEEDED_GB are needed: set TMPDIR"
}

# The parent: one process in namespaces of its own, and whatever ends it, nothing left.
supervise() {
    folder_of_all=${TMPDIR:-/var/tmp}
    check_machine
    folder=$(mktemp -d "$folder_of_all/millrace-bare-XXXXXX")
    child=""
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    unshare --mount --pid --fork --kill-child sh deploy/try_bare.sh --inside "$folder" "$@" &
    child=$!
    code=0
    wait $child || code=$?
    child=""
    [ $code -eq 0 ] || echo "try_bare: FAILED, see above" >&2
    return $code
}

# With its first process the kernel ends all of a namespace and unmounts what only that saw.
clean_up() {
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill -KILL "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    echo "try_bare: deleting $folder" >&2
    rm -rf --one-file-system "$folder"
}

# What follows runs in the namespaces.

timed() {
    name=$1
    shift
    echo "== $name"
    began=$(date +%s.%N)
    "$@" || fail "$name: failed"
    took=$(echo "$began $(date +%s.%N)" | awk '{printf "%.1f", $2 - $1}')
    figures="$figures, \"${name}_s\": $took"
    table="$table$(printf '  %-8s %8s s' "$name" "$took")
"
}

make_debian() {
    if [ -n "$base" ]; then
        [ -e "$base/etc/debian_version" ] || bootstrap "$base" || return 1
        cp -a --reflink=auto "$base" "$root"
    else
        bootstrap "$root"
    fi
}

# Under another name until it is whole.
bootstrap() {
    [ -n "$mirror" ] || mirror=$(mirror_of_apt)
    proxy=$(apt-config shell x Acquire::http::Proxy 2>/dev/null | sed "s/^x='\(.*\)'$/\1/")
    echo "from ${mirror:-the mirror that debootstrap knows}"
    rm -rf "$1.part"
    env ${proxy:+http_proxy="$proxy"} debootstrap --variant=minbase --include=$PACKAGES \
        "$debian" "$1.part" $mirror > "$folder/debootstrap.log" 2>&1 \
        || { tail -n 20 "$folder/debootstrap.log" "$1.part/debootstrap/debootstrap.log" >&2; return 1; }
    mv "$1.part" "$1"
}

# Empty where apt knows none of Debian's: debootstrap has one of its own.
mirror_of_apt() {
    apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)' 2>/dev/null \
        | sed -n 's/^Debian Debian main //p' | head -n 1
}

prepare() {
    mount_kernel
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    chroot "$root" useradd --create-home --shell /bin/sh ordinary
    hand_in_certificates
    hand_in_pip_settings
    copy_checkout
}

# A few devices and no others: a GPU of this machine is not one of the bare one.
mount_kernel() {
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root/dev/shm"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
}

hand_in_certificates() {
    [ -d /usr/local/share/ca-certificates ] || return 0
    cp -rL /usr/local/share/ca-certificates "$root/usr/local/share/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
}

hand_in_pip_settings() {
    home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    mkdir -p "$root$HOME_INSIDE/.config/pip"
    cat "$home/.pip/pip.conf" "$home/.config/pip/pip.conf" "${PIP_CONFIG_FILE:-/dev/null}" \
        > "$root$HOME_INSIDE/.config/pip/pip.conf" 2>/dev/null || true
    [ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$root/etc/"
    [ ! -d /etc/xdg/pip ] || { mkdir -p "$root/etc/xdg"; cp -rL /etc/xdg/pip "$root/etc/xdg/"; }
    settings_inside | grep -o "/[^][ ,'\"=]*" | sort -u | while read -r path; do
        hand_in_path "$path"
    done
}

# The lines that say where pip's index and packages are, and how they are reached.
settings_inside() {
    env | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE)' || true
    cat "$root/etc/pip.conf" "$root/etc/xdg/pip/"* "$root$HOME_INSIDE/.config/pip/pip.conf" \
        2>/dev/null || true
}

# A file or folder that a setting names stands at the same place inside. Pages of an index in a
# folder (file://) link to files beside them.
hand_in_path() {
    path=$1
    case $path in
        ///*) path=$(dirname "${path#//}") ;;
        //*) return 0 ;;  # the rest of a URL
    esac
    if [ -e "$root$path" ] || [ ! -e "$path" ] || [ "$path" = / ]; then
        return 0
    fi
    if [ -d "$path" ]; then
        mkdir -p "$root$path"
        mount --bind -o ro "$path" "$root$path"
    else
        mkdir -p "$root$(dirname "$path")"
        cp -L "$path" "$root$path"
    fi
}

# What git tracks, as it lies here.
copy_checkout() {
    mkdir "$root$HOME_INSIDE/millrace"
    git -c safe.directory='*' ls-files -z | tar --create --null --files-from - \
        | tar --extract --directory "$root$HOME_INSIDE/millrace"
    chroot "$root" chown -R ordinary: $HOME_INSIDE
}

# A shell command as the ordinary user, with nothing of this machine's environment but what is handed in.
inside() (
    for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
        case $name in
            PIP_CONFIG_FILE) unset "$name" ;;  # its lines are in the user's own
            PIP_* | *_proxy | *_PROXY | SSL_CERT_* | REQUESTS_CA_BUNDLE | TORCH) ;;
            *) unset "$name" ;;
        esac
    done
    export HOME=$HOME_INSIDE USER=ordinary LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    exec chroot --userspec=ordinary:ordinary --groups= "$root" \
        sh -c "cd $HOME_INSIDE/millrace && $1" </dev/null
)

finds_answer() {
    inside ". .millrace/env && .venv/bin/millrace chat '$PROMPT'" > "$folder/answer" || return 1
    cat "$folder/answer"
    grep -q '[a-z]' "$folder/answer"
}

has_ended() {
    inside "make down" || return 1
    left=$(grep -l "^Uid:[[:space:]]*$(stat -c %u "$root$HOME_INSIDE")[[:space:]]" \
        "$root"/proc/[0-9]*/status 2>/dev/null) || return 0
    echo "still there after make down: $left" >&2
    return 1
}

try() {
    root=$folder/root figures="" table=""
    timed debian make_debian
    timed prepare prepare
    timed up inside "make up DETACH=1"
    timed answer finds_answer
    timed down has_ended
    timed again inside "make up DETACH=1"
    timed down_again has_ended
    [ -z "$has_suite" ] || timed test inside "make test"
    version=$(inside ".venv/bin/python -c 'import platform; print(platform.python_version())'")
    echo "== green on Debian $(cat "$root/etc/debian_version") with Python $version"
    printf '%s' "$table"
    [ -z "$is_json" ] || echo "{\"is_green\": true, \"python\": \"$version\"$figures}"
}

if [ "${1:-}" = --inside ]; then
    folder=$2
    shift 2
    read_arguments "$@"
    try
else
    read_arguments "$@"
    cd "$(dirname "$0")/.."
    supervise "$@"
fi
