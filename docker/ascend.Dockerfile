# The launcher on Ascend cards, from the vendor's image with CANN. Not yet run.
#   docker build -f docker/ascend.Dockerfile --build-arg CANN_IMAGE=quay.io/ascend/cann:TAG -t launcher:ascend .
# TAG is the one of your CANN, chip and Python 3.11 (https://quay.io/repository/ascend/cann?tab=tags); mindspore 2.9.0 takes CANN 9.0.0.
ARG CANN_IMAGE
FROM ${CANN_IMAGE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 openssh-client iproute2 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/launcher
COPY pyproject.toml README.md LICENSE ./
COPY launcher launcher
COPY templates templates
COPY configs configs
COPY rank_tables rank_tables
COPY docs docs
RUN pip install --no-cache-dir .

# CANN's environment is set by its own script, at each start. The devices are given by Ascend Docker Runtime, or by
# --device /dev/davinci0 ... --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc.
ENV LAUNCHER_CACHE=/tmp/launcher-cache
WORKDIR /work
ENTRYPOINT ["/bin/bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh && exec launcher \"$@\"", "launcher"]
CMD ["--help"]
