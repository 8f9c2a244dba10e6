"""ImageBind (arXiv 2305.05665): pictures, clips, sounds and texts in one space, from the released checkpoint."""

from feature_extractors.encoders.imagebind import encoders as encoders
