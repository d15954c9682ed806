# The locked environment and the book of the committed notebooks:
#   docker build --tag companion . && docker run --rm --publish 8000:8000 companion
# serves it at http://localhost:8000. `docker run --rm companion python -m nfbook build smoke` trains and builds anew.
FROM python:3.12-slim

# pip reads it. PyTorch's index of CPU builds, given by --build-arg, saves gigabytes of CUDA libraries.
ARG PIP_EXTRA_INDEX_URL=""

RUN useradd --create-home --uid 1000 reader && install --directory --owner=reader /book
WORKDIR /book

# Before the sources, so that a change of those does not install everything again.
COPY requirements.lock requirements.hashes ./
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.hashes \
    && pip install --no-cache-dir --requirement requirements.lock

COPY --chown=reader . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

USER 1000
RUN jupyter-book build book -W -n --keep-going --quiet

EXPOSE 8000
CMD ["python", "-m", "http.server", "8000", "--directory", "_build/html"]
