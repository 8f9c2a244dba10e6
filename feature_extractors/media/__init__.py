"""Media files to frames and waveforms."""

from feature_extractors.media.decode import frame_folder as frame_folder
from feature_extractors.media.decode import video_frames as video_frames
from feature_extractors.media.decode import waveform as waveform
