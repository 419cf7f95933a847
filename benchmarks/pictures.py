"""Pictures as people make them: strokes, written with a pen on paper, and photographed.

The strokes are digits, one or several, or what is no digit: letters, scribbles, shapes; or there are none. Nothing here
comes from people's pictures: strokes are those of MNIST's images or drawn below, and the rest is drawn.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont
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
# Letters in the same way; those that can be read as a digit are left out, as B, I, O, S and Z.
LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "A": (((0.1, 1), (0.5, 0), (0.9, 1)), ((0.25, 0.6), (0.75, 0.6))),
    "C": (((0.85, 0.15), (0.4, 0), (0.1, 0.5), (0.4, 1), (0.85, 0.85)),),
    "E": (((0.8, 0), (0.15, 0)), ((0.15, 0), (0.15, 1)), ((0.15, 1), (0.8, 1)), ((0.15, 0.5), (0.7, 0.5))),
    "F": (((0.8, 0), (0.15, 0)), ((0.15, 0), (0.15, 1)), ((0.15, 0.5), (0.7, 0.5))),
    "H": (((0.1, 0), (0.1, 1)), ((0.9, 0), (0.9, 1)), ((0.1, 0.5), (0.9, 0.5))),
    "K": (((0.15, 0), (0.15, 1)), ((0.85, 0), (0.15, 0.5)), ((0.15, 0.5), (0.9, 1))),
    "M": (((0.05, 1), (0.15, 0)), ((0.15, 0), (0.5, 0.7)), ((0.5, 0.7), (0.85, 0)), ((0.85, 0), (0.95, 1))),
    "N": (((0.1, 1), (0.1, 0)), ((0.1, 0), (0.9, 1)), ((0.9, 1), (0.9, 0))),
    "P": (((0.2, 1), (0.2, 0)), ((0.2, 0), (0.7, 0.05), (0.8, 0.3), (0.2, 0.5))),
    "R": (((0.2, 1), (0.2, 0)), ((0.2, 0), (0.7, 0.05), (0.8, 0.3), (0.2, 0.5)), ((0.2, 0.5), (0.9, 1))),
    "T": (((0.05, 0), (0.95, 0)), ((0.5, 0), (0.5, 1))),
    "U": (((0.1, 0), (0.15, 0.7), (0.5, 1), (0.85, 0.7), (0.9, 0)),),
    "W": (((0.05, 0), (0.25, 1)), ((0.25, 1), (0.5, 0.3)), ((0.5, 0.3), (0.75, 1)), ((0.75, 1), (0.95, 0))),
    "X": (((0.1, 0), (0.9, 1)), ((0.9, 0), (0.1, 1))),
    "Y": (((0.1, 0), (0.5, 0.5)), ((0.9, 0), (0.5, 0.5)), ((0.5, 0.5), (0.5, 1))),
}  # fmt: skip
FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral", "cmr10", "cmss10")  # matplotlib has them
PRINTED = "ACDEFGHKLMNPRTUVWXYacdefhkmnprtuvwxy"
SHAPES = ("triangle", "square", "star", "cross", "arrow", "heart", "house", "spiral")
OTHERS = ("printed letters", "written letters", "scribbles", "shapes")
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
    """Center line of a digit drawn from one of its outlines."""
    forms = OUTLINES[digit]
    return outline(forms[generator.integers(len(forms))], generator)


def outline(lines: Sequence[Sequence[tuple[float, float]]], generator: np.random.Generator) -> np.ndarray:
    """Draw lines through points, bool (FINE, FINE): bent, slanted and stretched at random."""
    from scipy.interpolate import make_interp_spline

    shape = np.array([[generator.uniform(0.55, 0.95), generator.normal(0, 0.12)], [0, 1]])  # width and slant
    picture = Image.new("1", (FINE, FINE))
    pen = ImageDraw.Draw(picture)
    moved: dict[tuple[float, float], np.ndarray] = {}  # lines that meet still do
    for line in lines:
        for point in line:
            if point not in moved:
                moved[point] = shape @ (np.array(point) - 0.5 + generator.normal(0, 0.02, 2))
        points = np.stack([moved[point] for point in line])
        curve = make_interp_spline(range(len(points)), points, k=min(2, len(points) - 1))
        smooth = curve(np.linspace(0, len(points) - 1, 60))
        pen.line([tuple(point) for point in (smooth * 0.75 + 0.5) * FINE], fill=1, width=2)
    return np.asarray(picture)


def other(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Center line of what is no digit, bool (FINE, FINE); of a printed letter, all of its ink."""
    if kind == "printed letters":
        return printed(str(generator.choice([*PRINTED])), str(generator.choice(FONTS)))
    if kind == "written letters":
        return outline(LETTERS[str(generator.choice([*LETTERS]))], generator)
    if kind == "scribbles":
        points = generator.uniform(0, 1, (generator.integers(5, 14), 2))
        return outline([[(float(x), float(y)) for x, y in points]], generator)
    return outline(shape_lines(str(generator.choice(SHAPES))), generator)


