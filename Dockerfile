# prefmix in a container. Two targets:
#
#   docker build --target cpu  -t prefmix:cpu .
#   docker build --target cuda -t prefmix:cuda .
#
# The server does not run as root, and the root file system may be read-only: the server writes to
# /tmp, to the volume /cache (hub downloads, compiled kernels) and, if it has a weights store, to the
# store's volume.

# --- the base of both targets ----------------------------------------------------------------
FROM debian:12.12-slim AS runtime
# The C++ compiler and the headers are needed at run time: torch.compile on CPUs and Triton on GPUs
# compile a model's kernels at its first start.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ libnuma1 python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --home-dir /cache --no-create-home prefmix \
    && install -d -o prefmix -g prefmix /cache /var/lib/prefmix \
    && ln -s /opt/prefmix/lib/python3.11/site-packages/prefmix/policies/demo /demo
ENV PATH=/opt/prefmix/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    VLLM_CONFIG_ROOT=/cache/vllm-config \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    XDG_CACHE_HOME=/cache/xdg \
    VLLM_NO_USAGE_STATS=1

# --- both images, without the packages ---------------------------------------------------------
FROM runtime AS server
USER 10001:10001
WORKDIR /tmp
VOLUME ["/cache", "/var/lib/prefmix"]
EXPOSE 8000
# http.client asks no proxy, as urllib would if the container's environment names one.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["prefmix"]
# Without an API key this ends at once: give one with `-e PREFMIX_API_KEY_FILE=...` and a mounted file.
CMD ["serve", "/demo/serve.yaml", "--host", "0.0.0.0"]

# --- the builds, of which the images take /opt/prefmix ------------------------------------------
FROM runtime AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/prefmix
WORKDIR /src
COPY requirements/ requirements/

FROM build AS build-cpu
# The same build as in scripts/setup.sh. TORCH_INDEX may name a mirror of that index.
ARG TORCH=2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --extra-index-url "$TORCH_INDEX" "torch==$TORCH"
# The pinned packages without the tools of development.
RUN grep -vixEf requirements/development.patterns requirements/cpu.lock >/tmp/server.lock \
    && pip install --no-deps -r /tmp/server.lock
COPY . .
RUN pip install --no-deps --no-build-isolation . && pip uninstall -y pip

FROM build AS build-cuda
RUN grep -vixEf requirements/development.patterns requirements/gpu.txt >/tmp/server.txt \
    && pip install -r /tmp/server.txt
COPY . .
RUN pip install --no-deps --no-build-isolation . && pip uninstall -y pip

# --- the images --------------------------------------------------------------------------------
FROM server AS cuda
# The container toolkit mounts the driver; the CUDA libraries come with torch.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/prefmix /opt/prefmix

FROM server AS cpu
COPY --from=build-cpu /opt/prefmix /opt/prefmix
