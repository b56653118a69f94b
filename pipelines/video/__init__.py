"""Video from a static camera: background, foreground masks and tamper flags, in bounded memory for ever."""

from streamsvd.pipelines.video.model import BackgroundModel, Update
from streamsvd.pipelines.video.settings import VideoSettings

__all__ = ["BackgroundModel", "Update", "VideoSettings"]
