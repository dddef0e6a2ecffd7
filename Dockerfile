# A server of one model: docker build -t unime . && docker run -p 8000:8000 -v /models:/models:ro -e UNIME_API_KEYS=... unime /models/mine
# For a GPU, take an image with CUDA and Python 3.11 as the base, and leave out the index of CPU builds.
FROM python:3.11-slim

WORKDIR /app
COPY . /app
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch \
 && pip install --no-cache-dir -c constraints.txt ".[serve]"

# nothing of the server needs to write, and nothing needs to be root
RUN useradd --create-home unime
USER unime
WORKDIR /home/unime

EXPOSE 8000
HEALTHCHECK --start-period=300s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["unime", "serve", "--host", "0.0.0.0", "--port", "8000"]
