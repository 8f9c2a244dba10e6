"""What `calmrl-lab weights check` finds in a folder, whichever systems' weights it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders._joint_encoder import JointEncoder, JointText
from feature_extractors.encoders._released_weights import ReleasedWeights
from feature_extractors.encoders.imagebind import encoders as imagebind
from feature_extractors.encoders.imagebind.weights_folder import checkpoint_of
from feature_extractors.encoders.languagebind import encoders as languagebind
from feature_extractors.encoders.languagebind.weights_folder import models_of
from feature_extractors.encoders.vast.inspection import changed_files, check_weights, finding


def check(folder: Path) -> list[dict[str, str]]:
    """One finding per part: `state` ok, note or bad; `what` was found; what to `do` about it. Nothing in any file is executed.

    ImageBind's and LanguageBind's towers are checked tensor by tensor where their weights are there, else the folder is taken for VAST's.
    """
    findings = []
    is_imagebind = (
        "imagebind" in folder.name.lower() if folder.is_file() else folder.is_dir() and checkpoint_of(folder) is not None
    )
    if is_imagebind:
        kinds = (imagebind.ImageBindVision, imagebind.ImageBindAudio, imagebind.ImageBindText)
        findings += _towers([kind(weights=folder) for kind in kinds])
    for kind in (languagebind.LanguageBindImage, languagebind.LanguageBindVideo, languagebind.LanguageBindAudio):
        for model in models_of(folder, kind.part) if folder.is_dir() else ():
            findings += _towers([kind(weights=model), languagebind.LanguageBindText(weights=model)])
    return findings or check_weights(folder)


def _towers(encoders: Sequence[JointEncoder]) -> list[dict[str, str]]:
    """Findings on towers that share one checkpoint."""
    findings = []
    read: ReleasedWeights | None = None
    for encoder in encoders:
        try:
            if read is None:
                read = encoder.read()
                findings += [finding("bad", what, "download the file again") for what in changed_files(read.path)]
            tower, names = encoder.tower()
            problems = read.problems(tower, names) or read.not_numbers(names)
            words = f", {encoder.tokens.size} words" if isinstance(encoder, JointText) else ""
        except CalmrlError as error:
            findings.append(finding("bad", error.message, error.hint or ""))
            if read is None:
                break
            continue
        part = f"'{read.path}': {encoder.system}'s {encoder.part}"
        if problems:
            findings.append(finding("bad", f"{part}: {'; '.join(problems)}", "download the released checkpoint again"))
        else:
            millions = sum(tensor.numel() for tensor in tower.state_dict().values()) / 1e6
            findings.append(finding("ok", f"{part}: {millions:.1f} million values, all as expected{words}"))
    return findings
