# The app as an ordinary user on port 7860, on a GPU where there is one and on the CPU otherwise. What it
# writes goes to /data.
#
#   docker build -t diffusion-preview .
#   docker run -p 7860:7860 -v preview:/data --stop-timeout 40 diffusion-preview        # add --gpus all for a GPU
#
# PyTorch comes from pip's own index, with CUDA. For a CPU, where it is much smaller, or for another CUDA, name
# PyTorch's index for that: docker build --build-arg TORCH_INDEX=ADDRESS .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=""

RUN useradd --create-home --uid 1000 app && mkdir -m 700 /data && chown app:app /data
USER 1000
WORKDIR /home/app/diffusion-preview
ENV PATH=/home/app/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# From what changes least to what changes most: PyTorch, the other requirements, the app with its model.
COPY --chown=app:app requirements.txt ./
RUN python3 -m venv /home/app/venv \
    && grep '^torch==' requirements.txt > /tmp/torch.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r /tmp/torch.txt
RUN pip install --no-cache-dir -r requirements.txt
COPY --chown=app:app . ./

ENV DIFFUSION_PREVIEW_HOST=0.0.0.0 DIFFUSION_PREVIEW_PORT=7860 DIFFUSION_PREVIEW_DATA=/data
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "app.server.healthy"]
CMD ["python", "app.py"]
