"""What lies in a folder of ImageBind's weights: the checkpoint, and CLIP's vocabulary beside it."""

from __future__ import annotations

from pathlib import Path

from calmrl_lab.errors import CalmrlError

LAYOUT = "expected in the weights folder: imagebind_huge.pth as released, and bpe_simple_vocab_16e6.txt.gz of its code (folder bpe/) for texts"
_NAMES = ("imagebind_huge.pth", "imagebind_huge.pt", "imagebind_huge.safetensors")
_HUB_NAMES = ("model.safetensors", "pytorch_model.bin")


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint in a weights folder, in its folder imagebind/, or `folder` itself if it is a file. Raises CalmrlError if there is none."""
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise CalmrlError(f"the weights folder '{folder}' does not exist", hint=LAYOUT)
    found = checkpoint_of(folder)
    if found is None:
        raise CalmrlError(f"no ImageBind checkpoint in '{folder}'", hint=LAYOUT)
    return found


def checkpoint_of(folder: Path) -> Path | None:
    """The checkpoint in a weights folder, or None. Files that every model has on the hub count only where the folder says that it is ImageBind's."""
    own = ("imagebind", "imagebind-huge", "imagebind_huge")
    for place in (folder, folder / ".checkpoints", *(folder / name for name in own)):
        names = (*_NAMES, *_HUB_NAMES) if place.name.lower().replace("_", "-").startswith("imagebind") else _NAMES
        for name in names:
            if (place / name).is_file():
                return place / name
    return None


def vocabulary_folders(checkpoint: Path) -> list[Path]:
    """Where CLIP's vocabulary is looked for, beside a checkpoint."""
    here = checkpoint.parent
    above = here.parent
    return [here, here / "imagebind", above, above / "imagebind", here / "clip", above / "clip"]
