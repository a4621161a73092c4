"""Stands for all tests of this folder where there is no card."""

from rehearsal import DEVICE


def test_a_card_computes(card_name):
    import torch

    ones = torch.ones(64, 64, device=DEVICE)
    assert float((ones @ ones).sum()) == 64**3, card_name
