"""Training of the embedding model: two texts of one meaning attract, all others repel."""

import random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaModel

from models.demo.corpus import facts, sums, talk, texts, tools, words
from models.demo.learning import Outcome, Plan, fit, precision
from models.demo.tokens import IDS, PAD

NUM_FACTS, NUM_OTHERS = 128, 64  # pairs in a batch
TEMPERATURE = 0.05
MAX_TOKENS = 128

Pair = tuple[str, str]


def _fact_pair(rng: random.Random, fact: facts.Fact) -> Pair:
    """Two questions for the same fact, or a question and its answer."""
    if rng.random() < 0.25:
        return facts.question(rng, fact), rng.choice(fact.answers)
    return facts.question(rng, fact), facts.question(rng, fact)


def _tool_pair(rng: random.Random) -> Pair:
    tool = rng.choice(tools.TOOLS)
    values = tool.arguments(rng)
    first, second = rng.sample(tool.asked, 2)
    return first.format(**values), second.format(**values)


def _sum_pair(rng: random.Random) -> Pair:
    question, answer = sums.sums(rng)
    return question["content"], answer["content"]


def _extraction_pair(rng: random.Random) -> Pair:
    question, answer = texts.extraction(rng)
    return question["content"], answer["content"]


def _loose_pair(rng: random.Random) -> Pair:
    question = talk.unknown_question(rng)
    return question, words.loosely(rng, f"Please tell me: {question}")


OTHERS = (_tool_pair, texts.short_pair, _sum_pair, _extraction_pair, _loose_pair)


def pairs(rng: random.Random) -> list[Pair]:
    """One batch: each fact and each kind of small talk at most once, so all negatives are true."""
    made = [_fact_pair(rng, fact) for fact in rng.sample(facts.facts(), NUM_FACTS)]
    for entry in words.load("talk")["talk"]:
        made.append((rng.choice(entry["q"]), words.loosely(rng, rng.choice(entry["q"]))))
    return made + [rng.choice(OTHERS)(rng) for _ in range(NUM_OTHERS)]


def embed(model: LlamaModel, tokenizer: Tokenizer, batch: list[str]) -> Tensor:
    """Unit vectors, [texts, hidden]: the mean over all tokens of the last hidden states."""
    device = next(model.parameters()).device
    rows = [encoding.ids[:MAX_TOKENS] for encoding in tokenizer.encode_batch(batch)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [IDS[PAD]] * (width - len(row)) for row in rows], device=device)
    is_text = ids != IDS[PAD]
    with precision(device):
        hidden = model(input_ids=ids, attention_mask=is_text.long(), use_cache=False)[0]
    weights = is_text.unsqueeze(-1).float()
    return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1), dim=-1)


def fit_embedding(
    model: LlamaModel, tokenizer: Tokenizer, plan: Plan, device: torch.device, seed: int
) -> Outcome:
    rng = random.Random(seed)
    model.to(device).train()

    def loss_of() -> Tensor:
        batch = pairs(rng)
        vectors = embed(model, tokenizer, [text for pair in batch for text in pair])
        likeness = vectors[0::2] @ vectors[1::2].T / TEMPERATURE
        target = torch.arange(len(batch), device=device)
        return (F.cross_entropy(likeness, target) + F.cross_entropy(likeness.T, target)) / 2

    return fit(model, plan, device, loss_of)
