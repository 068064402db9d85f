#!/bin/sh
# Looks for what building softce_fast needs and says what to install where something is missing.
# Usage: preflight.sh [PYTHON]    Ends with 0 if all is there, else with 1.

python=${1:-python3}
missing=0

lacks() { # what is missing, then the packages: Debian's and Ubuntu's, Fedora's, macOS
    missing=1
    {
        printf 'Missing: %s.\n' "$1"
        printf '    Debian, Ubuntu:  apt-get install %s\n' "$2"
        printf '    Fedora:          dnf install %s\n' "$3"
        printf '    macOS:           %s\n' "$4"
    } >&2
}

if ! command -v "$python" >/dev/null 2>&1; then
    lacks "Python 3.10 or later (there is no command '$python'; name another: make PYTHON=...)" \
        "python3 python3-venv python3-dev" "python3 python3-devel" "brew install python"
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    lacks "Python 3.10 or later ('$python' is ${found:-broken}; name another: make PYTHON=...)" \
        "python3.11 python3.11-venv python3.11-dev" "python3.11 python3.11-devel" \
        "brew install python"
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    lacks "Python's modules venv and ensurepip (for $version)" \
        "python$version-venv" "python3-libs python3-pip" "brew install python"
fi

# The compiler that setuptools takes: $CC, else the one that Python itself was built with.
compiler=$("$python" -c 'import os, sysconfig
print(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")')
program=${compiler%% *}
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

if ! command -v "$program" >/dev/null 2>&1; then
    lacks "a C compiler (there is no command '$program'; name another: make CC=...)" \
        "gcc libc6-dev" "gcc" "xcode-select --install"
    compiler=
fi
if [ ! -f "$include/Python.h" ]; then
    lacks "Python.h (for Python $version)" \
        "python$version-dev" "python3-devel" "brew install python"
    compiler=
fi

if [ -n "$compiler" ]; then
    folder=$(mktemp -d) || exit 1
    trap 'rm -rf "$folder"' EXIT
    printf '#include <Python.h>\nint answer(void) { return PY_MAJOR_VERSION; }\n' >"$folder/a.c"
    # shellcheck disable=SC2086  # the compiler and the flags may be several words
    if ! $compiler $CFLAGS -I"$include" -c "$folder/a.c" -o "$folder/a.o" 2>"$folder/errors"; then
        lacks "a C compiler that works ('$compiler' fails on a line of C)" \
            "gcc libc6-dev" "gcc glibc-devel" "xcode-select --install"
        sed 's/^/        /' "$folder/errors" >&2
    else
        printf '#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' \
            >"$folder/b.c"
        # shellcheck disable=SC2086
        if ! $compiler $CFLAGS -fopenmp "$folder/b.c" -o "$folder/b" $LDFLAGS 2>/dev/null &&
            ! $compiler $CFLAGS -Xpreprocessor -fopenmp "$folder/b.c" -o "$folder/b" \
                $LDFLAGS -lomp 2>/dev/null; then
            {
                echo "Note: '$compiler' has no OpenMP, so softce_fast will run on one core only."
                echo "    Debian, Ubuntu:  apt-get install libgomp1 (clang: libomp-dev)"
                echo "    Fedora:          dnf install libgomp (clang: libomp-devel)"
                echo "    macOS:           brew install libomp, and its folders in CFLAGS, LDFLAGS"
            } >&2
        fi
    fi
fi

exit $missing
