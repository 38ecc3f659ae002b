"""Device nodes of GPUs, which a unit must allow and a confined model must see."""

from __future__ import annotations

NODES = (
    # Pattern below /dev, and the group that owns such nodes, as L4T and Debian set them up.
    ("nvhost*", "video"),  # Jetson: the GPU and what CUDA needs with it
    ("nvmap", "video"),
    ("nvgpu/*/*", "video"),
    ("nvidia*", "video"),
    ("nvidia-caps/*", "video"),
    ("nvsciipc", "video"),
    ("host1x-fence", "video"),
    ("tegra*", "video"),
    ("dma_heap/*", "video"),
    ("dri/renderD*", "render"),
)
