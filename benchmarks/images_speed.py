"""Training throughput of residual networks beside PyTorch, on CPU or on one GPU.

Run: python -m benchmarks.images_speed [--network resnet18] [--quick] [--out FILE.json]

Both train the same network on the same random CIFAR-sized images with random crops, mirroring and SGD with Nesterov
momentum, batches of one size, images resident on the device. PyTorch runs channels-last; on a GPU under bfloat16
autocast and, with `--compiled`, through torch.compile. Ours is `vision.train_network`, whose clock leaves out
compilation and evaluation; PyTorch's warm-up epoch is left out likewise. The fastest epoch counts. glibc keeps what the
process frees, for both, as in our experiments with image networks.
"""

import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import _timing
from benchmarks._table import Row
from nctheory import vision
from nctheory._cli import keep_freed_memory
from nctheory.vision import networks

NUM_CLASSES = 10
PAD = 4


@dataclass(frozen=True)
class Config:
    """Sizes of the benchmark."""

    network: str | None = None
    """Residual network; by default resnet18 on an accelerator and resnet-small on a CPU."""
    num_images: int | None = None
    """Images of an epoch; by default 50,000 on an accelerator and 5,120 on a CPU."""
    batch_size: int = 128
    """Images a step."""
    num_epochs: int = 4
    """Epochs each; PyTorch has one more before them."""
    compiled: bool = True
    """Whether PyTorch goes through torch.compile (GPU only)."""
    quick: bool = False
    """Run a small version of everything, whose figures say little."""
    out: Path | None = None
    """Where to store the result."""


def images(count: int) -> "vision.Images":
    """Random images."""
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return vision.Images.of(levels, generator.integers(0, NUM_CLASSES, count), num_classes=NUM_CLASSES)


def ours(config: Config, spec: networks.ResNetSpec, data: "vision.Images") -> dict[str, Any]:
    """Images a second of every epoch, and seconds of compilation."""
    training = vision.ImageTrainConfig(
        batch_size=config.batch_size, num_epochs=config.num_epochs, nesterov=True, augment="crop_flip", pad=PAD
    )
    run = vision.train_network(spec, training, data, data.head(500), seed=0, progress=False)
    return {"images_per_second": run.history.images_per_second.tolist(), "compile_seconds": run.compile_seconds}


def torch_network(spec: networks.ResNetSpec) -> Any:
    """The same network in PyTorch."""
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.main = nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.Conv2d(after, after, 3, 1, 1, bias=False),
                nn.BatchNorm2d(after),
            )
            changes = stride != 1 or before != after
            short = (nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            self.shortcut = nn.Sequential(*short) if changes else nn.Identity()

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.main(x) + self.shortcut(x))

    width = spec.widths[0]
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    for stage, (count, after) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        for block in range(count):
            layers.append(Block(width, after, 2 if stage and not block else 1))
            width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, NUM_CLASSES))


def torch_views(levels: Any, mean: Any, std: Any) -> Any:
    """Random crops and mirror images of uint8 images (N, C, H, W), normalised."""
    import torch  # pyright: ignore[reportMissingImports]

    count, _, height, width = levels.shape
    padded = torch.nn.functional.pad(levels, (PAD, PAD, PAD, PAD))
    corner = torch.randint(0, 2 * PAD + 1, (2, count, 1), device=levels.device)
    rows = corner[0] + torch.arange(height, device=levels.device)
    columns = corner[1] + torch.arange(width, device=levels.device)
    flips = torch.rand(count, 1, device=levels.device) < 0.5
    columns = torch.where(flips, columns.flip(1), columns)
    place = torch.arange(count, device=levels.device)[:, None, None]
    crops = padded.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]]
    return ((crops.float() - mean) / std).permute(0, 3, 1, 2)


def torch_peer(config: Config, spec: networks.ResNetSpec, data: "vision.Images") -> dict[str, Any]:
    """Images a second of every epoch, and seconds of the first, which compiles."""
    import torch  # pyright: ignore[reportMissingImports]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    network: Any = torch_network(spec).to(device=device, memory_format=torch.channels_last)
    network = torch.compile(network) if on_gpu and config.compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    levels = torch.tensor(np.asarray(data.images)).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.tensor(np.asarray(data.labels)).long().to(device)
    mean, std = (torch.tensor(np.asarray(each)).to(device) for each in (data.mean, data.std))
    steps = len(labels) // config.batch_size

    def epoch() -> float:
        start = time.perf_counter()
        order = torch.randperm(len(labels), device=device)
        for index in range(steps):
            rows = order[index * config.batch_size : (index + 1) * config.batch_size]
            views = torch_views(levels[rows], mean, std).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = torch.nn.functional.cross_entropy(network(views), labels[rows])
            loss.backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = epoch()
    seconds = [epoch() for _ in range(config.num_epochs)]
    rates = [steps * config.batch_size / each for each in seconds]
    return {"images_per_second": rates, "first_epoch_seconds": first, "device": device.type}


def table(record: dict[str, Any]) -> list[Row]:
    """What the stored record comes down to."""
    ours = max(record["ours"]["images_per_second"])
    peer, note = record["torch"], "not installed"
    if peer is not None:
        note = {"cpu": "CPU, float32", "cuda": "GPU, bfloat16"}[peer["device"]]
    rate = None if peer is None else max(peer["images_per_second"])
    ours_on = record.get("device", "cpu")
    peer_on = "" if peer is None else {"cuda": "gpu"}.get(peer["device"], peer["device"])
    on = {"ours_on": ours_on, "peer_on": peer_on, "note": note}
    what, beside = "training {}, 32 x 32 images, batch {}", "PyTorch, channels last"
    here = what.format(record["network"], record["batch_size"])
    if record["network"] == "resnet18" and ours_on == "gpu":
        return [Row(here, "images/s", ours, beside, rate, required=1.0, **on)]
    # What is asked for is a matter of one network on a GPU.
    absent = Row(what.format("resnet18", 128), "images/s", None, beside, None, required=1.0, note="no GPU was measured")
    return [Row(here, "images/s", ours, beside, rate, **on), absent]


def main(config: Config) -> None:
    """Measure both, print the ratio, store."""
    keep_freed_memory()
    on_cpu = jax.default_backend() == "cpu"
    name = config.network or ("resnet-small" if on_cpu else "resnet18")
    spec = networks.network(name)
    if config.quick:
        name, spec = "one block of 8 channels", networks.ResNetSpec(blocks=(1,), widths=(8,))
        config = replace(config, num_images=config.num_images or 256, num_epochs=1)
    if not isinstance(spec, networks.ResNetSpec):
        raise SystemExit(f"error: Argument `network` must be a residual network, but is {name!r}.")
    before = _timing.provenance()
    data = images(config.num_images or (5_120 if on_cpu else 50_000))
    has_torch = find_spec("torch") is not None
    found = {"ours": ours(config, spec, data), "torch": torch_peer(config, spec, data) if has_torch else None}
    record = {"network": name, "batch_size": config.batch_size, "device": _timing.device(), **found}
    row = table(record)[0]
    print(before["machine"])
    beside = "PyTorch is not installed" if row.ratio is None else f"PyTorch {row.peer:,.0f} images/s"
    print(f"{name}, batch {config.batch_size}: ours {row.ours:,.0f} images/s, {beside};")
    ratio = "none" if row.ratio is None else f"{row.ratio:.2f}"
    print(f"ratio {ratio}; our compilation {record['ours']['compile_seconds']:.1f} s")
    if config.out is not None:
        _timing.store(config.out, before, record)


if __name__ == "__main__":
    main(tyro.cli(Config))
