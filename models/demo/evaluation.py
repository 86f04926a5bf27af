"""What the demo models can do, as figures: questions, sums, tool calls, extraction, embeddings."""

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from models.demo.contrast import embed
from models.demo.corpus import facts, sums, talk, texts, tools, words
from models.demo.corpus.conversations import Conversation
from models.demo.learning import chat_loss
from models.demo.packing import Order, Shard, make_shard
from models.demo.tokens import END, IDS, PAD, ROLES, Encoder

QUESTIONS = Path(__file__).with_name("questions.toml")
SEED = 987_654_321  # apart from every training seed
MAX_NEW_TOKENS = 128
BATCH = 100


def questions(kind: str = "question") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(QUESTIONS.read_text(encoding="utf-8"))[kind]
    return found


class Speaker:
    """Greedy answers of one chat model, many prompts at a time."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encoder = Encoder(self.tokenizer)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert isinstance(model, LlamaForCausalLM)
        self.model = model.to(device).eval()
        self.device = device

    def prompt(self, made: Conversation) -> list[int]:
        ids, _ = self.encoder.encode(made)
        return [*ids, IDS[ROLES["assistant"]]]

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """Answers with special tokens left in; one that ends by itself ends with the end token."""
        made: list[str] = []
        for at in range(0, len(prompts), BATCH):
            made += self._batch(prompts[at : at + BATCH])
        return made

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]]) -> list[str]:
        width = max(map(len, prompts))
        rows = [[IDS[PAD]] * (width - len(row)) + row for row in prompts]
        ids = torch.tensor(rows, device=self.device)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=(ids != IDS[PAD]).long(),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        texts = [self.tokenizer.decode(row[width:], skip_special_tokens=False)
                 for row in output.tolist()]  # fmt: skip
        return [text.replace(str(PAD), "") for text in texts]


def _accuracy(speaker: Speaker, cases: list[tuple[Conversation, str]]) -> float:
    """The share of cases whose answer is exactly the expected one."""
    answers = speaker.answers([speaker.prompt(made) for made, _ in cases])
    wanted = [expected + END for _, expected in cases]
    return round(sum(a == w for a, w in zip(answers, wanted, strict=True)) / len(cases), 4)


def _cases(skill: talk.Skill, num: int) -> list[tuple[Conversation, str]]:
    rng = random.Random(SEED)
    exchanges = [skill(rng) for _ in range(num)]
    return [(Conversation([user]), answer["content"]) for user, answer in exchanges]


def _tool_cases(num: int) -> list[tuple[Conversation, str]]:
    rng = random.Random(SEED)
    cases: list[tuple[Conversation, str]] = []
    while len(cases) < num:
        box = tools.toolbox(rng)
        user, answer, *_ = tools.tool_exchange(rng, box)
        call = answer["tool_calls"][0]["function"]
        made = Conversation([user], [tools.schema(tool) for tool in box])
        if len(answer["tool_calls"]) == 1:
            cases.append((made, f"<|tool_call|>{talk.as_json(call)}<|tool_call_end|>"))
    return cases


def _result_cases(num: int) -> list[tuple[Conversation, str]]:
    """Tool results that have to be told."""
    rng = random.Random(SEED)
    cases: list[tuple[Conversation, str]] = []
    while len(cases) < num:
        box = tools.toolbox(rng)
        *before, answer = tools.tool_exchange(rng, box)
        if "tool_calls" not in answer:
            made = Conversation(before, [tools.schema(tool) for tool in box])
            cases.append((made, answer["content"]))
    return cases


def _memory_cases(num: int) -> list[tuple[Conversation, str]]:
    """A fact told early and asked after a few other turns."""
    rng = random.Random(SEED)
    cases = []
    for _ in range(num):
        name = words.first_name(rng)
        messages = talk.ask(f"My name is {name}.", f"Nice to meet you, {name}!")
        for _ in range(rng.randint(1, 6)):
            messages += facts.fact_exchange(rng)
        messages.append({"role": "user", "content": "What is my name?"})
        cases.append((Conversation(messages), f"Your name is {name}."))
    return cases


def keyword_check(speaker: Speaker, kind: str = "question") -> list[dict[str, Any]]:
    """The questions with their answers, and whether each holds its keywords and stops by itself."""
    asked = questions(kind)
    prompts = [
        speaker.prompt(Conversation([{"role": "user", "content": q["text"]}])) for q in asked
    ]
    return [
        {
            "question": q["text"],
            "answer": answer.removesuffix(END),
            "ok": answer.endswith(END) and all(k.lower() in answer.lower() for k in q["keywords"]),
        }
        for q, answer in zip(asked, speaker.answers(prompts), strict=True)
    ]


def held_out_loss(speaker: Speaker, folder: Path) -> dict[str, float]:
    """Loss on short and on long rows that no training seed makes."""
    losses = {}
    for name, number in (("loss_short_rows", 0), ("loss_long_rows", 2)):
        shard = make_shard(Order(SEED, number, str(folder / "tokenizer.json")))
        num_rows = 16_384 // shard.ids.shape[1]
        batch = Shard(shard.ids[:num_rows], shard.is_answer[:num_rows])
        with torch.inference_mode():
            losses[name] = round(chat_loss(speaker.model, batch, speaker.device).item(), 4)
    return losses


def evaluate_chat(folder: Path, device: torch.device, num: int = 200) -> dict[str, Any]:
    speaker = Speaker(folder, device)
    found = keyword_check(speaker)
    unseen = keyword_check(speaker, "unseen")
    suites: dict[str, Callable[[], list[tuple[Conversation, str]]]] = {
        "sums": lambda: _cases(sums.sums, num),
        "tool_calls": lambda: _tool_cases(num),
        "tool_results": lambda: _result_cases(num),
        "extraction": lambda: _cases(texts.extraction, num),
        "shortening": lambda: _cases(texts.shorten, num),
        "lists": lambda: _cases(texts.lists, num),
        "repeating": lambda: _cases(talk.repeat, num),
        "memory": lambda: _memory_cases(num),
        "facts": lambda: _cases(facts.fact_exchange, num),
    }
    return {
        **held_out_loss(speaker, folder),
        "questions_right": sum(item["ok"] for item in found),
        "unseen_questions_right": sum(item["ok"] for item in unseen),
        **{name: _accuracy(speaker, make()) for name, make in suites.items()},
        "answers": found,
        "unseen_answers": unseen,
    }


@torch.inference_mode()
def evaluate_embedding(folder: Path, device: torch.device) -> dict[str, float]:
    """How often the nearest of all facts' questions is the one with the same meaning."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, LlamaModel)
    model.to(device).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(SEED)
    pairs = [rng.sample(sorted(set(fact.questions)), 2) for fact in facts.facts()]
    first = embed(model, tokenizer, [pair[0] for pair in pairs])
    second = embed(model, tokenizer, [pair[1] for pair in pairs])
    answers = embed(model, tokenizer, [fact.answers[0] for fact in facts.facts()])
    target = torch.arange(len(pairs), device=first.device)
    return {
        "paraphrase_first": round((first @ second.T).argmax(1).eq(target).float().mean().item(), 4),
        "answer_first": round((first @ answers.T).argmax(1).eq(target).float().mean().item(), 4),
    }


def print_results(results: dict[str, Any]) -> None:
    for model, figures in results.items():
        print(f"\n{model}")
        for name, value in figures.items():
            if not isinstance(value, list):
                print(f"  {name}: {value}")
                continue
            for item in value:
                print(f"  {'ok ' if item['ok'] else 'BAD'} {item['question']} -> {item['answer']}")


def write_results(results: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
