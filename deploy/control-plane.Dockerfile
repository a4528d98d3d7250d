# An image of the control plane for Kubernetes. The partition is not in the image; it is mounted.
#     docker build -f deploy/control-plane.Dockerfile -t REGISTRY/faasmoe:0.1.0 .
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/faasmoe
# torch without CUDA is a tenth of the size.
RUN /opt/faasmoe/bin/pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY . .
RUN /opt/faasmoe/bin/pip install --no-cache-dir '.[postgres]'

FROM python:3.11-slim
COPY --from=build /opt/faasmoe /opt/faasmoe
RUN useradd --uid 10001 --create-home app
USER 10001
ENV PATH=/opt/faasmoe/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
ENTRYPOINT ["faasmoe"]
