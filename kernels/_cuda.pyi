from collections.abc import Sequence

# Address of the first pixel on the device, height, width, bytes from row to row, channels.
Image = tuple[int, int, int, int, int]

def reason_unavailable() -> str: ...
def workspace_bytes(images: Sequence[Image]) -> int: ...
def crop(
    images: Sequence[Image], bgr: bool, crops: int, boxes: int, workspace: int, *, device: int, stream: int
) -> None: ...
def denoise(crops: int, num_images: int, smooth: int, *, device: int, stream: int) -> None: ...
def finish_float32(
    crops: int,
    num_images: int,
    out: int,
    side: int,
    *,
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    device: int,
    stream: int,
) -> None: ...
def preprocess_float32(
    images: Sequence[Image],
    bgr: bool,
    out: int,
    boxes: int,
    side: int,
    workspace: int,
    *,
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    device: int,
    stream: int,
) -> None: ...

color_float32 = finish_float32
color_bfloat16 = finish_float32
finish_bfloat16 = finish_float32
preprocess_bfloat16 = preprocess_float32
