"""Tokenizers of every decoder, as published models have them."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", *"abcdefghij", "▁a", "▁b", "ab", "▁ab", "你", "�", ".", "!", "é"]
"""Ids of special tokens, bytes and pieces follow each other in this order, from 0."""

FIRST_BYTE = len(SPECIAL)
FIRST_PIECE = FIRST_BYTE + len(BYTES)


def byte_fallback_bpe(*, strip: bool = True) -> Tokenizer:
    """As Llama 2 and Mistral are published; without ``strip`` as Gemma is."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *BYTES, *PIECES])}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return _fallback(Tokenizer(model), strip=strip)


def byte_fallback_unigram() -> Tokenizer:
    """As sentencepiece's unigram models are converted."""
    tokens = [*SPECIAL, *BYTES, *PIECES]
    pieces = [(token, -float(number)) for number, token in enumerate(tokens)]
    return _fallback(Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True)), strip=True)


def byte_level() -> Tokenizer:
    """As gpt2, Llama 3 and Qwen are published."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer)


def metaspace() -> Tokenizer:
    """As T5 and Llama 2's newer conversions are published."""
    tokenizer = byte_fallback_unigram()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT is published."""
    tokens = [*SPECIAL, *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh"), ".", "'", "s"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_special(tokenizer)


def suffixed_bpe() -> Tokenizer:
    """As the first GPT and XLM are published."""
    tokens = [*SPECIAL, *"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return _with_special(tokenizer)


def without_decoder() -> Tokenizer:
    """Whole words, which are joined by spaces."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _with_special(tokenizer)


def _fallback(tokenizer: Tokenizer, *, strip: bool) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        if strip
        else [normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return _with_special(tokenizer)


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


TOKENIZERS = {
    "byte fallback": byte_fallback_bpe(),
    "byte fallback without strip": byte_fallback_bpe(strip=False),
    "byte fallback unigram": byte_fallback_unigram(),
    "byte level": byte_level(),
    "metaspace": metaspace(),
    "word piece": word_piece(),
    "suffixed": suffixed_bpe(),
    "no decoder": without_decoder(),
}
