# The launcher with MindSpore's CPU backend: docker build -f docker/cpu.Dockerfile -t launcher:cpu .
FROM python:3.11-slim-bookworm

# libgomp1: MindSpore; openmpi-bin: --engine mpirun; openssh-client: --scheduler ssh.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 openmpi-bin openssh-client \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/launcher
COPY pyproject.toml README.md LICENSE ./
COPY launcher launcher
COPY templates templates
COPY configs configs
COPY rank_tables rank_tables
COPY docs docs
RUN pip install --no-cache-dir .

# Jobs belong to the user who runs the container: docker run --user "$(id -u):$(id -g)" -v "$PWD:/work" ...
RUN useradd --create-home --uid 1000 launcher
USER launcher
ENV LAUNCHER_CACHE=/tmp/launcher-cache
WORKDIR /work
ENTRYPOINT ["launcher"]
CMD ["--help"]
