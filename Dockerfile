# Two images: `tracking`, MLflow's server, and `twinsqueeze`, the commands. compose.yaml uses both.
# Never built with Docker so far: CI runs the same commands without it (tests/test_compose.py).
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --create-home --uid 1000 twinsqueeze && install -d -o twinsqueeze /artifacts /data /home/twinsqueeze/.cache
COPY requirements.txt /src/

FROM base AS tracking
RUN pip install --constraint /src/requirements.txt mlflow "psycopg[binary]>=3.2"
USER twinsqueeze
WORKDIR /data
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]

FROM base AS twinsqueeze
RUN pip install --requirement /src/requirements.txt
COPY pyproject.toml README.md LICENSE /src/
COPY experiments /src/experiments
COPY twinsqueeze /src/twinsqueeze
RUN pip install --no-deps /src
USER twinsqueeze
WORKDIR /data
ENTRYPOINT ["twinsqueeze"]
CMD ["--help"]
