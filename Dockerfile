# The app on a CPU, as an ordinary user, on port 7860. What it writes goes to /data.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 app && mkdir /data && chown app:app /data
USER app
WORKDIR /home/app/diffusion-preview
ENV PATH=/home/app/.local/bin:$PATH PYTHONUNBUFFERED=1

# Requirements first: editing the code does not install them again.
COPY --chown=app:app requirements.txt .
RUN pip install --user --no-cache-dir -r requirements.txt
COPY --chown=app:app . .

VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"]
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "7860", "--data", "/data"]
