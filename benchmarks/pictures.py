"""Pictures of handwritten digits as people make them: strokes, written with a pen on paper, and photographed.

Nothing here comes from people's pictures: strokes are those of MNIST's images or drawn below, and the rest is drawn.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

STROKES = ("MNIST's strokes", "drawn strokes")
PENS = ("thin pen", "pencil", "marker")
PAPERS = ("white", "chalk on black", "lined", "squared", "shaded", "noisy", "dark corners", "on a dark table")
CAMERAS = ("drawn", "photographed")
SIZES = (28, 100, 400, 1000, 4000)  # the picture's long side, in pixels

# Each digit as lines through points in a box of 1×1, from the top left; a digit may have several forms.
OUTLINES: dict[int, tuple[tuple[tuple[tuple[float, float], ...], ...], ...]] = {
    0: ((((0.5, 0), (0.15, 0.2), (0.1, 0.6), (0.4, 1), (0.8, 0.8), (0.85, 0.3), (0.5, 0)),),),
    1: ((((0.5, 0), (0.48, 0.5), (0.45, 1)),), (((0.3, 0.25), (0.45, 0.1), (0.55, 0)), ((0.55, 0), (0.52, 1)))),
    2: ((((0.15, 0.2), (0.45, 0), (0.8, 0.2), (0.5, 0.6), (0.1, 1)), ((0.1, 1), (0.9, 0.95))),),
    3: ((((0.15, 0.1), (0.55, 0), (0.75, 0.2), (0.4, 0.45)), ((0.4, 0.45), (0.85, 0.7), (0.5, 1), (0.1, 0.9))),),
    4: (
        (((0.4, 0), (0.1, 0.6)), ((0.1, 0.6), (0.9, 0.6)), ((0.7, 0.25), (0.65, 1))),
        (((0.65, 0), (0.1, 0.65)), ((0.1, 0.65), (0.9, 0.65)), ((0.65, 0), (0.62, 1))),
    ),
    5: (
        (
            ((0.25, 0.02), (0.2, 0.45)),
            ((0.2, 0.45), (0.6, 0.4), (0.85, 0.7), (0.5, 1), (0.1, 0.9)),
            ((0.25, 0.02), (0.8, 0)),
        ),
    ),
    6: ((((0.7, 0), (0.3, 0.3), (0.15, 0.75), (0.5, 1), (0.8, 0.75), (0.5, 0.55), (0.2, 0.75)),),),
    7: (
        (((0.1, 0.05), (0.85, 0)), ((0.85, 0), (0.55, 0.5), (0.4, 1))),
        (((0.1, 0.05), (0.85, 0)), ((0.85, 0), (0.55, 0.5), (0.4, 1)), ((0.3, 0.5), (0.75, 0.48))),
    ),
    8: (
        (
            ((0.5, 0.48), (0.2, 0.25), (0.5, 0), (0.8, 0.2), (0.5, 0.48)),
            ((0.5, 0.48), (0.15, 0.8), (0.5, 1), (0.85, 0.8), (0.5, 0.48)),
        ),
    ),
    9: ((((0.8, 0.2), (0.5, 0), (0.2, 0.25), (0.45, 0.5), (0.8, 0.2)), ((0.8, 0.2), (0.75, 0.6), (0.65, 1))),),
}  # fmt: skip
FINE = 224  # side of the square in which center lines are drawn, in pixels


@dataclass(frozen=True)
class Kind:
    """How a picture is made."""

    strokes: str
    pen: str
    paper: str
    camera: str
    size: int


def center_line(kind: str, image: np.ndarray, digit: int, generator: np.random.Generator) -> np.ndarray:
    """Center line of a digit's strokes, bool (FINE, FINE): of an MNIST image, or drawn."""
    return thin(image) if kind == "MNIST's strokes" else drawn(digit, generator)


