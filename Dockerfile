# The program ssdlite with all that `make setup` installs, for the CPU:
#
#   docker build -t ssdlite .
#   docker run --rm -v "$PWD:/data" -w /data --shm-size 2g ssdlite train my_folder
#
# For CUDA, and with --gpus all in docker run:
#
#   docker build -t ssdlite --build-arg TORCH=default .
FROM python:3.12-slim-bookworm

ARG TORCH=cpu

# libgl1 and libglib2.0-0 are OpenCV's
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libgl1 libglib2.0-0 make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/ssdlite_d2
COPY . .
RUN PIP_NO_CACHE_DIR=1 make setup TORCH="$TORCH"

ENV PATH="/opt/ssdlite_d2/.venv/bin:$PATH"
ENTRYPOINT ["ssdlite"]
CMD ["--help"]
