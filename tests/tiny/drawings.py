"""Small drawings, and what colour lies where in them."""

import numpy as np
from PIL import Image, ImageDraw


def disc(color: str, eye: str = "white") -> np.ndarray:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 6, 57, 57), fill=color)
    draw.ellipse((28, 28, 35, 35), fill=eye)
    return np.asarray(image)


def hue_at(picture: np.ndarray, x: int = 32, y: int = 12) -> tuple[float, float, float]:
    h, s, v = Image.fromarray(picture).convert("HSV").getpixel((x, y))
    return h / 255 * 360, s / 255, v / 255
