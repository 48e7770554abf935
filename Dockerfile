# An image for CPUs, or for one kind of accelerator:
#
#   docker build -t medtl .
#   docker build -t medtl:cuda --build-arg ACCELERATOR=cuda .       # CUDA 12
#   docker build -t medtl:cuda13 --build-arg ACCELERATOR=cuda13 .
#   docker build -t medtl:tpu --build-arg ACCELERATOR=tpu .
#
#   docker run --rm -v "$PWD/runs:/work/runs" medtl                 # the embedded experiment
#   docker run --rm --gpus=all -v /data:/data:ro -v "$PWD:/work" medtl:cuda --config=mine.py
#
# The CUDA libraries come with JAX; the machine brings the driver alone.
FROM python:3.13-slim

ARG ACCELERATOR=""

WORKDIR /opt/medtl
COPY pyproject.toml README.md LICENSE launch.py ./
COPY medtl medtl
COPY configs configs
RUN python -m pip install --no-cache-dir ".${ACCELERATOR:+[$ACCELERATOR]}" \
    && useradd --create-home --uid 1000 medtl \
    && mkdir -p /work /cache \
    && chown medtl /work /cache

USER medtl
# Mount a folder there to keep decoded images, features and compiled programs.
ENV XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
WORKDIR /work
# No shell in between, so that SIGTERM arrives.
ENTRYPOINT ["medtl"]
