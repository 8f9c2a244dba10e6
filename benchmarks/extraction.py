"""Reading clips: frames, and clips per second on one core, against a loop that decodes everything; and what a small extraction waits for.

    calmrl-lab bench extraction                synthesised clips of 300 frames, 640 x 360 (about two minutes)
    calmrl-lab bench extraction --quick        60 frames, 160 x 90, in seconds
    calmrl-lab bench extraction --media DIR    also the clips in a folder

Eight frames of every clip are wanted, as VAST samples them. `plain` decodes all frames in order and converts all of them, as released
loaders do. Ratios are medians over rounds in which everybody takes turns; both give the same pixels, which is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.table import Table

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from feature_extractors.extraction import extract
from feature_extractors.media.decode import video_frames, waveform
from feature_extractors.media.sampling import middle_of_segments

FRAMES = 8
CODECS = {
    "h264, key frame every 250": ("clip.mp4", "libx264", {"g": "250"}),
    "h264, key frame every 25": ("clip.mp4", "libx264", {"g": "25"}),
    "hevc, key frame every 25": ("clip.mp4", "libx265", {"g": "25", "x265-params": "log-level=none:keyint=25:min-keyint=25"}),
    "vp9, key frame every 25": ("clip.webm", "libvpx-vp9", {"g": "25", "cpu-used": "8"}),
    "mpeg4, key frame every 12": ("clip.avi", "mpeg4", {"g": "12"}),
}
_ENDINGS = {".mp4", ".avi", ".webm", ".mkv"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short and small clips")
    parser.add_argument("--media", type=Path, help="also measure the clips in this folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    frames, size = (60, (160, 90)) if options.quick else (300, (640, 360))
    with tempfile.TemporaryDirectory(prefix="calmrl-bench-") as name:
        folder = Path(name)
        clips = {
            what: synthesised(folder / str(number), codec, frames, size) for number, (what, codec) in enumerate(CODECS.items())
        }
        given = {path.name: path for path in _clips_of(options.media)} if options.media else {}
        result: dict[str, Any] = {
            "wanted frames": FRAMES,
            "clips": {what: reading(path, options.repeats) for what, path in (clips | given).items()},
            "sound": hearing(sounding(folder, 2 if options.quick else 30), options.repeats),
            "extraction": whole(folder, list(clips.values()), 12 if options.quick else 60),
        }
    console.emit(result, options.json, lambda: show(result))


def _clips_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
    if not found:
        raise CalmrlError(f"there is no clip in '{folder}'", hint=f"files that end in {', '.join(sorted(_ENDINGS))}")
    return found


def synthesised(folder: Path, codec: tuple[str, str, dict[str, str]], frames: int, size: tuple[int, int]) -> Path:
    """A clip of a moving gradient with noise: neither trivial to code nor pure noise."""
    name, encoder, options = codec
    folder.mkdir()
    width, height = size
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 200, width, dtype=np.uint8)[None, :, None]
    with av.open(str(folder / name), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = np.roll(ramp, 3 * number, axis=1) + np.roll(noise, 5 * number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return folder / name


def sounding(folder: Path, seconds: int) -> Path:
    path = folder / "sound.m4a"
    samples = (0.3 * np.sin(np.arange(44_100 * seconds) / 20)).astype(np.float32)[None]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        for start in range(0, samples.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 1024]), format="fltp", layout="mono"
            )
            frame.sample_rate = 44_100
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain(path: Path) -> np.ndarray:
    """Every frame decoded and converted, then the wanted ones picked."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[index] for index in middle_of_segments(len(frames), FRAMES)])


def ours(path: Path) -> np.ndarray:
    return video_frames(path, lambda count: middle_of_segments(count, FRAMES))


def reading(path: Path, repeats: int) -> dict[str, float]:
    with av.open(str(path)) as container:
        count = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    with av.open(str(path)) as container:
        turned = next(container.decode(video=0)).rotation != 0
    # The plain loop does not turn what the header says is turned.
    if not turned and not np.array_equal(ours(path), plain(path)):
        raise AssertionError(f"{path}: the frames differ")
    times = interleaved({"ours": lambda: ours(path), "plain": lambda: plain(path)}, repeats)
    mine, theirs = (statistics.median(times[who]) for who in ("ours", "plain"))
    return {
        "frames": count,
        "clips per second": 1 / mine,
        "frames per second, passed over": count / mine,
        "plain clips per second": 1 / theirs,
        "plain / ours": statistics.median(b / a for a, b in zip(times["ours"], times["plain"], strict=True)),
    }


def hearing(path: Path, repeats: int) -> dict[str, float]:
    samples, rate = waveform(path)
    seconds = samples.shape[1] / rate
    taken = statistics.median(interleaved({"ours": lambda: waveform(path)}, repeats)["ours"])
    return {"seconds of sound": seconds, "times real time": seconds / taken}


def whole(folder: Path, clips: Sequence[Path], items: int) -> dict[str, Any]:
    """An extraction of `items` clips with the demo's vision encoder, or only its reading side where that is not installed."""
    table = folder / "items.jsonl"
    rows = [
        {"id": f"i{number}", "split": "train", "vision": str(clips[number % len(clips)].relative_to(folder))}
        for number in range(items)
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    try:
        done = extract(
            "folder",
            folder / "s.zarr",
            "vision=efficientnet-lite0",
            media=folder,
            workers=1,
            block_size=16,
            options={"manifest": table},
        )
    except CalmrlError as error:
        return {"not measured": error.message}
    return {"items": done.items, "items per second": done.items_per_second, "busy seconds": done.busy, "waited": done.waited}


def interleaved(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            begun = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - begun)
    return times


def show(result: dict[str, Any]) -> None:
    table = Table(
        box=None, pad_edge=False, title=f"{result['wanted frames']} frames of each clip, one core", title_justify="left"
    )
    heads = ("clip", "frames", "clips per second", "frames per second, passed over", "plain / ours")
    for heading in heads:
        table.add_column(heading, justify="left" if heading == "clip" else "right")
    for name, row in result["clips"].items():
        table.add_row(name, str(row["frames"]), *(f"{row[heading]:.1f}" for heading in heads[2:]))
    console.out.print(table)
    console.out.print(f"sound: {result['sound']['times real time']:.0f} times real time")
    whole_run = result["extraction"]
    if "not measured" in whole_run:
        console.out.print(f"whole extraction not measured: {whole_run['not measured']}", soft_wrap=True)
        return
    spent = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in whole_run["busy seconds"].items())
    waited = whole_run["waited"]
    console.out.print(
        f"whole extraction, one worker: {whole_run['items per second']:.1f} clips per second ({spent})"
        + (f", the encoder waited {waited:.0%} of its time" if waited is not None else ""),
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
