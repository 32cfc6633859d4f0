"""Train the two tiny models of the catalogue, one with and one without a load-balancing loss.

Runs with the interpreter of an engine, which has torch: `PYTHON scripts/train_tiny_moe.py`, from
the checkout, a few minutes a model on two cores. Same text, seed, steps and rates: the coefficient
of the load-balancing loss is all that differs. Writes weights and figures beside the catalogue,
the hash of the weights into the entries, and the held-out prompts for the suites.

Seeded, and repeatable with the same torch on the same kind of processor; another one rounds
otherwise and ends at other weights, which is why the weights are stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tiny_moe_text import DOMAINS, Document, document
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the engine's interpreter has no copy of the package

from pytest_moeperf.balance import ExpertCounts, collapses, largest_deviation, shares  # noqa: E402

CATALOGUE = ROOT / "pytest_moeperf" / "catalogue"
PROMPTS = ROOT / "suites" / "moe" / "prompts"
END_OF_TEXT = 2
HELD_OUT_ROWS = 64
"""Of each domain, to examine a model with."""
PROMPTS_EACH = 64
PROMPT_TOKENS = range(24, 97)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained."""

    balance_coefficient: float
    """Of the load-balancing loss, summed over layers."""
    seed: int = 1
    steps: int = 400
    rows: int = 16
    row_tokens: int = 128
    learning_rate: float = 1e-2
    """Highest; it rises over `warmup_steps` and falls to a tenth along half a cosine."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    init_std: float = 0.02


RECIPES = {
    "tiny-moe-balanced": Recipe(balance_coefficient=0.02),
    "tiny-moe-collapsed": Recipe(balance_coefficient=0.0),
}


class Norm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


class Attention(nn.Module):
    """Causal attention with grouped keys and rotary positions."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, size = config["hidden_size"], config["head_dim"]
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = size
        self.q_proj = nn.Linear(hidden, heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, groups * size, bias=False)
        self.v_proj = nn.Linear(hidden, groups * size, bias=False)
        self.o_proj = nn.Linear(heads * size, hidden, bias=False)
        self.frequencies = config["rope_theta"] ** -(torch.arange(size // 2) / (size // 2))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape

        def heads(projection: nn.Linear) -> Tensor:
            return projection(x).view(rows, length, -1, self.size).transpose(1, 2)

        angles = torch.arange(length)[:, None] * self.frequencies
        query, key = (_rotated(heads(each), angles) for each in (self.q_proj, self.k_proj))
        mixed = functional.scaled_dot_product_attention(
            query, key, heads(self.v_proj), is_causal=True, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Expert(nn.Module):
    """A gated feed-forward block."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """Mixtral's layer of experts; keeps the routes and the balance loss of the last pass."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, count = config["hidden_size"], config["num_local_experts"]
        self.top_k = config["num_experts_per_tok"]
        self.gate = nn.Linear(hidden, count, bias=False)
        self.experts = nn.ModuleList(
            Expert(hidden, config["intermediate_size"]) for _ in range(count)
        )
        self.routes = torch.empty(0)
        self.balance_loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        probabilities = self.gate(flat).softmax(-1)
        weights, self.routes = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        self.balance_loss = _balance_loss(probabilities, self.routes)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            tokens, places = torch.nonzero(self.routes == number, as_tuple=True)
            weighed = expert(flat[tokens]) * weights[tokens, places, None]
            out = out.index_add(0, tokens, weighed)
        return out.view_as(x)


def _balance_loss(probabilities: Tensor, routes: Tensor) -> Tensor:
    """E × Σ fᵢ × Pᵢ, 1 when even: f the share of routes, P the mean probability of an expert.

    Fedus et al. 2021, "Switch Transformers", eq. 4, with shares of tokens × k as in Mixtral's
    released code; for each layer by itself and over all tokens of a batch, of all domains.
    """
    experts = probabilities.shape[-1]
    routed = torch.bincount(routes.flatten(), minlength=experts) / routes.numel()
    return experts * (routed * probabilities.mean(0)).sum()


class Layer(nn.Module):
    """Attention and experts, each on the normalised sum so far."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = Norm(config["hidden_size"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config["hidden_size"])
        self.block_sparse_moe = Mixture(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """All but the output layer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = Norm(config["hidden_size"])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Mixtral(nn.Module):
    """With the tensor names of the published checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.model(tokens))

    @property
    def mixtures(self) -> list[Mixture]:
        return [layer.block_sparse_moe for layer in self.model.layers]


class Text:
    """Documents as tokens."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(CATALOGUE / "tokenizer" / "tokenizer.json"))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text).ids)

    def rows(self, split: str, recipe: Recipe, domains: tuple[str, ...]) -> Iterator[list[int]]:
        """Without end: documents of the domains in turn, cut where the row is full."""
        number = 0
        while True:
            row: list[int] = []
            while len(row) <= recipe.row_tokens:
                text = document(domains[number % len(domains)], f"{split}/{number}").text
                row += [*self._tokenizer.encode(text).ids, END_OF_TEXT]
                number += 1
            yield row[: recipe.row_tokens + 1]

    def batch(self, rows: Iterator[list[int]], count: int) -> tuple[Tensor, Tensor]:
        """Tokens, and at each place the one that follows."""
        tokens = torch.tensor([next(rows) for _ in range(count)])
        return tokens[:, :-1], tokens[:, 1:]


def initialised(recipe: Recipe, config: Mapping[str, Any]) -> Mixtral:
    torch.manual_seed(recipe.seed)
    model = Mixtral(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=recipe.init_std)
    return model


def train(model: Mixtral, recipe: Recipe, text: Text) -> list[dict[str, float]]:
    """Train in place; returns what was noted every 25 steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    rows, curve, started = text.rows("train", recipe, tuple(DOMAINS)), [], time.monotonic()
    for step in range(1, recipe.steps + 1):
        tokens, following = text.batch(rows, recipe.rows)
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        balance = torch.stack([mixture.balance_loss for mixture in model.mixtures]).sum()
        (loss + recipe.balance_coefficient * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad()
        if step == 1 or step % 25 == 0:
            mean = balance.item() / len(model.mixtures)
            curve.append(
                {"step": step, "loss": round(loss.item(), 4), "balance_loss": round(mean, 4)}
            )
            print(f"  {time.monotonic() - started:4.0f} s  {curve[-1]}", flush=True)
    return curve


def learning_rate(recipe: Recipe, step: int) -> float:
    rising = min(1.0, step / recipe.warmup_steps)
    falling = 0.55 + 0.45 * math.cos(math.pi * step / recipe.steps)
    return recipe.learning_rate * rising * falling


def examine(model: Mixtral, recipe: Recipe, text: Text) -> dict[str, Any]:
    """Losses in nats a token, and shares of experts, on text that was not trained on."""
    frequencies = unigrams(recipe, text)
    losses, unigram_losses, counts = {}, {}, {}
    for domain in DOMAINS:
        rows = text.rows("held-out", recipe, (domain,))
        tokens, following = text.batch(rows, HELD_OUT_ROWS)
        with torch.no_grad():
            loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        losses[domain] = loss.item()
        unigram_losses[domain] = -frequencies[following].log().mean().item()
        experts = model.mixtures[0].gate.out_features
        counts[domain] = torch.stack(
            [torch.bincount(each.routes.flatten(), minlength=experts) for each in model.mixtures]
        ).numpy()
    tokens_each = HELD_OUT_ROWS * recipe.row_tokens
    mixed = ExpertCounts(
        counts=sum(counts.values()),
        tokens=len(DOMAINS) * tokens_each,
        top_k=model.mixtures[0].top_k,
    )
    return {
        "held_out_tokens": mixed.tokens,
        "loss": _rounded(losses | {"mixed": _mean(losses)}),
        "unigram_loss": _rounded(unigram_losses | {"mixed": _mean(unigram_losses)}),
        "shares": {
            domain: shares(each).round(4).tolist()
            for domain, each in (counts | {"mixed": mixed.counts}).items()
        },
        "largest_deviation": largest_deviation(mixed.counts).round(4).tolist(),
        "collapses": [found.message for found in collapses(mixed)],
    }


def unigrams(recipe: Recipe, text: Text) -> Tensor:
    """Frequency of each token in the training text, one added to each count."""
    counts = Counter[int]()
    rows = text.rows("train", recipe, tuple(DOMAINS))
    for _ in range(recipe.steps * recipe.rows):
        counts.update(next(rows)[1:])
    frequencies = torch.ones(read_config("tiny-moe-balanced")["vocab_size"])
    for token, count in counts.items():
        frequencies[token] += count
    return frequencies / frequencies.sum()


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def read_config(name: str) -> dict[str, Any]:
    return json.loads((CATALOGUE / f"{name}.json").read_text())["config"]


def write_model(name: str, model: Mixtral, target: Path) -> None:
    """Write the weights, and their hash into the entry of the catalogue."""
    weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    (target / name).mkdir(parents=True, exist_ok=True)
    file = target / name / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library writes for the owner alone
    entry = json.loads((CATALOGUE / f"{name}.json").read_text())
    entry["weights_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (target / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")
    model.load_state_dict(load_file(file))  # what is examined is what is stored


def write_prompts(text: Text, target: Path) -> None:
    """Write held-out documents of each domain as ShareGPT conversations."""
    target.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        conversations, number = [], 0
        while len(conversations) < PROMPTS_EACH:
            found = document(domain, f"prompts/{number}")
            if text.count(found.prompt) in PROMPT_TOKENS:
                conversations.append(_conversation(f"{domain}-{number}", found))
            number += 1
        (target / f"{domain}.json").write_text(json.dumps(conversations, indent=1) + "\n")


def _conversation(name: str, found: Document) -> dict[str, Any]:
    turns = [{"from": "human", "value": found.prompt}, {"from": "gpt", "value": found.answer}]
    return {"id": name, "conversations": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=CATALOGUE, help="default: the catalogue")
    args = parser.parse_args()
    torch.set_num_threads(2)  # sums are split by thread: another number rounds otherwise
    torch.use_deterministic_algorithms(mode=True)
    text = Text()
    for name, recipe in RECIPES.items():
        print(name, flush=True)
        model = initialised(recipe, read_config(name))
        curve = train(model, recipe, text)
        write_model(name, model, args.out)
        found = examine(model, recipe, text)
        made = {"recipe": asdict(recipe), "torch": torch.__version__, **found, "curve": curve}
        (args.out / name / "training.json").write_text(json.dumps(made, indent=1) + "\n")
        for each in ("loss", "unigram_loss", "largest_deviation", "collapses"):
            print(f"  {each}: {found[each]}")
    if args.out == CATALOGUE:
        write_prompts(text, PROMPTS)


if __name__ == "__main__":
    main()
