"""Ask an exported detector about images, without this package: python run_exported.py detector.onnx PHOTO ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def load(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}


def pixels(image, about):
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image) * np.float32(255 / 65535)).round().clip(0, 255).astype(np.uint8))
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    image = ImageOps.fit(image, (about["resize"], about["resize"]), Image.Resampling[about["resample"].upper()])
    edge, side = (about["resize"] - about["image_size"]) // 2, about["image_size"]
    return np.asarray(image.crop((edge, edge, edge + side, edge + side))).transpose(2, 0, 1)


def verdict(session, about, pixels):
    _, probabilities, score, *is_ood = session.run(None, {"pixels": pixels[None]})
    best, flag = probabilities[0].argmax(), bool(is_ood[0][0]) if is_ood else None
    label, probability = about["classes"][best], float(probabilities[0, best])
    return {"label": label, "probability": probability, "score": float(score[0]), "is_ood": flag}


if __name__ == "__main__":
    session, about = load(sys.argv[1])
    for name in sys.argv[2:]:
        print(name, json.dumps(verdict(session, about, pixels(Image.open(name), about))))
