"""How steps may lie on a noise schedule, by name."""

from itertools import accumulate

SPACINGS = ("leading", "trailing", "linspace", "quadratic")
# Lists of timesteps that somebody tuned for their model: so many steps in each of as many equal parts of the schedule,
# from the least noise on. fast27: GLIDE's upsampler (Nichol et al. 2021); the others: DeepFloyd IF's stages.
SECTIONS: dict[str, tuple[int, ...]] = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}
ALL = (*SPACINGS, *SECTIONS)


def sections(name: str, num_train_timesteps: int) -> list[int]:
    """Return the timesteps of a name in `SECTIONS`, rising; of two that round to the same, one."""
    counts, start, found = SECTIONS[name], 0, set[int]()
    for i, count in enumerate(counts):
        size = num_train_timesteps // len(counts) + (i < num_train_timesteps % len(counts))
        strides = [(size - 1) / max(count - 1, 1)] * (count - 1)
        found |= {start + round(at) for at in accumulate(strides, initial=0.0)}  # in floats, as theirs were made
        start += size
    if name == "fast27" and num_train_timesteps > 3:  # the last but two, in place of the last
        found = {*found - {num_train_timesteps - 1}, num_train_timesteps - 3}
    return sorted(found)
