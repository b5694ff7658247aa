#!/bin/sh
# Install mri2pet into /opt/mri2pet. The Dockerfile and singularity.def share this; both run it in
# a copy of the project.
#
#   install.sh dependencies INDEX       what pyproject.toml asks for, as constraints.txt pins it;
#                                       torch from INDEX as well, unless that is none: the torch
#                                       of PyPI holds CUDA
#   install.sh app                      mri2pet itself
#   install.sh data LPIPS [TEMPLATE…]   LPIPS is yes or no; without a network this says so, and the
#                                       image works with the template that is in it, LPIPS is n/a
#   install.sh caches                   byte code, machine code of numba, matplotlib's fonts
set -eu

prefix=/opt/mri2pet
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

dependencies() {
    index=$1
    [ "$index" = none ] && index=
    python3 -m venv "$prefix"
    python3 -c "
import tomllib
with open('pyproject.toml', 'rb') as file:
    print(*tomllib.load(file)['project']['dependencies'], sep='\n')" > /tmp/requirements.txt
    "$prefix/bin/pip" install --constraint constraints.txt ${index:+--extra-index-url "$index"} torch
    "$prefix/bin/pip" install --constraint constraints.txt --requirement /tmp/requirements.txt
    rm /tmp/requirements.txt
}

app() {
    "$prefix/bin/pip" install --constraint constraints.txt --no-deps .
    # What the caller's PYTHONPATH and ~/.local hold is none of our business: Apptainer lets both in.
    sed -i '1s/$/ -Es/' "$prefix"/bin/mri2pet "$prefix"/bin/mri2pet-simulate "$prefix"/bin/mri2pet-fetch
}

data() {
    lpips=$1
    shift
    if [ "$lpips" = yes ]; then
        "$prefix/bin/mri2pet-fetch" --lpips "$prefix/lpips.safetensors" || missing LPIPS
    fi
    for template in "$@"; do
        TEMPLATEFLOW_HOME=$prefix/templateflow "$prefix/bin/mri2pet-fetch" --template "$template" ||
            missing "template $template"
    done
}

missing() {
    echo "WARNING: $1 could not be fetched. The image works without; build again where there is a network." >&2
}

caches() {
    mkdir -p "$prefix/cache/matplotlib" "$prefix/cache/numba" "$prefix/cache/nipype"
    TEMPLATEFLOW_HOME=$prefix/templateflow "$prefix/bin/python" -c "import templateflow"  # its folder
    MPLCONFIGDIR=$prefix/cache/matplotlib NUMBA_CACHE_DIR=$prefix/cache/numba "$prefix/bin/python" -c "
import matplotlib.font_manager
from bids_app.app.selftest import check_machines
print('one-class SVMs', check_machines())"
    "$prefix/bin/python" -m compileall -q "$prefix/lib" || true  # some files are for older Pythons
}

step=$1
shift
"$step" "$@"
