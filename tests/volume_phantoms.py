"""Macular volumes whose fovea is known: the simulator's eye, cut at growing distance from the pit.

None of it is the project's reader or guesser, so that a fault there cannot hide here.
"""

import numpy as np

from demo import oct_eye, oct_phantom


def draw_volume(seed, *, num_frames=32, height_um=6000.0, size=64, pit=True, look="spectral"):
    """B-scans (F, size, size) uint8, and the position of the fovea in frames (a float)."""
    rng = np.random.default_rng(seed)
    device = oct_phantom.LOOKS[look]
    fovea = (num_frames - 1) / 2 + rng.uniform(-0.15, 0.15) * num_frames
    center = rng.uniform(-0.12, 0.12) * device.width_um
    width = rng.uniform(420, 620)
    layers = rng.uniform(0.85, 1.15, len(oct_eye.LAYERS))
    side = rng.choice((-1, 1))
    tilt, bend, base = rng.normal(0, 16), rng.uniform(-0.4, 1.3), rng.uniform(0.50, 0.66)
    slope = rng.normal(0, 8)  # across the frames, in micrometres per millimetre
    frames = []
    for frame in range(num_frames):
        y_um = (frame - fovea) * height_um / num_frames
        px_per_um = 2 * size / device.depth_um
        x_um = np.linspace(-0.5, 0.5, 2 * size, dtype=np.float32) * device.width_um - center
        share = np.exp(-((x_um / width) ** 2) - (y_um / width) ** 2) * pit
        nasal = 1 + side * 0.25 * np.tanh(x_um / 2000)
        thickness = [
            (central * share + outer * vary * (1 - share)) * (nasal if name == "RNFL" else 1)
            for (name, central, outer, _), vary in zip(oct_eye.LAYERS, layers)
        ]
        move = rng.normal(0, 8)  # the eye moves between the scans
        bottom = device.depth_um * base - bend * 12 * (x_um / 1000) ** 2 + tilt * x_um / 1000
        bottom = bottom + move + slope * y_um / 1000
        tops = bottom - sum(thickness[: oct_eye.RPE + 1])
        tops = tops + np.concatenate([np.zeros((1, 2 * size)), np.cumsum(thickness, axis=0)])
        bright = np.array([layer[3] for layer in oct_eye.LAYERS], np.float32)
        depth = np.arange(2 * size, dtype=np.float32)[:, None]
        boundaries = (tops * px_per_um).astype(np.float32)
        eye = oct_eye.Eye(boundaries, x_um, px_per_um, depth, bright, [])
        field = oct_phantom.reflectivity(rng, eye, look=device) * oct_phantom.shadows(rng, eye)
        frames.append(np.asarray(oct_phantom.develop(rng, field, look=device)))
    return np.stack(frames), fovea
