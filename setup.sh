#!/usr/bin/env bash
# Takes a checkout on Debian to a built state: system packages, npm packages, the native addon, dist/.
# Run it as often as you like and from anywhere: a step whose result is up to date costs next to nothing.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# A second setup of the same checkout waits for the first.
if command -v flock >/dev/null; then
  exec 9<setup.sh
  flock 9
fi

check_node() {
  command -v node >/dev/null || die "Node is not installed; Node 20.9 or newer is needed (https://nodejs.org)"
  command -v npm >/dev/null || die "npm is not installed; it comes with Node (on Debian: apt-get install npm)"
  node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 9) ? 0 : 1)' ||
    die "Node 20.9 or newer is needed, this is $(node --version)"
  node -e 'const [a, b] = process.versions.node.split("."); process.exit((a == 20 && b >= 19) || (a == 22 && b >= 12) || a >= 24 ? 0 : 1)' ||
    say "note: the package runs on Node $(node --version), its test tools ask for 20.19, 22.12, 24 or newer"
}

missing_packages() {
  command -v g++ >/dev/null || echo g++
  command -v cmake >/dev/null || echo cmake
  command -v ninja >/dev/null || echo ninja-build
  local probe='#if !__has_include(<oneapi/dnnl/dnnl.hpp>)
#error missing
#endif'
  if ! g++ -x c++ -E - <<<"$probe" >/dev/null 2>&1; then echo libdnnl-dev; fi
}

install_packages() {
  command -v apt-get >/dev/null || die "missing: $*. There is no apt-get here; install their equivalents and run again"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing: $*. Run as root: apt-get install $*"
    as_root=(sudo)
  fi
  # Package lists that cannot be refreshed may still be good enough.
  "${as_root[@]}" apt-get update -qq || say "apt-get update failed, going on with the package lists at hand"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# npm writes node_modules/.package-lock.json last, so an interrupted install never looks complete.
npm_packages_current() {
  [ -f node_modules/.package-lock.json ] || return 1
  node - <<'EOF'
const { existsSync, readFileSync } = require("node:fs");
const packages = (file) => JSON.parse(readFileSync(file, "utf8")).packages;
const wanted = packages("package-lock.json");
const found = packages("node_modules/.package-lock.json");
delete wanted[""];
const missing = Object.keys(wanted).filter(
  (key) => (found[key] ? found[key].integrity !== wanted[key].integrity || !existsSync(key) : !wanted[key].optional),
);
const extra = Object.keys(found).filter((key) => !wanted[key]);
process.exit(missing.length + extra.length > 0 ? 1 : 0);
EOF
}

check_node

mapfile -t packages < <(missing_packages)
if [ "${#packages[@]}" -gt 0 ]; then
  say "installing Debian packages: ${packages[*]}"
  install_packages "${packages[@]}"
else
  say "Debian packages: all there"
fi

# Videos go through it; everything else works without.
if ! command -v ffmpeg >/dev/null; then
  say "installing Debian package: ffmpeg"
  (install_packages ffmpeg) || say "note: no ffmpeg, so no MP4; GIF and WebP need nothing"
fi

if npm_packages_current; then
  say "npm packages: up to date"
else
  say "npm packages: installing"
  # Without scripts: the package's own install script would build the addon, which is the next step here.
  npm ci --ignore-scripts --no-audit --no-fund
fi

# CMake keeps absolute paths: a build folder that came along with a moved or copied checkout is of no use.
if [ -f build/CMakeCache.txt ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)" build/CMakeCache.txt; then
  say "build/ belongs to another folder: starting it afresh"
  rm -rf build
fi

step() {
  local name=$1 output=$2 before after start=$SECONDS
  shift 2
  before=$(newest "$output")
  "$@"
  after=$(newest "$output")
  [ -n "$after" ] || die "$name: $output was not made"
  if [ "$before" = "$after" ]; then say "$name: up to date"; else say "$name: built in $((SECONDS - start)) s"; fi
}
newest() { { find "$1" -type f -printf "%T@\n" 2>/dev/null || true; } | sort -n | tail -n 1; }

step "native addon" build/Release npm run --silent build:native
step "TypeScript" dist npm run --silent build:ts
say "done. Next: npx ltx-native train, or npm test"
