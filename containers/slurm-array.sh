#!/bin/bash
# The participant level as a SLURM array job, with one task per participant:
#
#   sbatch --array=1-$(ls -d BIDS_DIR/sub-*/ | wc -l) slurm-array.sh BIDS_DIR OUTPUT_DIR [OPTIONS]
#
# OPTIONS are passed to mri2pet. Environment variables: SIF is the container, by default mri2pet.sif in
# the current folder; COMMAND, if set, starts an installed mri2pet instead. WORK is a folder for
# intermediate files, one per OUTPUT_DIR, by default OUTPUT_DIR/.work; they are deleted once they are
# no longer needed. A task that was killed resumes when it is submitted again, on any node that has
# the same WORK.
#SBATCH --job-name=mri2pet
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=02:00:00
#SBATCH --output=mri2pet-%A_%a.log
set -euo pipefail

mkdir -p "$2" ${WORK:+"$WORK"} # bind mounts must exist
bids=$(realpath "$1")
out=$(realpath "$2")
shift 2
participants=("$bids"/sub-*/)
label=$(basename "${participants[SLURM_ARRAY_TASK_ID - 1]}")
cpus=${SLURM_CPUS_PER_TASK:-1}
given=(participant --participant-label "$label" --clean-workdir --nprocs "$cpus")

# An isolated container does not see the memory that SLURM grants. Nine tenths of it are used, as
# mri2pet does by default; the rest is a reserve for memory that is not accounted for.
granted=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * cpus))} # MiB
if [ "$granted" -gt 0 ]; then
    tenths=$((granted * 9 / 1024)) # of a GiB
    given+=(--mem-gb "$((tenths / 10)).$((tenths % 10))")
fi
given+=("$@")

if [ -n "${COMMAND:-}" ]; then
    $COMMAND "$bids" "$out" "${given[@]}" ${WORK:+-w "$WORK"}
else
    apptainer run --cleanenv --containall --no-home \
        -B "$bids:/bids:ro" -B "$out:/out" ${WORK:+-B "$(realpath "$WORK"):/work"} \
        "${SIF:-mri2pet.sif}" /bids /out "${given[@]}" ${WORK:+-w /work}
fi
