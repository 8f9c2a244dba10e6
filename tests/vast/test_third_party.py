"""EVA against timm, BEATs against speechbrain, sound against torchaudio, ImageBind against its code: `make test-reference` brings them; nothing else needs them."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from vast.golden import PATH, signal, torchaudio_arrays, torchaudio_without_its_library

from feature_extractors.encoders.vast.networks import beats, eva
from feature_extractors.encoders.vast.networks.architecture import AudioSizes, VisionSizes, audio_shapes, vision_shapes
from feature_extractors.encoders.vast.preprocessing.fbank import mel_filterbank, normalise
from feature_extractors.encoders.vast.preprocessing.pixels import MEAN, STD, transform
from feature_extractors.encoders.vast.preprocessing.resample import resample


@pytest.fixture(autouse=True)
def whole_torchaudio():
    """transformers imports torchaudio where it finds it, and stumbles over a library built for another torch."""
    if find_spec("torchaudio") is not None:
        torchaudio_without_its_library()


def random_weights(shapes, seed=1):
    """Normal values of trained size; one table of relative positions for all layers."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        spread = float(torch.tensor(shape[1:]).prod()) ** -0.5 if len(shape) > 1 else 0.1
        made[name] = torch.randn(shape, generator=generator) * spread
        if ("norm" in name.lower() and name.endswith("weight")) or name.endswith(("weight_g", "grep_a")):
            made[name] = 1 + torch.rand(shape, generator=generator) * 0.5
    table = torch.randn(320, 12, generator=generator)
    return {k: table if k.endswith("relative_attention_bias.weight") else v for k, v in made.items()}


@pytest.fixture
def torchvision():
    """torchvision, whose compiled operators may be built for another torch; their schemas are enough to import it."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    return torchvision


@pytest.mark.parametrize("size", [(240, 320), (360, 640), (333, 251), (224, 224), (100, 1000), (225, 226)])
@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_frames_are_transformed_as_by_torchvision(torchvision, size, mode):
    from torchvision import transforms

    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    # As the released code writes them; antialias=False is what its pinned torchvision 0.15 does with tensors.
    resized = {"squash": [transforms.Resize((224, 224), antialias=False)], "crop": [transforms.Resize(224, antialias=False)]}
    steps = [*resized[mode], transforms.CenterCrop(224), transforms.Normalize(MEAN.tolist(), STD.tolist())]
    expected = transforms.Compose(steps)(torch.from_numpy(frames.transpose(0, 3, 1, 2) / 255.0)).float()
    np.testing.assert_allclose(transform(frames, mode), expected.numpy(), atol=1e-6)


def test_eva_is_timms(torchvision):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from timm.models.eva import Eva, checkpoint_filter_fn

    sizes = VisionSizes(depth=2)
    weights = random_weights(vision_shapes(sizes))
    model = Eva(
        patch_size=14, embed_dim=1408, depth=2, num_heads=16, mlp_ratio=6144 / 1408, num_classes=1024, global_pool="token"
    ).eval()
    released = checkpoint_filter_fn({f"visual.{k}": v for k, v in weights.items()}, model)
    model.load_state_dict(released, strict=True)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(
            eva.tokens(eva.load(weights, sizes), pixels), model.forward_features(pixels), atol=1e-5, rtol=0
        )


@pytest.fixture
def without_torchaudio(monkeypatch):
    """An empty torchaudio, where the real one is missing or built for another torch: only speechbrain's import asks for it."""
    names = (
        "torchaudio",
        "torchaudio.compliance",
        "torchaudio.compliance.kaldi",
        "torchaudio.functional",
        "torchaudio.transforms",
    )
    for name in names:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__version__ = "2.11.0"
        module.list_audio_backends = lambda: ["none"]
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


