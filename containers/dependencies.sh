#!/bin/sh
# Install the dependencies of mri2pet into /opt/dependencies, a virtual environment. Used by the
# Dockerfile and singularity.def, which run it in a copy of the project; mri2pet itself is installed
# by install.sh, a separate script, so that changes to it do not rebuild the layer of dependencies.
#
#   dependencies.sh list            write the dependencies in pyproject.toml to requirements.txt
#   dependencies.sh install INDEX   install requirements.txt, pinned by constraints.txt; INDEX is an
#                                   additional index for torch, or none: PyPI's torch includes CUDA
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
    # If both indices have a version, pip may choose PyPI's, with several GB of CUDA.
    if [ -n "$index" ] && [ "$("$prefix/bin/python" -c "import torch; print(torch.version.cuda)")" != None ]; then
        echo "pip installed torch with CUDA, not the build of $index; TORCH_INDEX=none builds an image with CUDA" >&2
        exit 1
    fi
    echo "/opt/mri2pet/$packages" > "$prefix/$packages/mri2pet.pth" # installed later, by install.sh
    trim
    "$prefix/bin/python" -m compileall -q "$prefix/lib" || true # some files are for other Python versions
}

# Remove what no run needs, a fifth of the total: tests of packages, C headers and type stubs, torch's
# programs, and, if strip is installed, symbols for debuggers. Libraries in *.libs were rewritten by
# auditwheel and are left unchanged.
trim() {
    if command -v strip > /dev/null; then
        find "$prefix/$packages" -name '*.so' -type f -not -path '*.libs/*' -exec strip --strip-unneeded {} +
    fi
    find "$prefix/$packages" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
    find "$prefix/$packages" -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.a' \) -delete
    rm -rf "$prefix/$packages/torch/include" "$prefix/$packages/torch/share"
    find "$prefix/$packages/torch/bin" -type f ! -name torch_shm_manager -delete  # torch needs that one
}

step=$1
shift
"$step" "$@"
