# syntax=docker/dockerfile:1
# The image of every pod: docker build --target cpu --tag tomoray:dev .   (or --target cuda)
# Packages are those of requirements.lock, but for what only tests want. Its Ray is `ray.version` of helm/tomoray.

FROM python:3.12.12-slim-trixie AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# KubeRay's probes call bash and wget; scikit-image and torch want libgomp. Debian's archive keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash tomoray

# Torch comes first: it is most of the image, and changes least.
# Its CPU build is at PyTorch's own index; what it needs comes later, with the rest.
FROM base AS torch-cpu
RUN --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --no-deps --constraint /requirements.lock --index-url https://download.pytorch.org/whl/cpu torch

FROM base AS torch-cuda
RUN --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --constraint /requirements.lock torch

# The page that serving answers at /.
FROM node:24.11.1-trixie-slim AS page
WORKDIR /viewer
COPY serving/viewer ./
RUN npm ci --no-audit --no-fund && npm run build

FROM base AS wheel
COPY . /tomoray
COPY --from=page /viewer/dist /tomoray/serving/viewer/dist
RUN pip wheel --no-deps --wheel-dir /wheels /tomoray

FROM torch-cpu AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --constraint /requirements.lock \
        "$(echo /wheels/tomoray-*.whl)[export,idc,kubernetes,queues,serving,tracking]"
USER 1000
WORKDIR /home/tomoray
CMD ["tomoray", "--help"]

FROM torch-cuda AS cuda
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --constraint /requirements.lock \
        "$(echo /wheels/tomoray-*.whl)[export,idc,kubernetes,queues,serving,tracking]"
# What NVIDIA's runtime lets a container see of the driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home/tomoray
CMD ["tomoray", "--help"]