def test_beats_is_speechbrains(without_torchaudio):
    if find_spec("speechbrain") is None:
        pytest.skip("speechbrain is not installed")
    from speechbrain.lobes.models.beats import TransformerEncoder

    sizes = AudioSizes(depth=2)
    weights = random_weights(audio_shapes(sizes))
    settings = {
        "encoder_layers": 2,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "num_buckets": 320,
        "max_distance": 800,
        "deep_norm": True,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "layer_norm_first": False,
        "layer_wise_gradient_decay_ratio": 1.0,
        "activation_fn": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
    }
    encoder = TransformerEncoder(SimpleNamespace(**settings)).eval()
    parametrised = "pos_conv.0.parametrizations.weight.original"
    released = {
        k.removeprefix("encoder.")
        .replace("pos_conv.0.weight_g", f"{parametrised}0")
        .replace("pos_conv.0.weight_v", f"{parametrised}1"): v
        for k, v in weights.items()
        if k.startswith("encoder.")
    }
    encoder.load_state_dict(released, strict=True)
    spectrograms = torch.randn(2, 1024, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        patches = (
            functional.conv2d(spectrograms[:, None], weights["patch_embedding.weight"], stride=16).flatten(2).transpose(1, 2)
        )
        patches = functional.layer_norm(patches, (512,), weights["layer_norm.weight"], weights["layer_norm.bias"])
        patches = functional.linear(patches, weights["post_extract_proj.weight"], weights["post_extract_proj.bias"])
        torch.testing.assert_close(beats.load(weights, sizes)(spectrograms), encoder(patches)[0], atol=1e-5, rtol=0)


def test_the_golden_arrays_are_torchaudios():
    if find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    golden = np.load(PATH)
    made = torchaudio_arrays()
    assert set(made) == set(golden)
    for name, values in made.items():
        np.testing.assert_allclose(values, golden[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_second_of_sound_becomes_what_torchaudio_makes_of_it(rate):
    if find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    torchaudio = torchaudio_without_its_library()
    samples = signal(rate, 1.0)
    wave = torchaudio.transforms.Resample(rate, 16000)(torch.from_numpy(samples)[None]) * 2**15
    expected = torchaudio.compliance.kaldi.fbank(wave, num_mel_bins=64, sample_frequency=16000, frame_length=25, frame_shift=10)
    got = normalise(mel_filterbank(resample(samples, rate)))
    difference = np.abs(got - normalise(expected.numpy()))
    # Logarithms of next to nothing differ most: rounding in the loud bins is all there is in the quiet ones.
    assert difference.max() < 1e-2
    assert difference.mean() < 1e-4


@pytest.mark.parametrize("part", ["vision", "audio", "text"])
def test_imagebinds_towers_are_those_of_its_code(torchvision, monkeypatch, part):
    if find_spec("imagebind") is None or find_spec("timm") is None:
        pytest.skip("imagebind or timm is not installed")
    # The code reads its vocabulary through iopath, which nothing here needs, and its package imports decoders of media.
    for name in ("iopath", "iopath.common", "iopath.common.file_io"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["iopath.common.file_io"], "g_pathmgr", SimpleNamespace(open=open), raising=False)
    package = ModuleType("imagebind")
    package.__path__ = list(find_spec("imagebind").submodule_search_locations)
    monkeypatch.setitem(sys.modules, "imagebind", package)
    from importlib import import_module

    from feature_extractors.encoders._released_weights import ReleasedWeights
    from feature_extractors.encoders.imagebind.architecture import Architecture, Part, tower
    from feature_extractors.encoders.vast.tensor_files import MappedFiles

    small = {f"{name}_num_blocks": 2 for name in ("vision", "audio", "text", "depth", "thermal", "imu")}
    model = import_module("imagebind.models.imagebind_model").ImageBindModel(
        vision_embed_dim=64, text_embed_dim=48, audio_embed_dim=48, out_embed_dim=32, audio_num_heads=4, **small
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.normal_(0, 0.2)
    sizes = Architecture(Part(64, 2, 16, 256), Part(48, 2, 4, 192), Part(48, 2, 12, 192), dimension=32)
    weights = ReleasedWeights("random", model.state_dict(), MappedFiles([]))
    ours = weights.fill(*tower(part, sizes), part)
    given = {
        "vision": torch.randn(2, 3, 2, 224, 224),
        "audio": torch.randn(2, 1, 128, 204),
        "text": torch.randint(1, 49_406, (2, 77)).index_fill(1, torch.tensor([40]), 49_407),
    }[part]
    with torch.inference_mode():
        # Inputs of five axes and more are taken for several views an item.
        expected = functional.normalize(model({part: given[:, None] if part == "vision" else given})[part], dim=-1)
        torch.testing.assert_close(ours(given), expected, atol=1e-5, rtol=0)
