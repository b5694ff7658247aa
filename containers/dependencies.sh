#!/bin/sh
# Install what mri2pet needs into /opt/dependencies, a virtual environment. The Dockerfile and
# singularity.def share this, and install.sh for mri2pet itself; both run it in a copy of the
# project. It is a script of its own so that a change of the other does not make this layer anew.
#
#   dependencies.sh list            write what pyproject.toml asks for to requirements.txt
#   dependencies.sh install INDEX   requirements.txt, as constraints.txt pins it; torch from INDEX as
#                                   well, unless that is none: the torch of PyPI holds CUDA
set -eu

prefix=/opt/dependencies
packages=lib/python3.11/site-packages
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

list() {
    python3 -c "
import tomllib
with open('pyproject.toml', 'rb') as file:
    print(*tomllib.load(file)['project']['dependencies'], sep='\n')" > requirements.txt
}

install() {
    index=$1
    [ "$index" = none ] && index=
    python3 -m venv "$prefix"
    "$prefix/bin/pip" install --constraint constraints.txt ${index:+--extra-index-url "$index"} torch
    "$prefix/bin/pip" install --constraint constraints.txt --requirement requirements.txt
    # where both indices have a version, pip may take the other's: several GB of CUDA for nothing
    if [ -n "$index" ] && [ "$("$prefix/bin/python" -c "import torch; print(torch.version.cuda)")" != None ]; then
        echo "torch with CUDA came, not that of $index; TORCH_INDEX=none builds an image with CUDA" >&2
        exit 1
    fi
    echo "/opt/mri2pet/$packages" > "$prefix/$packages/mri2pet.pth" # nothing is there as yet
    trim
    "$prefix/bin/python" -m compileall -q "$prefix/lib" || true # some files are for older Pythons
}

# What no run imports: tests of packages, what C programs and type checkers read of them, torch's own
# programs, and symbols that debuggers alone read, where there is a program to take them out. They are
# a fifth of all. Libraries in *.libs, which auditwheel has rewritten, are left as they are.
trim() {
    if command -v strip > /dev/null; then
        find "$prefix/$packages" -name '*.so' -type f -not -path '*.libs/*' -exec strip --strip-unneeded {} +
    fi
    find "$prefix/$packages" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
    find "$prefix/$packages" -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.a' \) -delete
    rm -rf "$prefix/$packages/torch/include" "$prefix/$packages/torch/share"
    find "$prefix/$packages/torch/bin" -type f ! -name torch_shm_manager -delete  # torch looks for that one
}

step=$1
shift
"$step" "$@"
