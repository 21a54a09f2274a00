"""An exported detector as an HTTP service, without this package: python serve.py detector.onnx

    curl --data-binary @photo.jpg http://127.0.0.1:8000/

An image a request. Put it behind a server that knows who asks. Needs onnxruntime, pillow, starlette and uvicorn.
"""

import argparse
import asyncio
import io
import warnings

import uvicorn
from PIL import Image
from run_exported import load, pixels, verdict
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

MOST_BYTES, MOST_PIXELS, CONNECTIONS = 16 * 2**20, 25_000_000, 32  # of an upload, of an image, at once
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
BOMBS = Image.DecompressionBombError, Image.DecompressionBombWarning
Image.MAX_IMAGE_PIXELS, turns = MOST_PIXELS, asyncio.Semaphore(2)  # images in memory
warnings.simplefilter("error", Image.DecompressionBombWarning)


async def health(request):
    return JSONResponse({"status": "ok", "classes": len(about["classes"]), "threshold": about["threshold"]})


async def answer(request):
    upload = bytearray()
    async for chunk in request.stream():
        upload += chunk
        if len(upload) > MOST_BYTES:
            raise HTTPException(413, f"an upload may have {MOST_BYTES} bytes")
    async with turns:
        return JSONResponse(await run_in_threadpool(said, upload))


def said(upload):
    try:
        given = pixels(Image.open(io.BytesIO(upload), formats=FORMATS), about)
    except BOMBS:
        raise HTTPException(413, f"an image may have {MOST_PIXELS} pixels") from None
    except Exception:  # decoders fail on damaged files in any way
        raise HTTPException(400, "this cannot be read as an image") from None
    return verdict(session, about, given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    session, about = load((asked := parser.parse_args()).detector)
    app = Starlette(routes=[Route("/", answer, methods=["POST"]), Route("/health", health)])
    uvicorn.run(app, host=asked.host, port=asked.port, limit_concurrency=CONNECTIONS)
