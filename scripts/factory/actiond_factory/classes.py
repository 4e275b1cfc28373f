"""The classes of the default model, in index order. The manifest, the trainer and the renderer all read this list."""

LABELS = [
    "nothing",
    "walking",
    "running",
    "jumping",
    "sitting down",
    "standing up",
    "picking up",
    "falling",
    "waving",
    "punching",
    "kicking",
    "pushing",
    "dancing",
]

INDEX = {label: index for index, label in enumerate(LABELS)}
