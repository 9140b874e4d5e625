"""What eyes and pages make of a colour: distances as they are seen, colour blindness, the filter of the dark theme."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

INVERT = 0.92  # of the dark theme's filter in book.css, followed by a turn of the hue by 180°
TURN = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])  # the filter effects standard
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
# Machado, Oliveira, Fernandes (2009), severity 1, for linear RGB
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def rgb(colours: list[str]) -> np.ndarray:
    """(n, 3) in [0, 1]."""
    return np.array([to_rgb(c) for c in colours])


def dark(colours: np.ndarray) -> np.ndarray:
    """What the dark theme's filter shows."""
    inverted = np.clip(INVERT - (2 * INVERT - 1) * colours, 0, 1)
    return np.clip(inverted @ TURN.T, 0, 1)


def linear(colours: np.ndarray) -> np.ndarray:
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def blind(colours: np.ndarray, kind: str) -> np.ndarray:
    """What somebody sees who lacks one kind of cones."""
    seen = np.clip(linear(colours) @ np.array(BLIND[kind]).T, 0, 1)
    return np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


def lab(colours: np.ndarray) -> np.ndarray:
    """Ottosson's OKLab, in which equal distances look about equally large: black to white is 1."""
    cones = np.array(
        [
            [0.41222147, 0.53633254, 0.05144599],
            [0.21190350, 0.68069955, 0.10739696],
            [0.08830246, 0.28171884, 0.62997870],
        ]
    )
    mix = np.array(
        [
            [0.21045426, 0.79361778, -0.00407205],
            [1.97799850, -2.42859221, 0.45059371],
            [0.02590404, 0.78277177, -0.80867577],
        ]
    )
    return np.cbrt(linear(colours) @ cones.T) @ mix.T


def closest(colours: np.ndarray) -> float:
    """The smallest distance between two of them."""
    points = lab(colours)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return float(apart[np.triu_indices(len(points), 1)].min())


def chroma(colours: np.ndarray) -> np.ndarray:
    return np.linalg.norm(lab(colours)[:, 1:], axis=1)


def contrast(colours: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Of the WCAG: 1 cannot be seen, 3 is asked of graphics."""
    a, b = linear(colours) @ LUMINANCE, float(linear(ground) @ LUMINANCE)
    return (np.maximum(a, b) + 0.05) / (np.minimum(a, b) + 0.05)
