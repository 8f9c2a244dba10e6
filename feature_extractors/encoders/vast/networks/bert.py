"""The text encoder: bert-base-uncased run without cross-attention, its class token the feature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from calmrl_lab.errors import CalmrlError, missing_extra
from feature_extractors.encoders.vast.networks.architecture import TextSizes

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer
    from torch import Tensor, nn
    from transformers import BertConfig

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def read_vocabulary(path: Path, size: int) -> list[str]:
    """The words of vocab.txt, or of the WordPiece model in tokenizer.json, in the order of their ids.

    Raises CalmrlError if it cannot be read, lacks a special token, or holds another number of words than `size`, which the weights have rows for.
    """
    hint = "use vocab.txt of bert-base-uncased"
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            ids = json.loads(content)["model"]["vocab"]
            words = sorted(ids, key=ids.__getitem__)
            if [ids[word] for word in words] != list(range(len(words))):
                raise ValueError("its ids are not 0, 1, 2, ...")
        else:
            words = content.splitlines()
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalmrlError(f"the vocabulary '{path}' cannot be read: {error}", hint=hint) from None
    lacking = [token for token in _SPECIAL if token not in words]
    if lacking:
        raise CalmrlError(f"the vocabulary '{path}' ({len(words)} words) has no {lacking[0]}", hint=hint)
    if len(words) != size:
        raise CalmrlError(
            f"the vocabulary '{path}' has {len(words)} words, the weights are for {size}: it belongs to another BERT", hint=hint
        )
    return words


def tokenizer(words: Sequence[str], max_length: int) -> BertWordPieceTokenizer:
    """Lower-casing WordPiece tokenizer that adds [CLS] and [SEP] and truncates to `max_length` tokens, these two included."""
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError:
        raise missing_extra("tokenizers", "vast", "VAST's text encoder") from None
    made = BertWordPieceTokenizer(vocab={word: index for index, word in enumerate(words)}, lowercase=True)
    made.enable_truncation(max_length)
    return made


def config(sizes: TextSizes, cross_attention: bool) -> BertConfig:
    """transformers' configuration; cross-attention is only possible there for a decoder."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.types,
        is_decoder=cross_attention,
        add_cross_attention=cross_attention,
    )


def load(weights: Mapping[str, Tensor], sizes: TextSizes, cross_attention: bool = False) -> nn.Module:
    """BERT with the `text` part of a checkpoint, without its pooler; `cross_attention` keeps the layers that matching uses.

    Without cross-attention this is no decoder, so attention is bidirectional. VAST's own code sets `is_decoder=True` with the
    causal branch removed; the same flag in transformers, with a two-dimensional mask, would let the class token see only itself.
    """
    import torch
    from transformers import BertModel

    with torch.device("meta"):
        model = BertModel(config(sizes, cross_attention), add_pooling_layer=False)
    kept = {k: v for k, v in weights.items() if cross_attention or ".crossattention." not in k}
    model.load_state_dict(kept, strict=True, assign=True)
    for name, buffer in list(model.named_buffers()):
        # Position and type ids are no part of a checkpoint; on the meta device they have no values yet.
        owner = model.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        values = (
            torch.arange(sizes.positions).expand(1, -1)
            if leaf == "position_ids"
            else torch.zeros(buffer.shape, dtype=buffer.dtype)
        )
        owner.register_buffer(leaf, values, persistent=False)
    return model.eval().requires_grad_(False)


def pad(
    batch: list[Int[np.ndarray, " length"]], length: int, padding: int
) -> tuple[Int[np.ndarray, "b length"], Bool[np.ndarray, "b length"]]:
    """Token ids padded to `length`, and which of them are tokens."""
    ids = np.full((len(batch), length), padding, np.int64)
    for row, tokens in zip(ids, batch, strict=True):
        row[: len(tokens)] = tokens
    lengths = np.array([len(tokens) for tokens in batch])
    return ids, np.arange(length)[None, :] < lengths[:, None]


def tokens(
    model: nn.Module, ids: Int[Tensor, "b length"], observed: Bool[Tensor, "b length"]
) -> Float[Tensor, "b length width"]:
    """All tokens of the last layer, every token seeing every token that is not padding."""
    return model(input_ids=ids, attention_mask=observed.long()).last_hidden_state
