#!/bin/sh
# Looks for the Python that everything runs on and says what to install where it is missing; what a
# build needs besides, setup.py looks for.
# Usage: preflight.sh [PYTHON]    Ends with 0 if all is there, else with 1.

python=${1:-python3}

lacks() { # what is missing, then the packages: Debian's and Ubuntu's, Fedora's
    printf 'Missing: %s.\n    Debian, Ubuntu:  apt-get install %s\n' "$1" "$2" >&2
    printf '    Fedora:          dnf install %s\n    macOS:           brew install python\n' "$3" >&2
    exit 1
}

found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    lacks "Python 3.10 or later ('$python' is ${found:-missing}; name another: make PYTHON=...)" \
        "python3.11 python3.11-venv python3.11-dev" "python3.11 python3.11-devel"
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    lacks "Python's modules venv and ensurepip (for $found)" \
        "python$found-venv" "python3-libs python3-pip"
fi
