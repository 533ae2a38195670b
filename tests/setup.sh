#!/usr/bin/env bash
# Installs what the build, the tests, the lints or the benchmarks need on Debian 12, says what it installs, and does nothing the second time.
#
#   tests/setup.sh build|test|lint|bench
#
# Language packages go below $TRIBUTARY_SETUP (default: .setup beside the Makefile); system packages through apt-get, with sudo where one is not root.
set -euo pipefail
cd "$(dirname "$0")/.."
setup=${TRIBUTARY_SETUP:-$PWD/.setup}
mkdir -p "$setup"

say() { printf 'setup: %s\n' "$*"; }

# Installs the Debian packages among the arguments that are not installed yet.
debian() {
  local missing=() package sudo=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    say "this is not Debian: install the equivalents of: ${missing[*]}" >&2
    exit 1
  fi
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  say "installing Debian packages: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  # PostgreSQL's package would start a cluster of its own; the tests start theirs.
  "${sudo[@]}" mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' | "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}" >/dev/null
}

# python FOLDER REQUIREMENTS…: a virtual environment, made anew when the requirements change.
python() {
  local folder=$1 stamp
  shift
  stamp=$(cat "$@" | sha256sum | cut -c1-16)
  [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ] && return
  say "installing Python packages into $folder: $(cat "$@" | grep -v '^#' | tr '\n' ' ')"
  rm -rf "$folder"
  python3 -m venv "$folder"
  local arguments=() file
  for file in "$@"; do arguments+=(-r "$file"); done
  "$folder/bin/pip" install --quiet --disable-pip-version-check "${arguments[@]}"
  echo "$stamp" >"$folder/.stamp"
}

# node FOLDER PACKAGE_JSON: the packages it names, installed anew when they change.
node() {
  local folder=$1 manifest=$2 stamp
  stamp=$(sha256sum <"$manifest" | cut -c1-16)
  [ "$(cat "$folder/node_modules/.stamp" 2>/dev/null)" = "$stamp" ] && return
  say "installing Node packages of $manifest into $folder"
  mkdir -p "$folder"
  cp "$manifest" "$folder/package.json"
  (cd "$folder" && npm install --silent --no-audit --no-fund)
  echo "$stamp" >"$folder/node_modules/.stamp"
}

build() {
  debian libclang-dev clang lld cmake g++ pkg-config
  local found
  found=$(cargo --version | cut -d' ' -f2)
  if [ "$(printf '1.95\n%s\n' "$found" | sort -V | head -n 1)" != 1.95 ]; then
    say "cargo $found is too old: 1.95 or newer is needed (rustup update)" >&2
    exit 1
  fi
}

# Debian's own nodejs comes without npm.
npm_present() { command -v npm >/dev/null || debian npm; }

case "${1:-}" in
  build) build ;;
  test)
    build
    debian python3-venv postgresql-15 mariadb-server-core mariadb-client-core freetds-bin openjdk-17-jre-headless chromium chromium-driver
    npm_present
    python "$setup/clients/venv" tests/sqlserver/clients/requirements.txt
    node "$setup/clients" tests/sqlserver/clients/package.json
    python "$setup/standins/venv" tests/standins/requirements.txt
    python "$setup/lake/venv" joiner/sinks/tests/lake/requirements.txt
    node "$setup/standins" tests/standins/package.json
    node "$setup/browser" tests/browser/package.json
    ;;
  lint)
    build
    debian python3-venv shellcheck
    npm_present
    python "$setup/lint/venv" tests/lint/requirements.txt
    node "$setup/lint" tests/lint/package.json
    ;;
  bench)
    build
    debian python3-venv postgresql-15 mariadb-server-core mariadb-client-core openjdk-17-jdk-headless
    python "$setup/bench/venv" bench/requirements.txt
    python "$setup/clients/venv" tests/sqlserver/clients/requirements.txt
    ;;
  *)
    echo "usage: tests/setup.sh build|test|lint|bench" >&2
    exit 2
    ;;
esac
