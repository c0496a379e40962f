"""The miniature's network, wider: `be-nb ladder --change backbone=benchmarks.networks:Wide`, run in the root."""
from be_nb.backbones.tiny import Tiny


class Wide(Tiny):
    "Twice as wide: 0.85 million parameters, about four times the work."

    def __init__(self, in_channels: int = 3):
        super().__init__(in_channels, width=32)
