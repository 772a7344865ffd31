# Shared by the scripts beside it, which source it: the server programs that tests and the cluster
# start, and their installation on Debian and its derivatives.
# shellcheck shell=bash

# Daemons stand in sbin, which is not on every user's path.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Says what the script could not do, after its name.
complain() {
    echo "${0##*/}: $*" >&2
}

# nginx passes on plain TCP with a module of its own, unless that is built in.
stream_module() {
    local module
    for module in /usr/lib/nginx/modules/ngx_stream_module.so /usr/lib64/nginx/modules/ngx_stream_module.so; do
        if [ -e "$module" ]; then
            echo "$module"
            return
        fi
    done
    return 1
}

has_stream() {
    stream_module >/dev/null || nginx -V 2>&1 | grep -Eq -- '--with-stream( |$)'
}

# Fills `missing` with the packages that are not installed, and `services` with those that come with
# them.
find_missing() {
    missing=() services=()
    command -v mariadbd >/dev/null || { missing+=(mariadb-server) services+=(mariadb); }
    command -v redis-server >/dev/null || { missing+=(redis-server) services+=(redis-server); }
    command -v ip >/dev/null || missing+=(iproute2)
    command -v nginx >/dev/null || { missing+=(nginx) services+=(nginx); }
    if ! command -v nginx >/dev/null || ! has_stream; then
        missing+=(libnginx-mod-stream)
    fi
}

# Installs what `find_missing` has found, without letting its services run.
install_missing() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            complain "please install these first, or let me by sudo without a password: ${missing[*]}"
            return 1
        fi
        as_root=(sudo -n)
    fi
    if ! command -v apt-get >/dev/null; then
        complain "no apt-get here; please install the like of: ${missing[*]}"
        return 1
    fi
    # Debian starts a service as soon as it is installed; exit code 101 from policy-rc.d forbids it.
    local policy=/usr/sbin/policy-rc.d ours=no
    if [ ! -e $policy ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
        "${as_root[@]}" chmod 755 $policy
    fi
    local status=0
    {
        "${as_root[@]}" apt-get update -q &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
    } || status=$?
    if [ $ours = yes ]; then
        "${as_root[@]}" rm -f $policy
    fi
    if [ $status -ne 0 ]; then
        complain "installing failed: ${missing[*]}"
        return $status
    fi
    # They must not run at the next boot, either.
    if [ -d /run/systemd/system ] && [ ${#services[@]} -gt 0 ]; then
        "${as_root[@]}" systemctl disable --quiet "${services[@]}" || true
    fi
}
