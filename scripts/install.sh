#!/bin/sh
# Installs the program and the libraries it needs: install.sh PROGRAM PREFIX
#
# The program first looks for libtorch in ../lib/proxrl beside itself (model/build.rs), so PREFIX may be moved as a whole.
# With the CUDA libtorch only the program is installed: its libraries (several GB) stay in the cache, which it searches too.
set -eu

program=$1
prefix=$2

if [ ! -x "$program" ]; then
    echo "install: there is no $program; run \`make build\`" >&2
    exit 1
fi

libtorch=$(ldd "$program" | sed -n 's|.*=> \(.*\)/libtorch_cpu\.so .*|\1|p')
if [ -z "$libtorch" ]; then
    echo "install: $program does not find its libtorch_cpu.so; run \`make build\` again" >&2
    exit 1
fi

mkdir -p "$prefix/bin"
if [ -e "$libtorch/libtorch_cuda.so" ]; then
    echo "install: the CUDA libraries stay in $libtorch"
else
    mkdir -p "$prefix/lib/proxrl"
    for library in libtorch_cpu.so libc10.so libgomp.so.1 libcudart.so.13 libcupti.so.13; do
        if [ -e "$libtorch/$library" ]; then
            install -m 755 "$libtorch/$library" "$prefix/lib/proxrl/$library"
        fi
    done
    if [ -e "$libtorch/../build-version" ]; then
        install -m 644 "$libtorch/../build-version" "$prefix/lib/proxrl/build-version"
    fi
fi
install -m 755 "$program" "$prefix/bin/proxrl"
# Line numbers for backtraces are most of the file.
if command -v strip >/dev/null; then
    strip --strip-debug "$prefix/bin/proxrl"
fi
echo "install: $prefix/bin/proxrl"
