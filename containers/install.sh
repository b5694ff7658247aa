#!/bin/sh
# Install mri2pet into /opt/mri2pet, beside what it needs, for which see dependencies.sh. The
# Dockerfile and singularity.def share this; both run it in a copy of the project.
#
#   install.sh app                      mri2pet itself
#   install.sh data LPIPS [TEMPLATE…]   the weights of LPIPS (yes, no, or try: go on without a network,
#                                       where LPIPS is n/a); templates beside the one that is in it
#   install.sh caches                   byte code, machine code of numba, matplotlib's fonts
set -eu

needed=/opt/dependencies
prefix=/opt/mri2pet
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

app() {
    "$needed/bin/pip" install --prefix "$prefix" --no-deps --no-warn-script-location .
    # What the caller's PYTHONPATH and ~/.local hold is none of our business: Apptainer lets both in.
    sed -i '1s/$/ -Es/' "$prefix"/bin/mri2pet "$prefix"/bin/mri2pet-simulate "$prefix"/bin/mri2pet-fetch \
        "$prefix"/bin/mri2pet-import
}

data() {
    lpips=$1
    shift
    case $lpips in
        yes) "$prefix/bin/mri2pet-fetch" --lpips "$prefix/lpips.safetensors" ;;
        try) "$prefix/bin/mri2pet-fetch" --lpips "$prefix/lpips.safetensors" || missing LPIPS ;;
        no) ;;
        *) echo "LPIPS is yes, no or try, not $lpips" >&2; exit 1 ;;
    esac
    for template in "$@"; do
        TEMPLATEFLOW_HOME=$prefix/templateflow "$prefix/bin/mri2pet-fetch" --template "$template" ||
            missing "template $template"
    done
    for atlas in Schaefer2018:200Parcels7Networks HOCPA:th25 HOSPA:th25; do
        TEMPLATEFLOW_HOME=$prefix/templateflow "$prefix/bin/mri2pet-fetch" --atlas "$atlas" ||
            missing "atlas $atlas"
    done
}

missing() {
    echo "WARNING: $1 could not be fetched. The image works without; build again where there is a network." >&2
}

caches() {
    mkdir -p "$prefix/cache/matplotlib" "$prefix/cache/numba" "$prefix/cache/nipype"
    TEMPLATEFLOW_HOME=$prefix/templateflow "$needed/bin/python" -c "import templateflow"  # its folder
    # -P: with the mri2pet that was installed, not the one in this folder, for numba goes by the path
    MPLCONFIGDIR=$prefix/cache/matplotlib NUMBA_CACHE_DIR=$prefix/cache/numba "$needed/bin/python" -P -c "
import matplotlib.font_manager
from bids_app.app.selftest import check_machines
print('one-class SVMs', check_machines())"
    "$needed/bin/python" -m compileall -q "$prefix/lib"
}

step=$1
shift
"$step" "$@"
