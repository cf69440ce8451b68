#!/bin/sh
# What this machine still lacks for a target of the Makefile: `tools/prepare.sh demo test`. Nothing to say: all is there.
#
# `make` and .ci/run start with this, before there is a Python, so it is plain sh. As root, or where CI is set, it
# installs what is missing with apt; anyone else gets the one line to type. It ends with 2 when something is still
# missing. `tools/prepare.sh --chromium` prints the Chromium that the tests drive, and ends with 1 if there is none.
#
# It looks at PYTHON, VENV, CC, CXX, CHROMIUM (a path, or `none`) and PLAYWRIGHT_BROWSERS_PATH.
set -u

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

# One line for each target that needs more than Python.
needs_of() {
  case $1 in
    demo) echo "python compiler" ;;
    lab) echo "python compiler" ;;
    serve) echo "python compiler" ;;
    bench) echo "python compiler browser" ;;
    real) echo "python compiler" ;;
    pictures) echo "python compiler browser" ;;
    test) echo "python compiler browser" ;;
    experiments) echo "python compiler" ;;
    fuzz) echo "python compiler" ;;
    soak) echo "python compiler" ;;
    *) echo "python" ;;
  esac
}

packages= # what apt would have to install
others=   # what apt cannot give, in words, one line each
snap=     # whether Chromium is a snap here, as on Ubuntu

lacks() { packages="$packages $1"; }
lacks_other() { others="$others  - $1
"; }
there() { command -v "$1" >/dev/null 2>&1; }

# --- what there is ------------------------------------------------------------------------------------------

find_chromium() {
  case ${CHROMIUM:-} in
    '') ;;
    none) return 1 ;;
    *) [ -f "$CHROMIUM" ] && [ -x "$CHROMIUM" ] && echo "$CHROMIUM"; return ;;
  esac
  command -v chromium || command -v chromium-browser || command -v google-chrome && return
  found=$(find "${PLAYWRIGHT_BROWSERS_PATH:-${HOME:-/}/.cache/ms-playwright}" -name chrome -type f 2>/dev/null | head -n 1)
  [ -n "$found" ] && echo "$found"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# The name alone says nothing: a shim of pyenv is there for each version that any project has.
starts() { version=$("$1" -V 2>&1 </dev/null) && case $version in "Python "[0-9]*) ;; *) false ;; esac; }

newer_python() {
  for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
    there "$name" && is_new_enough "$name" && echo "$name" && return
  done
}

check_python() {
  is_new_enough "$VENV/bin/python" && return # made before; it needs no other
  if there "$PYTHON" && ! starts "$PYTHON"; then
    newer=$(newer_python) # apt would not help: what does not start would still come first
    lacks_other "Python 3.10 or newer: there is no $PYTHON that starts. Try: PYTHON=${newer:-/usr/bin/python3} make $targets"
  elif ! there "$PYTHON"; then
    case $PYTHON in
      python3 | python3.[0-9]*) lacks "$PYTHON"; lacks "$PYTHON-venv" ;;
      *) lacks_other "the Python that PYTHON names: there is no $PYTHON" ;;
    esac
  elif ! is_new_enough "$PYTHON"; then
    newer=$(newer_python)
    lacks_other "Python 3.10 or newer: $PYTHON is $version. Try: PYTHON=${newer:-python3.12} make $targets"
  elif ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian and Ubuntu ship Python without ensurepip, and venv cannot install pip without it
    name=${PYTHON##*/}
    case $name in
      python3 | python3.[0-9]*) lacks "$name-venv" ;;
      *) lacks python3-venv ;;
    esac
  fi
}

# llama.cpp comes as source; a compiler without its headers is none. `tools/build_llama.py` takes the same ones.
check_compiler() {
  [ -e "$VENV/.llama" ] && return
  c=${CC:-} cpp=${CXX:-}
  for name in cc gcc clang; do [ -z "$c" ] && there "$name" && c=$name; done
  for name in c++ g++ clang++; do [ -z "$cpp" ] && there "$name" && cpp=$name; done
  if [ -n "$c" ] && echo '#include <stdio.h>' | $c -x c -fsyntax-only - 2>/dev/null \
    && [ -n "$cpp" ] && echo '#include <vector>' | $cpp -x c++ -fsyntax-only - 2>/dev/null; then return; fi
  if [ -n "${CC:-}${CXX:-}" ]; then
    lacks_other "a C and a C++ compiler that work: CC is '${CC:-}', CXX is '${CXX:-}'"
  else
    lacks g++
  fi
}

