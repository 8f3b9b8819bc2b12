"""Reading the images of a data set, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from patchdct.errors import DataError
from pipeline import images
from pipeline.config import LimitsConfig
from pipeline.errors import ImageError, NotFoundError
from pipeline.records import Pixels
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class ReadImage:
    """Gives the RGB pixels of a URI, uint8 [H, W, 3]; processes that load data get a copy of their own."""

    store: Store
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __call__(self, uri: str) -> Pixels:
        """Read one image.

        Raises:
            DataError: it is gone, or no picture that can be used; others may still be.
            StoreError: storage does not work.
        """
        try:
            return images.decode(
                self.store.get(uri), max_bytes=self.limits.max_image_bytes, max_pixels=self.limits.max_image_pixels
            )
        except (ImageError, NotFoundError) as error:
            raise DataError(str(error)) from error
