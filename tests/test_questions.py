"""be_nb.judging.questions: an oracle that sees motion answers, and does not when time stands still."""
import torch
import torch.nn.functional as F
from torch import nn

from be_nb.data.scenebias import SceneBias
from be_nb.judging.questions import answered, right_answers
from be_nb.methods.order import ClipOrder, orders
from be_nb.settings import PretrainConfig
from be_nb.train import pretrain


class Oracle(nn.Module):
    "A backbone that reports how much a clip moves: enough to order clips of a motor that runs down."

    feature_dim = 1

    def features(self, clips):
        motion = clips.diff(dim=2).abs() if clips.shape[2] > 1 else torch.zeros_like(clips)
        return motion.mean((1, 2, 3, 4))[:, None, None, None, None]


class BySpeed(nn.Module):
    "The answer in which the fastest clip comes first."

    def forward(self, features):
        fastest_first = features[:, :, 0].argsort(1, descending=True)            # place of each clip in time
        return F.one_hot((orders(3)[:, None] == fastest_first.argsort(1)).all(2).int().argmax(0), 6).float()


def test_held_out_answers_read_motion_and_not_stills():
    config = PretrainConfig(method="order", frames=8, gap=8, distractor="none", damping=3., crop=(1., 1.), size=30,
                            amp="fp32", brightness=0, contrast=0, saturation=0, hue=0)
    method = ClipOrder.from_config(config, Oracle())
    method.head = BySpeed()
    method.register_parameter("anything", nn.Parameter(torch.zeros(1)))
    source = SceneBias("unbiased", size=96, damping=3.)
    assert right_answers(method, source, config) > .5 > .35 > \
        right_answers(method, source, config, stopped=True)
    assert right_answers(method, SceneBias("unbiased", size=96), config) < .35


def test_answers_of_a_run_come_from_its_checkpoint(tmp_path):
    small = dict(data_size=8, batch_size=2, steps=1, out=str(tmp_path), progress=False, amp="fp32", device="cpu")
    found = answered(pretrain("scenebias-puzzles", name="a", **small).checkpoint, size=8)
    assert sorted(found) == ["answered", "answered_space", "answered_still", "answered_time"]
    assert all(0 <= value <= 1 for value in found.values())
    assert answered(pretrain("scenebias-moco", name="b", **small).checkpoint) == {}
