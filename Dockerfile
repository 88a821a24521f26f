# The server on a CPU. Build:  docker build -t diffgr2 .
# Run:  docker run -p 8000:8000 -v "$PWD/runs/demo/bundle:/model:ro" \
#         -e DIFFGR2_API_KEYS=a-key-of-16-characters-or-more diffgr2
# deploy/compose.yaml runs it without rights, with a read-only root and bounds.
FROM python:3.11-slim AS build
WORKDIR /build
COPY locks/serve.txt ./
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --create-home --uid 10001 diffgr2
USER diffgr2
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# Options of `diffgr2 serve` are settings of the environment: `docker run -e DIFFGR2_LOG=true …`.
ENV DIFFGR2_HOST=0.0.0.0 DIFFGR2_PORT=8000 DIFFGR2_MODEL=/model
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=8)"]
# SIGTERM drains; give it at least the drain time (docker stop -t 40).
STOPSIGNAL SIGTERM
ENTRYPOINT ["diffgr2", "serve"]
