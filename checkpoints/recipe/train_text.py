"""Make the tokenizer and train the text encoder: `python -m checkpoints.recipe.train_text`.

The tokenizer knows whole words, so that a word it does not know is one `[unk]`, which the app can name to the
user. The encoder is taught alone, before there is any picture, to let every attribute that a caption names
(or leaves open) be read off its token states by a query per attribute, as the UNet's cross-attention will
read them. Unknown words are strewn in, so that it learns to pass over them.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from checkpoints.recipe.captions import caption, vocabulary
from checkpoints.recipe.fit import fit, pick_device, stage_parser
from checkpoints.recipe.scenes import ATTRIBUTES, sample_scene

MAX_TOKENS = 64
UNSAID = -1
SPECIAL = ["[pad]", "[unk]", "[start]", "[end]"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the captions' vocabulary; case and punctuation but commas are dropped."""
    words = [*SPECIAL, ",", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("'s", ""),
            normalizers.Replace(Regex(r"[^\p{L}\p{N},]+"), " "),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(",", "isolated")]
    )
    start, end = SPECIAL.index("[start]"), SPECIAL.index("[end]")
    core.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]", special_tokens=[("[start]", start), ("[end]", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_TOKENS,
        pad_token="[pad]",
        unk_token="[unk]",
        bos_token="[start]",
        eos_token="[end]",
    )


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class AttributeQueries(nn.Module):
    """The text encoder, and one query per attribute that attends to its states and says what was named."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(width, len(values) + 1) for values in ATTRIBUTES.values())

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Token ids (b, 64) to one (b, values + 1) of logits per attribute; the last column is "unsaid"."""
        states = self.encoder(ids).last_hidden_state
        read, _ = self.attention(self.queries.expand(len(ids), -1, -1), states, states, need_weights=False)
        return [head(read[:, i]) for i, head in enumerate(self.heads)]


def with_unknown_words(words: str, rng: np.random.Generator) -> str:
    """Strew up to three words that the tokenizer does not know into a third of the captions."""
    parts = words.split()
    if rng.random() < 0.33:
        for _ in range(int(rng.integers(1, 4))):
            parts.insert(int(rng.integers(len(parts) + 1)), "qwxz")
    return " ".join(parts)


def captioned_batch(count: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Captions of fresh scenes and what each names: (count, 15) value indices, or UNSAID."""
    texts, named = [], torch.full((count, len(ATTRIBUTES)), UNSAID)
    names = list(ATTRIBUTES)
    for row in range(count):
        words, said = caption(sample_scene(rng), rng)
        texts.append(with_unknown_words(words, rng))
        for attribute, value in said.items():
            named[row, names.index(attribute)] = ATTRIBUTES[attribute].index(value)
    return texts, named


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__, steps=400, batch=128)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = AttributeQueries(make_text_encoder(tokenizer))

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        texts, named = captioned_batch(args.batch, rng)
        ids = tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        logits = model(ids.input_ids.to(device))
        loss, right = torch.zeros((), device=device), []
        for column, scores in enumerate(logits):
            wanted = named[:, column].to(device) % scores.shape[1]  # UNSAID is the last class
            loss = loss + nn.functional.cross_entropy(scores, wanted)
            right.append((scores.detach().argmax(1) == wanted).float().mean())
        return loss, {"accuracy": torch.stack(right).mean()}

    trained = fit(
        args.work / "text",
        model,
        loss_fn,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=2e-3,
        device=device,
        warmup=50,
    )
    tokenizer.save_pretrained(args.work / "pipeline" / "tokenizer")
    trained.encoder.save_pretrained(args.work / "pipeline" / "text_encoder")


if __name__ == "__main__":
    main()