def printed(letter: str, font: str) -> np.ndarray:
    """A letter of a font, bool (FINE, FINE)."""
    from matplotlib.font_manager import FontProperties, findfont

    face = ImageFont.truetype(findfont(FontProperties(family=font), fallback_to_default=False), FINE)
    left, top, right, bottom = face.getbbox(letter)
    ink = Image.new("1", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), letter, fill=1, font=face)
    scale = 0.75 * FINE / max(ink.size)
    ink = ink.resize((round(ink.width * scale), round(ink.height * scale)))
    found = Image.new("1", (FINE, FINE))
    found.paste(ink, ((FINE - ink.width) // 2, (FINE - ink.height) // 2))
    return np.asarray(found)


def shape_lines(shape: str) -> list[list[tuple[float, float]]]:
    """The lines of a shape in a box of 1×1."""
    if shape == "spiral":
        turn = np.linspace(0, 6 * np.pi, 40)
        return [[(0.5 + r * np.cos(t), 0.5 + r * np.sin(t)) for t, r in zip(turn, turn / (12 * np.pi), strict=True)]]
    if shape == "heart":
        half = [(0.5, 0.25), (0.75, 0), (1.0, 0.3), (0.5, 1)]
        return [half, [(1 - x, y) for x, y in half]]
    corners = {
        "triangle": ("05", "91", "99", "09", "05"),  # row and column of each corner, in tenths
        "square": ("00", "09", "99", "90", "00"),
        "star": ("05", "93", "39", "31", "97", "05"),
        "house": ("40", "04", "49", "99", "90", "40", "49"),
        "cross": ("50", "59"),
        "arrow": ("50", "59", "25"),
    }[shape]
    points = [(int(column) / 9, int(row) / 9) for row, column in corners]
    lines = [[first, second] for first, second in pairwise(points)]
    if shape == "triangle":
        lines = [[(0.5, 0), (1, 1)], [(1, 1), (0, 1)], [(0, 1), (0.5, 0)]]
    if shape == "cross":
        lines.append([(0.5, 0), (0.5, 1)])
    if shape == "arrow":
        lines.append([(1, 5 / 9), (5 / 9, 8 / 9)])
    return lines


def picture(kind: Kind, lines: Sequence[np.ndarray], generator: np.random.Generator) -> bytes:
    """A file with a picture of what is written along center lines, from left to right: PNG, or JPEG when photographed.

    Without lines, the paper is blank.
    """
    short = round(kind.size * generator.choice([0.75, 1.0])) if kind.size > 28 else 28
    wide = max(1, len(lines) / 2)  # several digits in a row need room
    shape = (short, round(kind.size * wide)) if generator.random() < 0.5 or wide > 1 else (kind.size, short)
    scale = min(max(1, 200 / short), 1000 / short)  # small pictures are drawn larger, large ones smaller
    drawing = tuple(round(side * scale) for side in shape)

    page = paper(kind.paper, drawing, generator)
    ink, darkness = written(kind, lines, drawing, generator)
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
    kind: Kind, lines: Sequence[np.ndarray], shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Ink along the lines somewhere on a page, from 0 to 1, and how dark it is."""
    share = generator.uniform(0.5, 0.9) if kind.size <= 100 else generator.uniform(0.25, 0.7)
    side = round(min(shape) * min(share, 0.9 * shape[1] / (min(shape) * max(1, len(lines)))))
    low, high, darkness = {
        "thin pen": (0.008, 0.025, generator.uniform(0.6, 0.9)),
        "pencil": (0.02, 0.05, generator.uniform(0.3, 0.5)),
        "marker": (0.08, 0.15, generator.uniform(0.7, 0.95)),
    }[kind.pen]
    width = max(generator.uniform(low, high) * side, 1)
    ink = np.zeros(shape, np.float32)
    top = int(generator.integers(0, shape[0] - side + 1))
    left = int(generator.integers(0, shape[1] - side * max(1, len(lines)) + 1))
    for line in lines:
        distance = ndimage.distance_transform_edt(~line).astype(np.float32) * (side / FINE)
        distance = np.asarray(Image.fromarray(distance).resize((side, side), Image.Resampling.BILINEAR))
        stroke = np.clip(width / 2 - distance + 0.5, 0, 1)
        if kind.pen == "pencil":
            stroke = stroke * generator.uniform(0.6, 1, stroke.shape)
        ink[top : top + side, left : left + side] = stroke
        left += side
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
