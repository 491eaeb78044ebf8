# The image of `accounts` in compose.yaml: makes the accounts of the services at the servers.
ARG PYTHON=python:3.13.7-slim-bookworm

FROM ${PYTHON}
WORKDIR /postbus
COPY tools/accounts/requirements.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY . .
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
ENTRYPOINT ["python", "-m", "tools.accounts"]
