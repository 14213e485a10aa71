# shellcheck shell=bash disable=SC2034
# Read by the scripts that build: installs what is missing where the machine has apt, says what to install elsewhere.

say() { printf '\n== %s\n' "$*"; }
warn() { printf '\n!! %s\n' "$*" >&2; }

# install_packages PACKAGE...: true if apt has installed all of them. Never asks.
install_packages() {
  local as_root=()
  if ! command -v apt-get >/dev/null; then
    warn "This machine has no apt-get. Please install what these Debian packages hold: $*"
    return 1
  fi
  if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
      warn "Neither root nor sudo. Please run as root: apt-get install $*"
      return 1
    fi
    as_root=(sudo)
  fi
  say "Installing $*"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
  if [[ -z ${apt_is_fresh:-} ]]; then
    "${apt[@]}" update </dev/null || warn "apt-get update failed; going on with the lists that are there"
    apt_is_fresh=1
  fi
  "${apt[@]}" install -y --no-install-recommends "$@" </dev/null && return 0
  warn "apt-get could not install: $*"
  return 1
}

# version_at_least WANTED HAVE
version_at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

gxx=

# Sets gxx to a g++ of version 12 or newer.
find_gxx() {
  local candidate
  for candidate in "${COBATCH_GXX:-g++}" g++ g++-15 g++-14 g++-13 g++-12; do
    if command -v "$candidate" >/dev/null && version_at_least 12 "$("$candidate" -dumpversion)"; then
      gxx=$candidate
      return 0
    fi
  done
  return 1
}

# Installs the build's own needs, sets gxx where there is one. False without CMake.
install_build_tools() {
  local missing=() version
  command -v cmake >/dev/null || missing+=(cmake)
  command -v ninja >/dev/null || command -v make >/dev/null || missing+=(ninja-build)
  find_gxx || missing+=(g++)
  if ((${#missing[@]})); then
    install_packages "${missing[@]}" || true
    find_gxx || install_packages g++-12 || true
    find_gxx || true
  fi
  if ! command -v cmake >/dev/null; then
    warn "CMake is needed, version 3.23 or newer."
    return 1
  fi
  version=$(cmake --version | sed -n '1s/[^0-9]*//p')
  if ! version_at_least 3.23 "$version"; then
    warn "CMake $version is too old: 3.23 or newer is needed."
    return 1
  fi
}

# The generator of a build folder that is not there yet: Ninja where it is installed.
generator_for() {
  if [[ ! -e $1/CMakeCache.txt ]] && command -v ninja >/dev/null; then printf '%s\n' -G Ninja; fi
}

jobs() { printf '%s' "${COBATCH_JOBS:-$(nproc 2>/dev/null || echo 2)}"; }
