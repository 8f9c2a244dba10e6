"""An SVG file to pixels, through resvg."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from calmrl_lab.errors import missing_extra
from feature_extractors.package_files import package_folder
from feature_extractors.protocols import Image, MediaError


@dataclass(frozen=True)
class RenderedSvg:
    """The file `name` inside an installed package, drawn `size` pixels square on white."""

    module: str
    package: str
    name: str
    size: int

    def make(self) -> Image:
        """Pixels uint8 [size, size, 3]. MediaError `not_found` or `decode_error`."""
        import PIL.Image

        try:
            import resvg_py
        except ImportError:
            raise missing_extra("resvg-py", "demo", "drawing emoji") from None
        path = package_folder(self.module, self.package, "drawing emoji") / self.name
        if not path.is_file():
            raise MediaError("not_found", f"no file {self.name} in {self.package}")
        try:
            # No system fonts: what is drawn must not depend on what is installed.
            png = resvg_py.svg_to_bytes(
                svg_string=path.read_text(encoding="utf-8"),
                width=self.size,
                height=self.size,
                background="white",
                skip_system_fonts=True,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise MediaError("decode_error", f"{self.name}: {error}") from None
        with PIL.Image.open(io.BytesIO(bytes(png))) as picture:
            return Image(np.asarray(picture.convert("RGB"), dtype=np.uint8))
