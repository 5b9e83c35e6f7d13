"""Chat templates in the styles of published models, in words of their own, with the special
tokens and the files that each style comes with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

TEMPLATES = Path(__file__).parent / "templates"

MARKERS = (
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
)
"""Special tokens of all styles, which the tests' one tokenizer has."""


@dataclass(frozen=True)
class Style:
    """``templates``: files in :data:`TEMPLATES` by the name that the checkpoint has for them.
    ``form``: where the checkpoint keeps them: ``jinja`` (files of their own) or ``config``
    (tokenizer_config.json)."""

    name: str
    templates: Mapping[str, str]
    bos: str | None
    eos: str
    form: str = "jinja"
    others: Mapping[str, object] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write a tokenizer with the templates into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer(self.bos).save(str(folder / "tokenizer.json"))
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "clean_up_tokenization_spaces": False,
            **self.others,
        }
        texts = {name: (TEMPLATES / file).read_text() for name, file in self.templates.items()}
        if self.form == "jinja":
            for name, text in texts.items():
                path = folder / "chat_template.jinja"
                if name != "default":
                    path = folder / "additional_chat_templates" / f"{name}.jinja"
                    path.parent.mkdir(exist_ok=True)
                path.write_text(text)
        elif len(texts) == 1:
            [config["chat_template"]] = texts.values()
        else:
            config["chat_template"] = [
                {"name": name, "template": text} for name, text in texts.items()
            ]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder


@cache
def tokenizer(bos: str | None) -> Tokenizer:
    """Bytes and special tokens. It begins what it encodes with ``bos`` if it is asked for special
    tokens, as most tokenizers of models that have such a token do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return made


STYLES = [
    Style("chatml", {"default": "chatml.jinja"}, None, "<|im_end|>"),
    Style("llama2", {"default": "llama2.jinja"}, "<s>", "</s>", form="config"),
    Style("llama3", {"default": "llama3.jinja"}, "<|begin_of_text|>", "<|eot_id|>"),
    Style(
        "mistral",
        {"default": "mistral.jinja"},
        "<s>",
        "</s>",
        form="config",
        others={"unk_token": {"__type": "AddedToken", "content": "<unk>", "lstrip": False}},
    ),
    Style("gemma", {"default": "gemma.jinja"}, "<bos>", "<eos>", form="config"),
    Style(
        "hermes",
        {"default": "chatml.jinja", "tool_use": "hermes_tools.jinja"},
        "<|begin_of_text|>",
        "<|im_end|>",
        form="config",
    ),
    Style(
        "qwen",
        {"default": "qwen.jinja"},
        None,
        "<|im_end|>",
        others={"pad_token": "<|endoftext|>"},
    ),
    Style("phi", {"default": "phi.jinja"}, "<s>", "<|endoftext|>"),
    Style("zephyr", {"default": "zephyr.jinja"}, "<s>", "</s>", form="config"),
    Style(
        "deepseek",
        {"default": "deepseek.jinja"},
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    Style(
        "command-r",
        {"default": "command_r.jinja", "tool_use": "command_r_tools.jinja"},
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    Style("smollm", {"default": "smollm.jinja"}, None, "<|im_end|>"),
    Style("vision", {"default": "vision.jinja"}, "<bos>", "<eos>"),
]
