#!/bin/sh
# Install mri2pet into /opt/mri2pet; for its dependencies, see dependencies.sh. Used by the Dockerfile
# and singularity.def, which run it in a copy of the project.
#
#   install.sh app                      mri2pet itself
#   install.sh data LPIPS [TEMPLATE…]   LPIPS weights (yes, no, or try: continue if the download fails;
#                                       LPIPS is then n/a), and templates besides the included one
#   install.sh caches                   bytecode, numba's machine code, matplotlib's font cache
set -eu

needed=/opt/dependencies
prefix=/opt/mri2pet
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

app() {
    "$needed/bin/pip" install --prefix "$prefix" --no-deps --no-warn-script-location .
    # Ignore the caller's PYTHONPATH and ~/.local, which Apptainer passes on.
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
    echo "WARNING: $1 could not be fetched. The image works without it; rebuild with network access to include it." >&2
}

caches() {
    mkdir -p "$prefix/cache/matplotlib" "$prefix/cache/numba"
    TEMPLATEFLOW_HOME=$prefix/templateflow "$needed/bin/python" -c "import templateflow"  # creates its folder
    # -P: import the installed mri2pet, not the one in this folder, because numba's cache depends on paths
    MPLCONFIGDIR=$prefix/cache/matplotlib NUMBA_CACHE_DIR=$prefix/cache/numba "$needed/bin/python" -P -c "
import matplotlib.font_manager
from bids_app.app.selftest import check_machines
print('one-class SVMs', check_machines())"
    "$needed/bin/python" -m compileall -q "$prefix/lib"
}

step=$1
shift
"$step" "$@"
