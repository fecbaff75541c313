"""Groups of features are found in all of their directions, however wide each one is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from buckler.encoders._pseudo import grouped


def test_groups_are_found_in_narrow_directions_too() -> None:
    draw = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (200,), generator=draw)
    narrow = 1e-3 * side[:, None].float().expand(-1, 5)
    features = torch.cat([narrow, 100 * torch.rand(200, 1, generator=draw), torch.zeros(200, 1)], 1)
    group = grouped(nn.Identity(), features, 2, 0)(features).argmax(1)
    assert group.equal(side) or group.equal(1 - side)


@pytest.mark.parametrize("groups", [1, 6])
def test_one_group_and_more_than_inputs_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match="2 groups or more"):
        grouped(nn.Identity(), torch.rand(5, 3), groups, 0)
