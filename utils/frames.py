"""One frame of a volume, or a single image, as the 8-bit picture that goes into a data set."""

from pathlib import Path

from PIL import Image

from utils.image_files import ImageError, Window, image_errors, read_image, to_8bit
from utils.volumes import open_volumes


def read_frame(path: Path | str, frame: int | None, *, window: Window | None = None) -> Image.Image:
    """Decode a frame to mode ``L`` or ``RGB``, 8 bits.

    The file stays open in this process, so that the next frame of it comes without reading it anew.

    Args:
        path: DICOM, MetaImage or a device's file; any image file where ``frame`` is None.
        frame: Counted from 0 through all volumes of the file; None: the single image.
        window: Grey values (low, high) that become black and white; default: the file's own, else
            the smallest and largest value of the volume.

    Raises:
        UserError: If the package that reads the format is not installed.
        ImageError: Missing, broken, over the limits, no such frame.
    """
    if frame is None:
        return read_image(path, window=window)
    opened = open_volumes(path)
    count = sum(info.num_frames for info in opened.infos)
    if not 0 <= frame < count:
        raise ImageError(str(path), "no image", f"no frame {frame}, it has {count} from 0 on")
    with image_errors(str(path)):
        return to_8bit(opened.read(frame), window, name=f"{path}, frame {frame}")
