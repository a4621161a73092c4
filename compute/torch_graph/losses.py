"""The two losses that ONNX has as operators: training steps may use them.

Part of *execute*. Log-probabilities and their means are of float32 in the class ``low``, too.
"""

from __future__ import annotations

from typing import Final

import torch

from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    given,
)


def _likelihood_loss(
    node: Node, run: Run, scores: Tensor, labels: Tensor, weights: Tensor | None
) -> Tensor:
    """The loss of log-probabilities (N, C, …) for classes (N, …), reduced as the node says."""
    classes = scores.shape[1] if scores.ndim > 1 else 0
    if not classes or scores.shape[:1] + scores.shape[2:] != labels.shape:
        fail("shape_mismatch", f"{list(labels.shape)} are no labels of {list(scores.shape)}")
    if weights is not None and weights.shape != (classes,):
        fail("shape_mismatch", f"{list(weights.shape)} are no weights of {classes} classes")
    labels = labels.to(torch.int64)
    ignored = node.get("ignore_index")
    counted = (
        torch.ones_like(labels, dtype=torch.bool) if ignored is None else labels != ignored
    )
    held = (~counted | ((labels >= 0) & (labels < classes))).all()
    run.require(node, held, "out_of_range", "a label is no class")
    chosen = torch.where(counted, labels, torch.zeros_like(labels)).clamp(0, classes - 1)
    weight = counted.to(scores.dtype)
    if weights is not None:
        weight = weight * weights[chosen]
    loss = -scores.gather(1, chosen.unsqueeze(1)).squeeze(1)
    loss = torch.where(counted, loss * weight, torch.zeros_like(loss))
    reduction = node.get("reduction", "mean")
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / weight.sum()


def _negative_log_likelihood(node: Node, inputs: Inputs, run: Run) -> Outputs:
    scores, labels, weights = given(inputs, 3)
    return (_likelihood_loss(node, run, scores, labels, weights),)


def _softmax_cross_entropy(node: Node, inputs: Inputs, run: Run) -> Outputs:
    scores, labels, weights = given(inputs, 3)
    logarithms = torch.log_softmax(scores, 1)
    return _likelihood_loss(node, run, logarithms, labels, weights), logarithms


def _refuses(node: Node) -> str | None:
    reduction = node.get("reduction", "mean")
    return None if reduction in {"none", "sum", "mean"} else f"the reduction {reduction!r}"


OPERATORS: Final[dict[str, Operator]] = {
    "NegativeLogLikelihoodLoss": Operator(
        _negative_log_likelihood, width=Width.WIDE, refuses=_refuses
    ),
    "SoftmaxCrossEntropyLoss": Operator(
        _softmax_cross_entropy, width=Width.WIDE, refuses=_refuses
    ),
}
