"""Stands for all tests of this folder where there is no card."""


def test_a_card_computes(card_name):
    import torch

    ones = torch.ones(64, 64, device="cuda")
    assert float((ones @ ones).sum()) == 64**3, card_name
