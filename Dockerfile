# mri2pet as a container:
#
#   docker build -t mri2pet .                                        for CPUs
#   docker build -t mri2pet:cuda --build-arg TORCH_INDEX=none .      PyPI's torch, with CUDA
#
# Build arguments: TORCH_INDEX, the package index for torch; LPIPS: yes, no or try (see install.sh);
# TEMPLATES, names of TemplateFlow templates besides the included one; VERSION, REVISION and CREATED,
# for the labels.
#
# The last two layers of the image are the dependencies, which are large, and mri2pet itself, which is
# small. The first is rebuilt only if dependencies.sh, constraints.txt or the dependencies in
# pyproject.toml change, so that a new version of the code only adds a small layer.

FROM python:3.11-slim-bookworm AS python
RUN python -m compileall -q /usr/local/lib/python3.11

FROM python AS requirements
WORKDIR /src
COPY containers/dependencies.sh containers/
COPY pyproject.toml ./
RUN sh containers/dependencies.sh list

FROM python AS dependencies
# binutils has strip, which dependencies.sh uses to shrink libraries
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY containers/dependencies.sh containers/
COPY constraints.txt ./
COPY --from=requirements /src/requirements.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN sh containers/dependencies.sh install "$TORCH_INDEX"

FROM dependencies AS app
COPY containers/install.sh containers/
COPY pyproject.toml README.md LICENSE ./
COPY bids_app bids_app
COPY mri2pet mri2pet
RUN sh containers/install.sh app
ARG LPIPS=yes
ARG TEMPLATES=
# hadolint ignore=SC2086
RUN sh containers/install.sh data "$LPIPS" $TEMPLATES && sh containers/install.sh caches

FROM python
COPY --from=dependencies /opt/dependencies /opt/dependencies
COPY --from=app /opt/mri2pet /opt/mri2pet
ARG VERSION=0.2.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="mri2pet" \
      org.opencontainers.image.description="BIDS App: synthetic FDG PET from T1w MRI, and voxelwise anomaly detection in FDG PET" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="https://github.com/mri2pet/mri2pet" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/mri2pet/bin:/opt/dependencies/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/opt/mri2pet/cache/matplotlib \
    NIPYPE_NO_ET=1 \
    NUMBA_CACHE_DIR=/opt/mri2pet/cache/numba \
    TEMPLATEFLOW_HOME=/opt/mri2pet/templateflow \
    TEMPLATEFLOW_AUTOUPDATE=off \
    MRI2PET_LPIPS_WEIGHTS=/opt/mri2pet/lpips.safetensors \
    MRI2PET_CONTAINER=mri2pet:$VERSION
ENTRYPOINT ["mri2pet"]
