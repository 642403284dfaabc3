# dada on NVIDIA GPUs. No test builds this image.
#
#   docker build -t dada .
#   mkdir -p data experiments pretrained_models      # as you, or Docker makes them as root
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#       -v "$PWD/data:/dada/data:ro" -v "$PWD/experiments:/dada/experiments" \
#       -v "$PWD/pretrained_models:/dada/pretrained_models:ro" dada scripts/train.py --cfg synthia2cityscapes.yml
#
# Without a command it says what it found of the machine. --ipc=host gives loader processes the shared memory that they need.
# The torch package brings its own CUDA libraries; the driver on the host must be new enough for them.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# A compiler is what TRAIN.COMPILE needs. Ubuntu's archive keeps no older versions of a package, so that one that is named would soon
# be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /dada
# The packages first: they change less often than the code, and Docker keeps this layer.
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps -e . \
    && mkdir -p data experiments pretrained_models \
    && chown ubuntu:ubuntu data experiments

# Caches at a place that any user of `--user` can write to.
ENV XDG_CACHE_HOME=/tmp/cache TORCH_HOME=/tmp/cache/torch HF_HOME=/tmp/cache/huggingface \
    MPLCONFIGDIR=/tmp/cache/matplotlib TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor
# The user ubuntu, by number: a cluster may ask whether it is root.
USER 1000
ENTRYPOINT ["python"]
CMD ["scripts/env.py"]
