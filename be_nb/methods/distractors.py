from be_nb.distractor import mix_static_frame
from be_nb.methods.fame import colours, likelihood
import torch

def partners(clips: torch.Tensor, draw, variant: str, count: int = 1) -> torch.Tensor:
    "Places in the batch of `count` other clips for each: int64 (b, count), different ones while there are enough."
    b = len(clips)
    if b == 1:
        raise ValueError(f"{variant} takes its distractor from other clips of the batch, and this is a batch of one; "
                         "use a larger batch, or intra_frame")
    own = torch.arange(b)[:, None]
    further = (draw.other[:, None] - own - 1) % b                                 # 0 … b − 2: from the next clip on
    return ((own + 1 + (further + torch.arange(count)) % (b - 1)) % b).to(clips.device, non_blocking=True)


def patchwork(clips: torch.Tensor, sources: torch.Tensor, frame: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    "A quarter of the frame from each of four clips, cut out at the same place: (b, c, h, w)."
    h, w = clips.shape[-2:]
    half = [(length + 1) // 2 for length in (h, w)]
    rows, columns = (torch.arange(length, device=clips.device) for length in (h, w))
    source = sources[:, 2 * (rows >= half[0]).long()[:, None] + (columns >= half[1]).long()]   # (b, h, w)
    first = [(corner[:, k, None] * (1 + full - size)).long() for k, (full, size) in enumerate(zip((h, w), half))]
    y, x = (place % size + start for place, size, start in zip((rows, columns), half, first))
    return clips[source, :, frame[:, None, None], y[:, :, None], x[:, None]].movedim(-1, 1)


def background_patching(clips, draw):
    "The still frame is put together from quarters of four other clips of the batch (Assefa et al., 2023)."
    four = partners(clips, draw, "background_patching", 4)
    frame, corner = (x.to(clips.device, non_blocking=True) for x in (draw.frame, draw.corner))
    return mix_static_frame(clips, patchwork(clips, four, frame, corner), draw.lam)


def inter_mean(clips, draw):
    "The still frame is the mean over time of another clip of the batch: its wall, and of its actor a blur."
    return mix_static_frame(clips, clips[partners(clips, draw, "inter_mean")[:, 0]].mean(2), draw.lam)


def merged_background(clips, draw):
    other = partners(clips, draw, "merged_background")[:, 0]
    still = clips[other, :, draw.frame.to(clips.device, non_blocking=True)]
    rank = likelihood(colours(clips.float())).flatten(1).argsort(dim=1, stable=True).argsort(1)
    lam = draw.lam.to(clips.device, non_blocking=True)
    swapped = (rank < lam[:, None] * rank.shape[1]).unflatten(1, clips.shape[-2:])
    return torch.where(swapped[:, None, None], still[:, :, None], clips)
