"""Find image files: those that look like pictures, by name or by their first bytes, so that none is passed over."""

import mimetypes
import os
from pathlib import Path

from drilldown.errors import ParameterError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of what is read
# Of pictures that Python does not know as such.
OTHER_SUFFIXES = (".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".xcf")
SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
}
BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}
SIGNATURE_BYTES = 16


def find_images(path: str | Path, recursive: bool = False) -> tuple[list[Path], dict[Path, str]]:
    """Return the image file itself, or the files of a folder that look like pictures, sorted by name.

    With `recursive`, those of the folders in it, too.

    Returns: the files, and why folders were left out.
    Raises: ParameterError when there is no file.
    """
    try:
        path = Path(path).expanduser()
        if path.is_file():
            return [
                path.resolve() if path.is_symlink() else path
            ], {}  # the user named this link: it may point anywhere
        if not path.is_dir():
            raise ParameterError(f"images is {str(path)!r}: it takes an image file, or a folder with image files")
        files, left_out = _search(path, recursive)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        raise ParameterError(
            f"images is {str(path)!r}: it takes an image file, or a folder that can be read ({error})"
        ) from error
    if not files:
        inside = "; recursive=true looks into its folders, too" if left_out and not recursive else ""
        endings = ", ".join(SUFFIXES)
        raise ParameterError(f"images is {str(path)!r}: it takes a folder with files that end in {endings}{inside}")
    return sorted(files), left_out


def _search(folder: Path, recursive: bool) -> tuple[list[Path], dict[Path, str]]:
    files: list[Path] = []
    left_out: dict[Path, str] = {}
    for entry in sorted(folder.iterdir()):
        if _has_picture_name(entry) or not entry.is_dir():
            files += [entry] if looks_like_picture(entry) else []
        elif not recursive:
            left_out[entry] = "it is a folder: recursive=true reads the pictures in it"
        elif entry.is_symlink():
            left_out[entry] = "it is a link to a folder"
        else:
            try:
                inner, inner_left_out = _search(entry, recursive)
            except OSError as error:
                inner, inner_left_out = [], {entry: f"the folder cannot be read ({error.strerror})"}
            files += inner
            left_out |= inner_left_out
    return files, left_out


def looks_like_picture(file: Path) -> bool:
    """Whether a file is a picture by its name or its first bytes, of a format that is read or not."""
    if _has_picture_name(file):
        return True
    try:
        if not file.is_file():  # a pipe would block
            return False
        with file.open("rb") as stream:
            return format_name(stream.read(SIGNATURE_BYTES)) is not None
    except OSError:
        return False


def _has_picture_name(file: Path) -> bool:
    suffix = os.fsencode(file.suffix.lower()).decode(errors="replace")
    kind = mimetypes.guess_type(f"picture{suffix}")[0] or ""
    return suffix in SUFFIXES + OTHER_SUFFIXES or kind.startswith("image/")


def format_name(start: bytes) -> str | None:
    """The format of a picture, by the first bytes of its file; None if they are no picture's."""
    if start[4:8] == b"ftyp":
        return BRANDS.get(start[8:12])
    if start[:4] == b"RIFF":
        return "WebP" if start[8:12] == b"WEBP" else None
    return next((name for signature, name in SIGNATURES.items() if start.startswith(signature)), None)
