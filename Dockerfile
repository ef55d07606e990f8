# A server for a class: JupyterLab with the book, its exercises and all they need, on the processor alone. No one in it is root.
#
#   docker build -t llama3-kv-cache .
#   docker run --rm -p 127.0.0.1:8888:8888 llama3-kv-cache     # for one person; the address is printed
#
# For a class, name the image in JupyterHub, as `c.DockerSpawner.image` for example: it holds jupyterhub-singleuser.
# Give --build-arg JUPYTERHUB=… where the hub has another version.
FROM python:3.12-slim-bookworm

ARG JUPYTERHUB=6.1.1

ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 --shell /bin/bash learner

WORKDIR /opt/llama3-kv-cache

# What is installed first changes least: a new chapter builds none of this again.
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY tools/environment.sh tools/torch-source.sh tools/class-server.sh tools/
COPY .binder .binder
COPY llama3_edu llama3_edu
RUN python -m venv /opt/venv && .binder/postBuild && \
    python -m pip --disable-pip-version-check install --quiet --constraint requirements.txt "jupyterhub==$JUPYTERHUB"

COPY book book

USER learner
WORKDIR /home/learner
EXPOSE 8888
ENTRYPOINT ["/opt/llama3-kv-cache/tools/class-server.sh"]
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