has_fonts() {
  for folder in /usr/share/fonts /usr/local/share/fonts "${HOME:-/}/.fonts" "${HOME:-/}/.local/share/fonts" /Library/Fonts; do
    [ -n "$(find -L "$folder" -name '*.[ot]t[fc]' 2>/dev/null | head -n 1)" ] && return
  done
  return 1
}

# The tests of the widgets drive a real browser, which draws real letters.
check_browser() {
  [ "${CHROMIUM:-}" = none ] && return
  if ! find_chromium >/dev/null; then
    if [ -n "${CHROMIUM:-}" ]; then
      lacks_other "the Chromium that CHROMIUM names: there is no program $CHROMIUM"
    elif grep -qs '^ID=ubuntu' "${OS_RELEASE:-/etc/os-release}"; then
      snap=chromium
    else
      lacks chromium
    fi
  fi
  has_fonts || lacks fonts-dejavu-core
}

# --- what to do about it --------------------------------------------------------------------------------------

in_words() {
  for package in $packages $snap; do
    case $package in
      make) echo "  - make" ;;
      python3*-venv) echo "  - the modules venv and ensurepip of Python" ;;
      python3*) echo "  - Python 3.10 or newer" ;;
      g++) echo "  - a C and a C++ compiler, to compile llama.cpp" ;;
      chromium) echo "  - Chromium or Chrome, for the tests of the widgets" ;;
      fonts-*) echo "  - a font, for the tests of the widgets" ;;
    esac
  done
}

line_to_type() {
  line=
  if [ -n "$packages" ]; then
    line="sudo apt-get install -y$packages"
    [ -n "$(find /var/lib/apt/lists -name '*_Packages*' 2>/dev/null | head -n 1)" ] || line="sudo apt-get update && $line"
  fi
  echo "$line${snap:+${line:+ && }sudo snap install $snap}"
}

explain() {
  if [ -z "$others" ] && there apt-get && { [ -z "$snap" ] || there snap; }; then
    echo "make $targets needs more than is installed here. Type this line, then try again:"
    echo
    echo "  $(line_to_type)"
  else
    echo "make $targets needs what is not installed here:"
    in_words
    printf %s "$others"
  fi
  case " $packages $snap " in
    *" chromium "*) printf '\nWithout the tests that need a browser: CHROMIUM=none make %s\n' "$targets" ;;
  esac
}

install() {
  sudo=
  if [ "$(id -u 2>/dev/null || echo 1)" -ne 0 ]; then
    there sudo || return 1
    sudo=sudo
  fi
  if [ -n "$packages" ]; then
    there apt-get || return 1
    echo "Installing with apt-get:$packages"
    log=$(mktemp) || return 1
    # shellcheck disable=SC2086 # several words each
    if ! { $sudo apt-get update; $sudo env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends $packages; } >"$log" 2>&1 </dev/null; then
      tail -n 20 "$log"
      rm -f "$log"
      return 1
    fi
    rm -f "$log"
  fi
  if [ -n "$snap" ]; then
    there snap || return 1
    echo "Installing with snap: $snap"
    $sudo snap install "$snap" || return 1
  fi
}

look() {
  packages= others= snap=
  there make || lacks make
  case " $needs " in *" python "*) check_python ;; esac
  case " $needs " in *" compiler "*) check_compiler ;; esac
  case " $needs " in *" browser "*) check_browser ;; esac
}

if [ "${1:-}" = --chromium ]; then
  find_chromium
  exit
fi
targets=$*
needs=
for target in "$@"; do needs="$needs $(needs_of "$target")"; done

look
[ -n "$packages$others$snap" ] || exit 0
if [ -z "$others" ] && { [ "$(id -u 2>/dev/null || echo 1)" -eq 0 ] || [ -n "${CI:-}" ]; }; then
  install && look && [ -z "$packages$others$snap" ] && exit 0
fi
explain >&2
exit 2
