#!/usr/bin/env bash
# Start a Docker engine where none runs, and make base images where no registry is reachable; docs/docker.md explains.
#
#   scripts/prepare_docker.sh                      ldm-base:3.11, with Debian's own Python
#   scripts/prepare_docker.sh 3.8=/opt/python3.8   also ldm-base:3.8, with the Python installed under that prefix
#
# Debian or Ubuntu, as root. What is there already is left as it is. Then: export LDM_BASE_IMAGE='ldm-base:{python}'
set -euo pipefail

RELEASE=bookworm
IMAGE=ldm-base
DEBIAN_PYTHON=3.11
# Beside Python: the libraries that a copied Python is linked to, and those that environments want most.
PACKAGES=python3,python3-pip,python3-venv,ca-certificates,git,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8
PACKAGES+=,zlib1g,libexpat1,libncursesw6,libgl1,libegl1,libglu1-mesa,libglib2.0-0,libgomp1
LOG=/var/log/ldm-dockerd.log
WAIT=60

fail() { echo "prepare_docker.sh: $*" >&2; exit 1; }

engine_answers() { docker info >/dev/null 2>&1; }

install() {  # Debian packages that hold the commands named after the colon, where they are missing
    local missing=()
    for pair in "$@"; do command -v "${pair#*:}" >/dev/null || missing+=("${pair%%:*}"); done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" -eq 0 ] || fail "${missing[*]} must be installed, which needs root"
    command -v apt-get >/dev/null || fail "${missing[*]} must be installed, and there is no apt-get"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get could not install ${missing[*]}"
}

start_engine() {
    install docker.io:dockerd iptables:iptables
    [ "$(id -u)" -eq 0 ] || fail "no Docker engine answers, and starting one needs root"
    pgrep -x dockerd >/dev/null || rm -f /var/run/docker.pid  # an engine that was killed leaves it behind
    echo "Starting a Docker engine, its log is $LOG" >&2
    setsid nohup dockerd >"$LOG" 2>&1 </dev/null &
    for _ in $(seq "$((WAIT * 5))"); do
        engine_answers && return
        kill -0 $! 2>/dev/null || break
        sleep 0.2
    done
    fail "the Docker engine did not start: $(tail -n 3 "$LOG" | tr '\n' ' ')"
}

make_base() {
    docker image inspect "$IMAGE:$DEBIAN_PYTHON" >/dev/null 2>&1 && return
    install debootstrap:debootstrap
    local root
    root=$(mktemp -d)
    trap 'rm -rf "$root"' RETURN
    echo "Making the image $IMAGE:$DEBIAN_PYTHON" >&2
    debootstrap --variant=minbase --include="$PACKAGES" "$RELEASE" "$root/system" >"$root/log" ||
        fail "debootstrap failed: $(tail -n 3 "$root/log" | tr '\n' ' ')"
    # Certificates that this machine trusts, as pip in the image goes through the same network.
    cp /etc/ssl/certs/ca-certificates.crt "$root/system/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$root"/system/var/cache/apt/archives/*.deb
    tar -C "$root/system" -c . |
        docker import --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$IMAGE:$DEBIAN_PYTHON" >/dev/null
}

add_python() {  # add_python VERSION PREFIX
    docker image inspect "$IMAGE:$1" >/dev/null 2>&1 && return
    [ -x "$2/bin/python3" ] || fail "there is no Python under $2"
    echo "Making the image $IMAGE:$1 from $2" >&2
    local context
    context=$(mktemp -d)
    trap 'rm -rf "$context"' RETURN
    cp -a "$2" "$context/python"
    # A Python finds its own files by its prefix, so it keeps it.
    cat >"$context/Dockerfile" <<EOF
FROM $IMAGE:$DEBIAN_PYTHON
COPY python $2
RUN dir=$2; while [ "\$dir" != / ]; do chmod a+rx "\$dir"; dir=\$(dirname "\$dir"); done; \\
    ln -sf $2/bin/python3 /usr/local/bin/python3
EOF
    docker build -q -t "$IMAGE:$1" "$context" >/dev/null || fail "the image $IMAGE:$1 could not be built"
}

engine_answers || start_engine
make_base
for pair in "$@"; do
    [[ $pair == *=* ]] || fail "$pair should be VERSION=PREFIX, for example 3.8=/opt/python3.8"
    add_python "${pair%%=*}" "${pair#*=}"
done