def thin(image: np.ndarray) -> np.ndarray:
    """Center line of the strokes of an image, uint8 (28, 28) (Zhang and Suen, 1984)."""
    side = 28 * 4
    line = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) > 127
    while True:
        before = line.sum()
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            padded = np.pad(line, 1)
            around = np.stack(  # the eight neighbors, clockwise from the one above
                [
                    padded[1 + row : 1 + row + side, 1 + column : 1 + column + side]
                    for row, column in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
                ]
            )
            count = around.sum(0)
            rises = (~around & np.roll(around, -1, axis=0)).sum(0)
            ends = ~around[list(first)].all(0) & ~around[list(second)].all(0)
            line = line & ~((count >= 2) & (count <= 6) & (rises == 1) & ends)
        if line.sum() == before:
            return np.kron(line, np.ones((FINE // side, FINE // side), bool))


def drawn(digit: int, generator: np.random.Generator) -> np.ndarray:
    """Center line of a digit drawn from one of its outlines: bent, slanted and stretched at random."""
    from scipy.interpolate import make_interp_spline

    forms = OUTLINES[digit]
    shape = np.array([[generator.uniform(0.55, 0.95), generator.normal(0, 0.12)], [0, 1]])  # width and slant
    picture = Image.new("1", (FINE, FINE))
    pen = ImageDraw.Draw(picture)
    moved: dict[tuple[float, float], np.ndarray] = {}  # lines that meet still do
    for line in forms[generator.integers(len(forms))]:
        for point in line:
            if point not in moved:
                moved[point] = shape @ (np.array(point) - 0.5 + generator.normal(0, 0.02, 2))
        points = np.stack([moved[point] for point in line])
        curve = make_interp_spline(range(len(points)), points, k=min(2, len(points) - 1))
        smooth = curve(np.linspace(0, len(points) - 1, 60))
        pen.line([tuple(point) for point in (smooth * 0.75 + 0.5) * FINE], fill=1, width=2)
    return np.asarray(picture)


def picture(kind: Kind, image: np.ndarray, digit: int, generator: np.random.Generator) -> bytes:
    """A file with a picture of the digit: PNG when drawn, JPEG when photographed."""
    short = round(kind.size * generator.choice([0.75, 1.0])) if kind.size > 28 else 28
    shape = (short, kind.size) if generator.random() < 0.5 else (kind.size, short)
    scale = min(max(1, 200 / short), 1000 / short)  # small pictures are drawn larger, large ones smaller
    drawing = tuple(round(side * scale) for side in shape)

    page = paper(kind.paper, drawing, generator)
    ink, darkness = written(kind, image, digit, drawing, generator)
    page = page * (1 - darkness * ink)
    if kind.camera == "photographed":
        page = tilted(page, generator)
    if kind.paper == "on a dark table":
        page = on_table(page, generator)
    if kind.paper == "chalk on black":
        page = 1 - page
    page = page * light(kind, drawing, generator)
    sized = Image.fromarray(page.astype(np.float32)).resize(
        shape[::-1], Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.BOX
    )
    pixels = np.asarray(sized) * 255
    noise = generator.uniform(4, 12) if kind.paper == "noisy" else 2 if kind.camera == "photographed" else 0
    if noise:
        pixels = pixels + generator.normal(0, noise, shape)
    found = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    if kind.camera == "photographed":
        tint = [found.point(lambda value, share=share: round(value * share)) for share in generator.uniform(0.85, 1, 3)]
        Image.merge("RGB", tint).save(file, "JPEG", quality=int(generator.integers(60, 95)))
    else:
        found.save(file, "PNG", compress_level=1)
    return file.getvalue()


def written(
    kind: Kind, image: np.ndarray, digit: int, shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Ink of the digit somewhere on a page, from 0 to 1, and how dark it is."""
    side = round(min(shape) * (generator.uniform(0.5, 0.9) if kind.size <= 100 else generator.uniform(0.25, 0.7)))
    line = center_line(kind.strokes, image, digit, generator)
    distance = ndimage.distance_transform_edt(~line).astype(np.float32) * (side / FINE)
    distance = np.asarray(Image.fromarray(distance).resize((side, side), Image.Resampling.BILINEAR))
    low, high, darkness = {
        "thin pen": (0.008, 0.025, generator.uniform(0.6, 0.9)),
        "pencil": (0.02, 0.05, generator.uniform(0.3, 0.5)),
        "marker": (0.08, 0.15, generator.uniform(0.7, 0.95)),
    }[kind.pen]
    width = max(generator.uniform(low, high) * side, 1)
    stroke = np.clip(width / 2 - distance + 0.5, 0, 1)
    if kind.pen == "pencil":
        stroke = stroke * generator.uniform(0.6, 1, stroke.shape)
    ink = np.zeros(shape, np.float32)
    top, left = (int(generator.integers(0, free - side + 1)) for free in shape)
    ink[top : top + side, left : left + side] = stroke
    return ink, darkness


def paper(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """A page, float64 (H, W), from 0 (black) to 1 (white)."""
    page = np.full(shape, 1.0 if kind == "white" else generator.uniform(0.75, 1))
    if kind in ("lined", "squared"):
        spacing = min(shape) * generator.uniform(0.15, 0.3)
        thickness, darkness = max(1, round(min(shape) * 0.005)), generator.uniform(0.1, 0.3)
        for axis in (0, 1) if kind == "squared" else (0,):
            place = (np.arange(shape[axis]) + generator.uniform(0, spacing)) % spacing < thickness
            page *= 1 - darkness * (place[:, None] if axis == 0 else place[None, :])
    return page


def light(kind: Kind, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Share of light that falls on each point: falling to one side, a soft shadow, or dark corners."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    found = np.ones(shape)
    angle = generator.uniform(0, 2 * np.pi)
    across = rows * np.sin(angle) + columns * np.cos(angle)
    if kind.paper == "shaded":
        found -= generator.uniform(0.1, 0.5) * (across + 1.5) / 3
    if kind.paper == "dark corners":
        found -= generator.uniform(0.3, 0.9) * ((rows**2 + columns**2) / 2) ** generator.uniform(1, 2)
    if kind.camera == "photographed":  # the shadow of a hand or a phone
        edge = generator.uniform(-0.5, 0.8)
        found *= 1 - generator.uniform(0.1, 0.35) / (1 + np.exp(-(across - edge) * generator.uniform(5, 30)))
    return found


def tilted(page: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The page seen at an angle, a little out of focus."""
    height, width = page.shape
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], float)
    seen = corners + generator.uniform(0, 0.08, (4, 2)) * (height, width) * np.where(corners > 0, -1, 1)
    equations = []
    for (x, y), (u, v) in zip(corners, seen, strict=True):
        equations += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    coefficients = np.linalg.solve(np.array(equations), seen.ravel())
    image = Image.fromarray(page.astype(np.float32))
    bent = image.transform(image.size, Image.Transform.PERSPECTIVE, tuple(coefficients), Image.Resampling.BILINEAR)
    return ndimage.gaussian_filter(np.asarray(bent), min(page.shape) * 0.001)


def on_table(page: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The page on a dark table, seen along one to three of its sides, or all around."""
    height, width = page.shape
    found = page.copy()
    color = generator.uniform(0.05, 0.35)
    for side in generator.permutation(4)[: generator.integers(1, 5)]:
        depth = round(min(height, width) * generator.uniform(0.02, 0.12))
        found[(slice(depth), slice(-depth, None), slice(None), slice(None))[side],
              (slice(None), slice(None), slice(depth), slice(-depth, None))[side]] = color  # fmt: skip
    return found
